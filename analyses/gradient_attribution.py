"""Attribution patching and integrated gradients: what moving each head's output to a reference does to a metric."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.batches import batches
from analyses.contributions import Contributions
from analyses.gradients import metric_gradients
from analyses.metrics import Group, Metric
from analyses.references import EditOfRows
from interp.model_adapter import HookedModel, activations
from interp.sites import Site
from tasks.prompts import Prompts


def gradient_contributions(
    model: HookedModel,
    prompts: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edits: Mapping[Site, EditOfRows],
    *,
    batch_size: int,
) -> Contributions:
    """Attribution patching: Σ_pos (z_reference − z) · ∂metric/∂z per head, from one pass forward and one back.

    ``edits`` says what the reference is at each head (their keys are the heads).
    """
    layers = _layers(edits)
    sums, counts = [], []
    for rows in batches(prompts, batch_size):
        points = list(layers)
        found = metric_gradients(model, prompts[rows], metric, _of_rows(parts, rows), points, leaf=points[0])
        columns = []
        for point, sites in layers.items():
            z = found.activations[point]
            to_reference = _reference(z, sites, edits, rows) - z
            columns.append(torch.stack([_per_head(to_reference, of[point], sites) for of in found.by_part], dim=-1))
        sums.append(torch.cat(columns, dim=1))
        counts.append(found.counts)
    return _contributions(edits, sums, counts)


def integrated_contributions(
    model: HookedModel,
    prompts: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edits: Mapping[Site, EditOfRows],
    *,
    n_steps: int,
    batch_size: int,
) -> Contributions:
    """Integrated gradients: Σ_pos (z_reference − z) · ∫ ∂metric/∂z dα along the straight line between the two.

    The heads of a layer move together and other layers follow, so that a layer's heads sum to what moving all of
    them does. The integral is a midpoint sum of ``n_steps`` gradients; its error falls as 1 / n_steps².
    """
    layers = _layers(edits)
    sums, counts = [], []
    for rows in batches(prompts, batch_size):
        batch, of_rows = prompts[rows], _of_rows(parts, rows)
        clean_outputs, clean = activations(model, batch.inputs, list(layers))
        columns = []
        for point, sites in layers.items():
            to_reference = _reference(clean[point], sites, edits, rows) - clean[point]
            total = [torch.zeros_like(to_reference, dtype=torch.float64) for _ in parts]
            for step in range(n_steps):
                value = clean[point] + (step + 0.5) / n_steps * to_reference
                found = metric_gradients(
                    model, batch, metric, of_rows, [point], leaf=point, value=value, clean=clean_outputs
                )
                for mean, gradients in zip(total, found.by_part, strict=True):
                    mean += gradients[point] / n_steps
            columns.append(torch.stack([_per_head(to_reference, mean, sites) for mean in total], dim=-1))
        sums.append(torch.cat(columns, dim=1))
        counts.append(found.counts)
    return _contributions(edits, sums, counts)


def _layers(edits: Mapping[Site, EditOfRows]) -> dict[str, list[Site]]:
    """The heads by their hook point, both in order."""
    layers: dict[str, list[Site]] = {}
    for site in sorted(edits, key=lambda site: (site.layer, site.head)):
        layers.setdefault(site.hook_name, []).append(site)
    return layers


def _reference(
    z: Float[Tensor, "batch pos head d_head"], sites: Sequence[Site], edits: Mapping[Site, EditOfRows], rows: slice
) -> Float[Tensor, "batch pos head d_head"]:
    """z with every chosen head as the same edits in an ablation would write it."""
    edited = z.clone()
    for site in sites:
        edited[site.index(edited)] = edits[site](rows)(z[site.index(z)])
    return edited


def _per_head(
    change: Float[Tensor, "batch pos head d_head"],
    gradient: Float[Tensor, "batch pos head d_head"],
    sites: Sequence[Site],
) -> Float[Tensor, "batch chosen"]:
    return (change.double() * gradient.double()).sum(dim=(1, 3))[:, [site.head for site in sites]]


def _of_rows(parts: Sequence[Group], rows: slice) -> list[Group]:
    return [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]


def _contributions(edits: Mapping[Site, EditOfRows], sums: list[Tensor], counts: list[Tensor]) -> Contributions:
    components = [(str(site), site.layer, site.head) for sites in _layers(edits).values() for site in sites]
    # + 0.0, since what an idle head is multiplied with may leave −0
    return Contributions(components, torch.cat(sums).cpu().numpy() + 0.0, torch.cat(counts).cpu().numpy())

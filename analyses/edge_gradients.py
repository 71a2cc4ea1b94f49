"""First-order scores of edges: gradients of the clean run, or averaged along a line to the reference."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analyses.edge_scores import EdgeWeights, TokenChange, edge_scores, points_of_gradients
from analyses.edges import Edges
from analyses.gradients import metric_gradients
from analyses.metrics import Group, Metric
from interp.model_adapter import HookedModel, Inputs, activations
from tasks.prompts import Prompts

SumsOfEdges = tuple[Float[ndarray, "batch edge part"], Float[ndarray, "batch part"]]
"""Scores of a batch as sums over its positions, and how many of them count."""
Reference = Mapping[str, Tensor | float]
"""Activations at the senders' points in the reference run."""


def eap(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edges: Edges,
    weights: EdgeWeights,
    reference: Reference,
    there: Inputs | None,
) -> SumsOfEdges:
    """Edge attribution patching: one pass forward, which gives the clean activations too, and one back.

    ``there`` are the prompts that ``reference`` was seen on, if it was seen on any.
    """
    points, residuals = points_of_gradients(edges), _residuals(model, weights)
    seen = [point for point in (*reference, *residuals) if point not in points and point != "hook_embed"]
    found = metric_gradients(model, batch, metric, parts, points, leaf="hook_embed", seen=seen)
    changes = {point: goal - found.activations[point] for point, goal in reference.items()}
    tokens = _of_tokens(model, batch, there, changes)
    scores = [edge_scores(edges, weights, changes, found.activations, by, tokens) for by in found.by_part]
    return _as_sums(torch.stack(scores, dim=-1).double(), found.counts)


def eap_ig_inputs(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edges: Edges,
    weights: EdgeWeights,
    reference: Reference,
    there: Inputs | None,
    *,
    n_steps: int,
) -> SumsOfEdges:
    """The same with gradients averaged on the way from the batch's embeddings to the reference's."""
    points, residuals = points_of_gradients(edges), _residuals(model, weights)
    outputs, clean = activations(model, batch.inputs, list(reference))
    changes = {point: goal - clean[point] for point, goal in reference.items()}
    tokens = _of_tokens(model, batch, there, changes)
    total, counts = torch.zeros(()), torch.zeros(())
    for step in range(n_steps):
        value = clean["hook_embed"] + (step + 0.5) / n_steps * changes["hook_embed"]
        found = metric_gradients(
            model, batch, metric, parts, points, leaf="hook_embed", seen=residuals, value=value, clean=outputs
        )
        scores = [edge_scores(edges, weights, changes, found.activations, by, tokens) for by in found.by_part]
        total, counts = total + torch.stack(scores, dim=-1).double() / n_steps, found.counts
    return _as_sums(total, counts)


def eap_ig_activations(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edges: Edges,
    weights: EdgeWeights,
    reference: Reference,
    there: Inputs | None,
    *,
    n_steps: int,
) -> SumsOfEdges:
    """The same with gradients averaged on the way from what the senders at one hook point write to the reference.

    With o(α) = o + α (o_reference − o) at a point (all heads of a layer, an MLP, an embedding) and all behind it
    computed anew, the edge from sender s to receiver r scores Σ_pos ⟨Δ_s, ∫ ∂metric/∂input_r dα⟩. Since the residual
    stream is a sum, Σ_r ∂metric/∂input_r over all r behind s is the whole derivative by what s writes, so that the
    scores of all edges that leave the point sum to ∫ d metric/dα dα = metric(o_reference) − metric(o).
    """
    residuals = _residuals(model, weights)
    outputs, clean = activations(model, batch.inputs, list(reference))
    counts = torch.stack([metric.measure(outputs, part.of(batch), outputs)[1] for part in parts], dim=1).double()
    total = torch.zeros((len(batch), len(edges.pairs), len(parts)), dtype=torch.float64, device=outputs.device)
    changes = {point: goal - clean[point] for point, goal in reference.items()}
    tokens = _of_tokens(model, batch, there, changes)
    for point, change in changes.items():
        if not bool(change.any()):
            continue
        leaving, places = _leaving(edges, point)
        points = points_of_gradients(leaving)
        before = {f"blocks.{one.layer}.hook_resid_pre" for one in leaving.receivers if one.head is not None}
        for step in range(n_steps):
            value = clean[point] + (step + 0.5) / n_steps * change
            found = metric_gradients(
                model, batch, metric, parts, points, leaf=point,
                seen=[each for each in residuals if each in before], value=value, clean=outputs,
            )  # fmt: skip
            scores = [
                edge_scores(leaving, weights, {point: change}, found.activations, by, tokens) for by in found.by_part
            ]
            total[:, places] += torch.stack(scores, dim=-1).double() / n_steps
    return _as_sums(total, counts)


def _of_tokens(
    model: HookedModel, batch: Prompts, there: Inputs | None, changes: Mapping[str, Tensor]
) -> TokenChange | None:
    """The change of the embeddings as one of tokens, where other prompts ``there`` make it."""
    if there is None or "hook_embed" not in changes:
        return None
    return TokenChange.of(model, batch.inputs, there, changes["hook_embed"])


def _leaving(edges: Edges, point: str) -> tuple[Edges, list[int]]:
    """The edges whose senders write at a point, with their places among all edges."""
    places = [place for place, (s, _) in enumerate(edges.pairs) if edges.senders[s].point == point]
    senders = list(dict.fromkeys(edges.pairs[place][0] for place in places))
    receivers = list(dict.fromkeys(edges.pairs[place][1] for place in places))
    pairs = [(senders.index(s), receivers.index(r)) for s, r in (edges.pairs[place] for place in places)]
    chosen = tuple(edges.senders[s] for s in senders), tuple(edges.receivers[r] for r in receivers)
    return Edges(*chosen, tuple(pairs)), places


def _residuals(model: HookedModel, weights: EdgeWeights) -> list[str]:
    """Where a LayerNorm reads; without one nobody needs to know."""
    return [] if weights.eps is None else [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]


def _as_sums(scores: Float[Tensor, "batch edge part"], counts: Float[Tensor, "batch part"]) -> SumsOfEdges:
    # + 0.0, since what an idle head is multiplied with may leave −0
    return scores.cpu().numpy() + 0.0, counts.cpu().numpy()

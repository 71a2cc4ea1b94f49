"""Many interventions on the same prompts: the clean prefix is computed once and shared by all that edit behind it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from analyses.metrics import Group, Metric
from analyses.references import EditOfRows
from interp.interventions import Intervention, Receipt, intervene
from interp.model_adapter import HookedModel, activations, outputs, outputs_from, watching
from interp.sites import Site
from interp.statistics import Interval, ratio_interval
from tasks.prompts import Prompts

Plan = Mapping[Site, EditOfRows]
"""Edits that are made together."""


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep measured. A quantity is a pair of metric and group; metrics vary slowest."""

    baseline: Float[ndarray, "quantity"]
    effects: tuple[Interval, ...]
    """Per plan, the metric after minus before, [quantity]."""
    n_prompts: Int[ndarray, "quantity"]
    """How many prompts score anything there."""
    receipts: tuple[tuple[Receipt, ...], ...]
    differences: tuple[Float[ndarray, "prompt quantity"], ...]
    """Per plan, the sum after minus before of each prompt: what effects and contrasts of effects are made of."""
    counts: Float[ndarray, "prompt quantity"]


def sweep(
    model: HookedModel,
    prompts: Prompts,
    plans: Sequence[Plan],
    metrics: Sequence[Metric],
    parts: Sequence[Group],
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    batch_size: int,
    confidence: float,
    seed: int,
) -> SweepOutcome:
    """Measure every plan on every prompt, against the clean model on the same prompts.

    Each batch runs clean once; a plan then runs from the first layer it edits, on the clean residual stream
    before that layer, which gives exactly the numbers of a full pass. With a ``mask`` every edit is made where it
    holds only.

    Raises:
        InputError: an intervention that did not fire, or a metric that is not finite.
    """
    clean, counts, edited = [], [], [[] for _ in plans]
    receipts = [[Receipt(site) for site in plan] for plan in plans]
    firsts = [first_layer(plan) for plan in plans]
    points = points_to_watch(site for plan in plans for site in plan)
    with torch.no_grad():
        for rows in batches(prompts, batch_size):
            batch = prompts[rows]
            of_batch = [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]
            of_rows = None if mask is None else mask[rows]
            clean_outputs, residuals = clean_pass(model, batch.inputs, firsts, points)
            sums, count = measured(metrics, of_batch, clean_outputs, batch, clean_outputs)
            clean.append(sums)
            counts.append(count)
            for plan, first, total, kept in zip(plans, firsts, receipts, edited, strict=True):
                outputs_edited = clean_outputs
                if of_rows is None or of_rows.any():
                    interventions = [Intervention(site, edit(rows), of_rows) for site, edit in plan.items()]
                    with intervene(model, interventions) as receipts_of_batch:
                        outputs_edited = outputs_behind(model, batch.inputs, first, residuals, points)
                    for receipt, one in zip(total, receipts_of_batch, strict=True):
                        receipt.add(one)
                kept.append(measured(metrics, of_batch, outputs_edited, batch, clean_outputs)[0])
    before, count = np.concatenate(clean), np.concatenate(counts)
    with np.errstate(invalid="ignore"):
        differences = tuple(np.concatenate(after) - before for after in edited)
        baseline = before.sum(axis=0) / count.sum(axis=0)
    # all at once, since drawing the resamples is most of the work
    every = ratio_interval(
        np.concatenate(differences, axis=1), np.tile(count, (1, len(plans))), confidence=confidence, seed=seed
    )
    ends = (np.split(part, len(plans)) for part in (every.estimate, every.low, every.high))
    effects = tuple(Interval(*each) for each in zip(*ends, strict=True))
    fired = tuple(tuple(each) for each in receipts)
    return SweepOutcome(baseline, effects, (count > 0).sum(axis=0), fired, differences, count)


def first_layer(sites: Iterable[Site]) -> int | None:
    """The first layer that edits at these sites act in; None if they act before the layers."""
    layers = [site.layer for site in sites]
    return None if None in layers else min(layer for layer in layers if layer is not None)


def points_to_watch(sites: Iterable[Site]) -> dict[str, int]:
    """The hook points of heads, with their layers, that edited and clean passes alike must watch.

    Attention takes another path where someone watches its scores, say, which gives other roundings; so that an edit
    that changes nothing has an effect of exactly zero, both arms of a comparison take the same path.
    """
    return {site.hook_name: site.layer for site in sites if site.head is not None and site.layer is not None}


def clean_pass(
    model: HookedModel, inputs: Tensor, layers: Iterable[int | None], points: Mapping[str, int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """The clean outputs, and the residual stream before each of the layers."""
    starts = {layer: f"blocks.{layer}.hook_resid_pre" for layer in layers if layer is not None}
    with watching(model, points):
        clean_outputs, clean = activations(model, inputs, list(starts.values()))
    return clean_outputs, {layer: clean[point] for layer, point in starts.items()}


def outputs_behind(
    model: HookedModel, inputs: Tensor, first: int | None, residuals: Mapping[int, Tensor], points: Mapping[str, int]
) -> Tensor:
    """The outputs of a pass from the residual stream before a layer, or of a whole one."""
    with watching(model, [point for point, layer in points.items() if first is None or layer >= first]):
        return outputs(model, inputs) if first is None else outputs_from(model, inputs, first, residuals[first])


def measured(
    metrics: Sequence[Metric], parts: Sequence[Group], outputs: Tensor, batch: Prompts, clean: Tensor
) -> tuple[Float[ndarray, "batch quantity"], Float[ndarray, "batch quantity"]]:
    """Sums and counts of every metric on every group."""
    measured = [metric.measure(outputs, part.of(batch), clean) for metric in metrics for part in parts]
    sums = torch.stack([one.double() for one, _ in measured], dim=1)
    counts = torch.stack([count.double() for _, count in measured], dim=1)
    return sums.cpu().numpy(), counts.cpu().numpy()

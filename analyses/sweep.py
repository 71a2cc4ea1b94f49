"""Many interventions on the same prompts: the clean prefix is computed once and shared by all that edit behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from analyses.metrics import Group, Metric
from analyses.references import EditOfRows
from interp.interventions import Intervention, Receipt, intervene
from interp.model_adapter import HookedModel, activations, outputs_from
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
    batch_size: int,
    confidence: float,
    seed: int,
) -> SweepOutcome:
    """Measure every plan on every prompt, against the clean model on the same prompts.

    Each batch runs clean once; a plan then runs from the first layer it edits, on the clean residual stream
    before that layer, which gives exactly the numbers of a full pass.

    Raises:
        InputError: an intervention that did not fire, or a metric that is not finite.
    """
    clean, counts, edited = [], [], [[] for _ in plans]
    receipts = [[Receipt(site) for site in plan] for plan in plans]
    firsts = [min(site.layer for site in plan) for plan in plans]
    with torch.no_grad():
        for rows in batches(prompts, batch_size):
            batch = prompts[rows]
            of_batch = [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]
            outputs, residuals = _clean_pass(model, batch, set(firsts))
            sums, count = _measured(metrics, of_batch, outputs, batch, outputs)
            clean.append(sums)
            counts.append(count)
            for plan, first, total, kept in zip(plans, firsts, receipts, edited, strict=True):
                interventions = [Intervention(site, edit(rows)) for site, edit in plan.items()]
                with intervene(model, interventions) as receipts_of_batch:
                    outputs_edited = outputs_from(model, batch.inputs, first, residuals[first])
                kept.append(_measured(metrics, of_batch, outputs_edited, batch, outputs)[0])
                for receipt, one in zip(total, receipts_of_batch, strict=True):
                    receipt.add(one)
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


def _clean_pass(model: HookedModel, batch: Prompts, layers: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
    points = {layer: f"blocks.{layer}.hook_resid_pre" for layer in layers}
    outputs, clean = activations(model, batch.inputs, list(points.values()))
    return outputs, {layer: clean[point] for layer, point in points.items()}


def _measured(
    metrics: Sequence[Metric], parts: Sequence[Group], outputs: Tensor, batch: Prompts, clean: Tensor
) -> tuple[Float[ndarray, "batch quantity"], Float[ndarray, "batch quantity"]]:
    """Sums and counts of every metric on every group."""
    measured = [metric.measure(outputs, part.of(batch), clean) for metric in metrics for part in parts]
    sums = torch.stack([one.double() for one, _ in measured], dim=1)
    counts = torch.stack([count.double() for _, count in measured], dim=1)
    return sums.cpu().numpy(), counts.cpu().numpy()

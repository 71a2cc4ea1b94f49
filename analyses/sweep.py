"""Many interventions on the same prompts: the clean prefix is computed once and shared by all that edit behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from analyses.edited_passes import EditedPasses
from analyses.metrics import Group, Metric
from analyses.references import EditOfRows
from interp.interventions import Intervention, Receipt
from interp.model_adapter import HookedModel
from interp.progress import patient_progress
from interp.sites import Site
from interp.statistics import Interval, ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts

Plan = Mapping[Site, EditOfRows]
"""Edits that are made together."""
_COLUMNS_AT_ONCE = 2000  # so that the resamples of many plans (2,000 each) take 32 MB


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """What a sweep measured. A quantity is a pair of metric and group; metrics vary slowest."""

    baseline: Float[ndarray, "quantity"]
    n_prompts: Int[ndarray, "quantity"]
    """How many prompts score anything there."""
    receipts: tuple[tuple[Receipt, ...], ...]
    differences: tuple[Float[ndarray, "prompt quantity"], ...]
    """Per plan, the sum after minus before of each prompt: what effects and contrasts of effects are made of."""
    counts: Float[ndarray, "prompt quantity"]
    confidence: float
    seed: int

    @cached_property
    def effects(self) -> tuple[Interval, ...]:
        """Per plan, the metric after minus before, [quantity], with intervals over prompts.

        Computed when asked for: the resamples of many plans take longer than their passes.
        """
        found: list[Interval] = []
        at_once = max(1, _COLUMNS_AT_ONCE // self.counts.shape[1])
        for start in range(0, len(self.differences), at_once):
            some = self.differences[start : start + at_once]
            every = ratio_interval(
                np.concatenate(some, axis=1), np.tile(self.counts, (1, len(some))),
                confidence=self.confidence, seed=self.seed,
            )  # fmt: skip
            ends = (np.split(part, len(some)) for part in (every.estimate, every.low, every.high))
            found += [Interval(*each) for each in zip(*ends, strict=True)]
        return tuple(found)


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
    stacked: bool = True,
) -> SweepOutcome:
    """Measure every plan on every prompt, against the clean model on the same prompts.

    Each batch runs clean once; a plan then runs from what it edits first, on what is known there from the clean pass
    (see ``EditedPasses``), which gives the numbers of a full pass up to rounding, and an effect of exactly zero for an
    edit that changes nothing. With a ``mask`` every edit is made where it holds only. Small passes run several plans
    side by side, unless memory is short (not ``stacked``).

    Raises:
        InputError: an intervention that did not fire, or a metric that is not finite.
    """
    clean, counts, edited = [], [], [[] for _ in plans]
    passes = EditedPasses(model, [tuple(plan) for plan in plans], stacked=stacked)
    every = list(batches(prompts, batch_size))
    with torch.no_grad(), patient_progress("passes", len(every) * len(plans)) as one_more:
        for rows in every:
            batch = prompts[rows]
            of_batch = [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]
            clean_outputs = passes.clean(batch.inputs)
            sums, count = measured(metrics, of_batch, clean_outputs, batch, clean_outputs)
            clean.append(sums)
            counts.append(count)
            planned = _interventions(plans, rows, None if mask is None else mask[rows])
            for number, outputs in passes.edited(planned):
                edited[number].append(measured(metrics, of_batch, outputs, batch, clean_outputs)[0])
                one_more()
    before, count = np.concatenate(clean), np.concatenate(counts)
    with np.errstate(invalid="ignore"):
        differences = tuple(np.concatenate(after) - before for after in edited)
        baseline = before.sum(axis=0) / count.sum(axis=0)
    _refuse_not_finite(differences)
    fired = tuple(tuple(each) for each in passes.receipts)
    n_prompts = (count > 0).sum(axis=0)
    return SweepOutcome(baseline, n_prompts, fired, differences, count, confidence, seed)


def _interventions(
    plans: Sequence[Plan], rows: slice, mask: Bool[Tensor, "batch pos"] | None
) -> list[list[Intervention]]:
    """Every plan as interventions on a batch, none where the mask holds nowhere; plans share those they have alike."""
    if mask is not None and not mask.any():
        return [[] for _ in plans]
    alike: dict[tuple[Site, EditOfRows], Intervention] = {}

    def intervention(site: Site, edit: EditOfRows) -> Intervention:
        if (site, edit) not in alike:
            alike[site, edit] = Intervention(site, edit(rows), mask)
        return alike[site, edit]

    return [[intervention(site, edit) for site, edit in plan.items()] for plan in plans]


def _refuse_not_finite(differences: Sequence[ndarray]) -> None:
    wrong = sum(int((~np.isfinite(one)).sum()) for one in differences)
    if wrong:
        size = sum(one.size for one in differences)
        raise InputError(f"{wrong} of the {size} sums are not finite: no estimate exists")


def measured(
    metrics: Sequence[Metric], parts: Sequence[Group], outputs: Tensor, batch: Prompts, clean: Tensor
) -> tuple[Float[ndarray, "batch quantity"], Float[ndarray, "batch quantity"]]:
    """Sums and counts of every metric on every group."""
    measured = [metric.measure(outputs, part.of(batch), clean) for metric in metrics for part in parts]
    sums = torch.stack([one.double() for one, _ in measured], dim=1)
    counts = torch.stack([count.double() for _, count in measured], dim=1)
    return sums.cpu().numpy(), counts.cpu().numpy()

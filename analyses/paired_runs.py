"""A run on prompts and one on their counterfactual: how far parts of the one, put into the other, lead over to it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from analyses.metrics import Group, Metric
from analyses.sweep import measured
from interp.progress import patient_progress
from interp.statistics import Interval, percentile_ends, ratio_interval, resampled_ratios
from tasks.errors import InputError
from tasks.prompts import Prompts

Direction = Literal["noising", "denoising"]
"""Which run is edited: "noising" puts parts of the counterfactual's run into the prompts', "denoising" the reverse."""
PassesOfBatch = tuple[Tensor, Tensor, Iterator[tuple[int, Tensor]]]
_COLUMNS_AT_ONCE = 2000  # so that the resamples of many patches (2,000 each) take 32 MB


@dataclass(frozen=True, eq=False)
class RunPair:
    """The base run, which is edited, and the other run, where what is written comes from.

    Whatever the direction, outputs are judged by the answers of ``prompts``, and a KL is taken from their run.
    """

    prompts: Prompts
    counterfactual: Prompts
    direction: Direction

    def __post_init__(self) -> None:
        if self.direction not in ("noising", "denoising"):
            raise InputError(f"direction = {self.direction!r} is unknown: choose 'noising' or 'denoising'")
        if not len(self.prompts):
            raise InputError("prompts holds 0 prompts: sample some")

    def inputs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The inputs of the base run and of the other."""
        mine, theirs = self.prompts.inputs[rows], self.counterfactual.inputs[rows]
        return (mine, theirs) if self.direction == "noising" else (theirs, mine)


@dataclass(frozen=True, eq=False)
class PatchedValues:
    """What was measured. A quantity is a pair of metric and group; metrics vary slowest."""

    baseline: Float[ndarray, "quantity"]
    """The metric of the base run."""
    other: Float[ndarray, "quantity"]
    """The metric of the other run."""
    deltas: tuple[Interval, ...]
    """Per patch, the metric after minus before, [quantity]."""
    effects: tuple[Interval, ...]
    """Per patch, delta as a share of the way from the base run's value to the other's; NaN where there is no way."""
    n_prompts: Int[ndarray, "quantity"]
    """How many prompts score anything there."""

    def rows(
        self, patch: int, metrics: Sequence[Metric], parts: Sequence[Group], by: str | None
    ) -> Iterator[dict[str, Any]]:
        """One row of a table per metric and group of a patch."""
        delta, effect = self.deltas[patch], self.effects[patch]
        for k, (metric, part) in enumerate((metric, part) for metric in metrics for part in parts):
            row: dict[str, Any] = {"metric": metric.name} | ({} if by is None else {by: part.value})
            row |= {"baseline": self.baseline[k], "other": self.other[k]}
            row |= {"patched": self.baseline[k] + delta.estimate[k], "delta": delta.estimate[k]}
            row |= {"ci_low": delta.low[k], "ci_high": delta.high[k], "effect": effect.estimate[k]}
            row |= {"effect_low": effect.low[k], "effect_high": effect.high[k], "n_prompts": int(self.n_prompts[k])}
            yield row


def measure_patches(
    pair: RunPair,
    passes: Callable[[slice], PassesOfBatch],
    n_patches: int,
    metrics: Sequence[Metric],
    parts: Sequence[Group],
    *,
    batch_size: int,
    confidence: float,
    seed: int,
) -> PatchedValues:
    """Measure every patch on every pair of prompts, with intervals over pairs.

    ``passes(rows)`` gives the outputs of the base run, of the other run, and those of every patched run with its
    number, in any order.

    Raises:
        InputError: a metric that is not finite, fewer than two prompts.
    """
    base_sums, other_sums, counts = [], [], []
    patched: list[list[Float[ndarray, "batch quantity"]]] = [[] for _ in range(n_patches)]
    every = list(batches(pair.prompts, batch_size))
    with torch.no_grad(), patient_progress("passes", len(every) * n_patches) as one_more:
        for rows in every:
            batch = pair.prompts[rows]
            of_batch = [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]
            base, other, runs = passes(rows)
            answered = base if pair.direction == "noising" else other
            of_base, count = measured(metrics, of_batch, base, batch, answered)
            base_sums.append(of_base)
            counts.append(count)
            other_sums.append(measured(metrics, of_batch, other, batch, answered)[0])
            for number, outputs in runs:
                patched[number].append(measured(metrics, of_batch, outputs, batch, answered)[0])
                one_more()
    before, there, count = (np.concatenate(each) for each in (base_sums, other_sums, counts))
    return _compared(before, there, [np.concatenate(each) for each in patched], count, confidence, seed)


def notes_on_effects(frame: pd.DataFrame) -> tuple[str, ...]:
    """A note if some rows have no effect, and why."""
    missing = int(frame["effect"].isna().sum())
    if not missing:
        return ()
    note = (
        f"{missing} of {len(frame)} rows have a delta but no effect: the interval of the difference between the two "
        "runs includes 0 there, so there is no way to have gone a share of"
    )
    return (note,)


def _compared(
    before: Float[ndarray, "prompt quantity"],
    other: Float[ndarray, "prompt quantity"],
    after: Sequence[Float[ndarray, "prompt quantity"]],
    counts: Float[ndarray, "prompt quantity"],
    confidence: float,
    seed: int,
) -> PatchedValues:
    with np.errstate(invalid="ignore"):
        baseline, other_value = (sums.sum(axis=0) / counts.sum(axis=0) for sums in (before, other))
        way = other - before
    between = ratio_interval(way, counts, confidence=confidence, seed=seed)
    apart = (between.low > 0) | (between.high < 0)
    deltas: list[Interval] = []
    effects: list[Interval] = []
    at_once = max(1, _COLUMNS_AT_ONCE // before.shape[1])
    for start in range(0, len(after), at_once):
        some = [sums - before for sums in after[start : start + at_once]]
        differences, n = np.concatenate(some, axis=1), len(some)
        delta = ratio_interval(differences, np.tile(counts, (1, n)), confidence=confidence, seed=seed)
        deltas += _split(delta, n)
        effect = share_interval(differences, np.tile(way, (1, n)), np.tile(counts, (1, n)), confidence, seed)
        effects += _split(_blanked(effect, ~np.tile(apart, n)), n)
    return PatchedValues(baseline, other_value, tuple(deltas), tuple(effects), (counts > 0).sum(axis=0))


def share_interval(
    differences: Float[ndarray, "prompt quantity"],
    ways: Float[ndarray, "prompt quantity"],
    counts: Float[ndarray, "prompt quantity"],
    confidence: float,
    seed: int,
) -> Interval:
    """Σ differences / Σ ways with its interval, both resampled together; it means something where Σ ways is not 0.

    >>> ways = np.arange(1.0, 9.0)[:, None]
    >>> share_interval(ways / 4, ways, np.ones((8, 1)), 0.95, 0).high
    array([0.25])
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample whose ways cancel has no share
        estimate = differences.sum(axis=0) / ways.sum(axis=0) + 0.0  # no −0
        resampled = resampled_ratios(differences, ways, seed=seed)
    resampled[~np.isfinite(resampled)] = np.nan
    n_counting = (counts > 0).sum(axis=0)
    ends = np.full((2, resampled.shape[1]), np.nan)
    for n in np.unique(n_counting[n_counting >= 2]):
        alike = n_counting == n
        ends[:, alike] = percentile_ends(resampled[:, alike], int(n), confidence=confidence) + 0.0
    return Interval(estimate, ends[0], ends[1])


def _blanked(interval: Interval, where: ndarray) -> Interval:
    return Interval(*(np.where(where, np.nan, part) for part in (interval.estimate, interval.low, interval.high)))


def _split(interval: Interval, n: int) -> list[Interval]:
    parts = (np.split(part, n) for part in (interval.estimate, interval.low, interval.high))
    return [Interval(*each) for each in zip(*parts, strict=True)]

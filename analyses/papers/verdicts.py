"""Does a claim hold? A verdict is a function of an interval over seeds and of a criterion written down beforehand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from interp.statistics import seed_interval
from tasks.errors import InputError

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]

CONFIDENCE = 0.95
_FEWEST_SEEDS = 5  # what seed_interval needs
_MOST_SEEDS = 10_000  # more than anyone would train


@dataclass(frozen=True)
class Criterion:
    """What must be so for the claim to hold, decided before anything is run.

    Attributes:
        name: short name of the statistic, one value of which belongs to each seed.
        statistic: what it is, in words, with its unit.
        threshold: the margin, in the statistic's unit.
        side: on which side of the threshold the claim lies.
        source: where the margin comes from: a tag of the paper, or [ours] where it says nothing.
    """

    name: str
    statistic: str
    threshold: float
    side: Literal["above", "below"] = "above"
    source: str = "[ours]"

    @property
    def text(self) -> str:
        """The criterion as a sentence.

        >>> Criterion("gain", "accuracy gained", 0.2).text
        'accuracy gained is above 0.2 [ours]'
        """
        return f"{self.statistic} is {self.side} {self.threshold:g} {self.source}"


@dataclass(frozen=True)
class Judgement:
    """One criterion, its values by seed, their mean with Student's t interval, and the verdict."""

    criterion: Criterion
    values: tuple[float, ...]
    value: float
    ci_low: float
    ci_high: float
    verdict: Verdict
    seeds_to_settle: int | None
    """Where inconclusive: how many seeds of this mean and spread would end it; None if no number here would."""
    silent_because: str = ""
    """Why values short of the margin deny nothing here, where that alone makes the verdict inconclusive."""


def judge(
    criterion: Criterion, values: Sequence[float], *, silent_because: str = "", confidence: float = CONFIDENCE
) -> Judgement:
    """The verdict on one criterion from one value per seed.

    Reproduced if the whole interval lies on the claimed side of the threshold, not reproduced if none of it does
    (an interval that ends on the threshold itself is not on the claimed side), and inconclusive otherwise. With
    ``silent_because`` (the values are lower bounds, say, or the margin was out of reach) nothing is denied: what
    would be not reproduced is inconclusive.

    Raises:
        InputError: fewer than 5 seeds, or a value that is not finite.

    >>> judge(Criterion("gain", "accuracy gained", 0.2), [0.5, 0.6, 0.5, 0.6, 0.5]).verdict
    'reproduced'
    """
    try:
        interval = seed_interval(np.asarray(values, dtype=float), confidence=confidence)
    except InputError as error:
        raise InputError(f"{criterion.name}: {error}") from None
    value, low, high = float(interval.estimate), float(interval.low), float(interval.high)
    above = criterion.side == "above"
    if low > criterion.threshold if above else high < criterion.threshold:
        verdict: Verdict = "reproduced"
    elif high <= criterion.threshold if above else low >= criterion.threshold:
        verdict = "inconclusive" if silent_because else "not reproduced"
        return Judgement(criterion, tuple(map(float, values)), value, low, high, verdict, None, silent_because)
    else:
        verdict = "inconclusive"
    needed = _seeds_to_settle(values, criterion.threshold, confidence) if verdict == "inconclusive" else None
    return Judgement(criterion, tuple(map(float, values)), value, low, high, verdict, needed)


def judge_all(
    criteria: Sequence[Criterion], values: Mapping[str, Sequence[float]], silent: Mapping[str, str] | None = None
) -> tuple[Judgement, ...]:
    """Every criterion of a claim on its own values; ``silent`` says of some why they can deny nothing.

    Raises:
        InputError: as for ``judge``, or values that belong to no criterion, or a criterion without values.
    """
    names = [criterion.name for criterion in criteria]
    if sorted(names) != sorted(values):
        raise InputError(f"values of {', '.join(values)} were given for the criteria {', '.join(names)}: give the same")
    why = silent or {}
    if unknown := sorted(why.keys() - set(names)):
        raise InputError(f"silent names {', '.join(unknown)}: the criteria are {', '.join(names)}")
    return tuple(judge(one, values[one.name], silent_because=why.get(one.name, "")) for one in criteria)


def deciding(judgements: Sequence[Judgement]) -> Judgement:
    """The judgement that decides a claim whose criteria must all hold.

    The claim is reproduced if every criterion is, not reproduced if one is not, and inconclusive otherwise; the one
    returned is the first that makes it so (of inconclusive ones one that no number of seeds would settle, if there is
    one), and of reproduced ones that whose interval lies nearest its margin, in half-widths of the interval. All being
    needed, each interval keeps its own confidence: a false claim passes only if its false criterion does.

    >>> low, high = (judge(Criterion("c", "c", 1.0), [x, x, x, x, x]) for x in (0.0, 2.0))
    >>> deciding([high, low]).value
    0.0
    """
    if not judgements:
        raise InputError("a claim without criteria cannot be judged: write at least one down")
    for verdict in ("not reproduced", "inconclusive"):
        if so := [one for one in judgements if one.verdict == verdict]:
            return min(so, key=lambda one: verdict == "inconclusive" and one.seeds_to_settle is not None)
    return min(judgements, key=_half_widths_away)


def _half_widths_away(one: Judgement) -> float:
    half_width = (one.ci_high - one.ci_low) / 2
    return abs(one.value - one.criterion.threshold) / half_width if half_width > 0 else math.inf


def _seeds_to_settle(values: Sequence[float], threshold: float, confidence: float) -> int | None:
    """The least n for which t_{n−1} · sd / √n is smaller than the distance of the mean from the threshold."""
    distance, spread = abs(float(np.mean(values)) - threshold), float(np.std(values, ddof=1))
    enough = _half_widths(confidence) * spread < distance
    return int(enough.argmax()) + _FEWEST_SEEDS if enough.any() else None


@cache
def _half_widths(confidence: float) -> Float[np.ndarray, "n"]:
    """t_{n−1} / √n from n = 5 on."""
    n = np.arange(_FEWEST_SEEDS, _MOST_SEEDS + 1)
    return stats.t.ppf((1 + confidence) / 2, n - 1) / np.sqrt(n)

"""Confidence intervals: over prompts by the bootstrap, over seeds by Student's t."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy import stats

from tasks.errors import InputError

_BOOTSTRAP_CELLS = 4_000_000  # resampling weights held at once: 32 MB
_KEPT_CELLS = 1_100_000  # up to 512 prompts by 2,000 resamples are kept for the next interval of the same seed: 9 MB


@dataclass(frozen=True, eq=False)
class Interval:
    """Estimates with the ends of their confidence intervals, all of one shape."""

    estimate: Float[ndarray, "*shape"]
    low: Float[ndarray, "*shape"]
    high: Float[ndarray, "*shape"]


def ratio_interval(
    sums: Shaped[ndarray, "prompts quantity"],
    counts: Shaped[ndarray, "prompts quantity"],
    *,
    confidence: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> Interval:
    """Σ sums / Σ counts per quantity, with a bootstrap interval over prompts.

    The same resampled prompts serve every quantity. For a paired effect pass the differences of the sums of both
    arms. The percentiles are widened as if the standard error had used n − 1 and Student's t, without which the
    interval is too narrow for few prompts (the "expanded percentile" interval).

    A quantity that fewer than two prompts count for has an estimate (NaN if none does) and NaN for its ends.

    Raises:
        InputError: fewer than two prompts, a sum that is not finite, or a confidence outside 0 to 1.

    Source: Hesterberg (2015), What Teachers Should Know About the Bootstrap, section 4.1.3 (from memory).

    >>> means = ratio_interval(np.arange(100.0)[:, None], np.ones((100, 1)))
    >>> means.estimate, bool(means.low[0] < 49.5 < means.high[0])
    (array([49.5]), True)
    """
    _check_confidence(confidence)
    resampled = resampled_ratios(sums, counts, n_boot=n_boot, seed=seed)
    n_counting = (np.asarray(counts) > 0).sum(axis=0)
    ends = np.full((2, resampled.shape[1]), np.nan)
    for n in np.unique(n_counting[n_counting >= 2]):
        alike = n_counting == n
        ends[:, alike] = percentile_ends(resampled[:, alike], int(n), confidence=confidence)
    with np.errstate(invalid="ignore"):
        estimate = np.asarray(sums, dtype=float).sum(axis=0) / np.asarray(counts, dtype=float).sum(axis=0)
    return Interval(estimate, ends[0], ends[1])


def resampled_ratios(
    sums: Shaped[ndarray, "prompts quantity"],
    counts: Shaped[ndarray, "prompts quantity"],
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> Float[ndarray, "resample quantity"]:
    """Σ sums / Σ counts over ``n_boot`` resamples of the prompts: what intervals of functions of ratios are made of.

    A resample serves every quantity, so that what belongs to the same prompts stays together. NaN where a resample
    happened to score nothing.

    Raises:
        InputError: fewer than two prompts, or a sum that is not finite.

    >>> values = resampled_ratios(np.arange(100.0)[:, None], np.ones((100, 1)), n_boot=500)
    >>> values.shape, round(float(values.std()), 1)
    ((500, 1), 2.8)
    """
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if not np.isfinite(sums).all():
        raise InputError(f"{(~np.isfinite(sums)).sum()} of the {sums.size} sums are not finite: no estimate exists")
    if len(sums) < 2:
        raise InputError(f"an interval over prompts needs at least 2 prompts, this has {len(sums)}: sample more")
    return _resampled_ratios(sums, counts, n_boot, seed)


def percentile_ends(
    resampled: Float[ndarray, "resample *shape"], n_prompts: int, *, confidence: float = 0.95
) -> Float[ndarray, "2 *shape"]:
    """The ends of the expanded percentile interval (see ``ratio_interval``) of anything computed per resample.

    Resamples without a value (NaN) are left out; without any, the ends are NaN.

    Raises:
        InputError: a confidence outside 0 to 1.

    >>> percentile_ends(np.arange(1001.0), 1000).round()
    array([ 25., 975.])
    """
    _check_confidence(confidence)
    tail = _expanded_tail((1 - confidence) / 2, n_prompts)
    ends = np.full((2, *resampled.shape[1:]), np.nan)
    missing = np.isnan(resampled)
    known, whole = ~missing.all(axis=0), ~missing.any(axis=0)
    # a fresh copy with a row for each quantity, which numpy may reorder: half the time
    ends[:, whole] = np.quantile(resampled.T[whole], [tail, 1 - tail], axis=1, overwrite_input=True)
    if (gaps := known & ~whole).any():  # numpy goes through these one by one, in Python
        ends[:, gaps] = np.nanquantile(resampled[:, gaps], [tail, 1 - tail], axis=0)
    return ends


def simultaneous_ratio_interval(
    sums: Shaped[ndarray, "prompts quantity"],
    counts: Shaped[ndarray, "prompts quantity"],
    *,
    confidence: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> Interval:
    """Like ``ratio_interval``, but wide enough that all intervals of the family hold together.

    estimate ± c · se, where c is the quantile over resamples of the largest |resampled − estimate| / se among the
    quantities. A quantity that never varies (an idle head's effect, say) has an interval of width zero.

    Raises:
        InputError: as for ``ratio_interval``, or a quantity that fewer than two prompts count for.

    Source: the bootstrap maximal-t band, Westfall and Young (1993), Resampling-Based Multiple Testing (from memory).

    >>> one = np.arange(100.0)[:, None]
    >>> wide = simultaneous_ratio_interval(np.hstack([one, one[::-1] ** 2]), np.ones((100, 2)))
    >>> bool(wide.low[0] < ratio_interval(one, np.ones((100, 1))).low[0])
    True
    """
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if ((counts > 0).sum(axis=0) < 2).any():
        raise InputError("a simultaneous interval needs 2 prompts that score something in every group: sample more")
    alone = ratio_interval(sums, counts, confidence=confidence, n_boot=n_boot, seed=seed)
    resampled = _resampled_ratios(sums, counts, n_boot, seed)
    error = np.nanstd(resampled, axis=0, ddof=1)
    varies = error > 0
    if not varies.any():
        return alone
    largest = np.nanmax(np.abs(resampled - alone.estimate)[:, varies] / error[varies], axis=1)
    n = len(sums)
    for_few_prompts = stats.t.ppf((1 + confidence) / 2, n - 1) / stats.norm.ppf((1 + confidence) / 2)
    half = np.quantile(largest, confidence) * for_few_prompts * error
    return Interval(alone.estimate, alone.estimate - half, alone.estimate + half)


def _resampled_ratios(sums: ndarray, counts: ndarray, n_boot: int, seed: int) -> ndarray:
    """[n_boot, quantity]; NaN where a resample happened to score nothing."""
    if (counts == counts[:, :1]).all():  # often the same prompts count for every quantity: added up once
        counts = counts[:, :1]
    chunks = []
    for weights in _resamples(len(sums), n_boot, seed):
        with np.errstate(invalid="ignore"):
            chunks.append((weights @ sums) / (weights @ counts))
    return np.concatenate(chunks)


def _resamples(n: int, n_boot: int, seed: int) -> Iterator[ndarray]:
    """How often each of n prompts is in each resample, [resample, n], in parts that fit in memory."""
    if n * n_boot <= _KEPT_CELLS:
        yield _kept_resamples(n, n_boot, seed)
        return
    rng = np.random.default_rng(seed)
    rows = max(1, _BOOTSTRAP_CELLS // n)
    for start in range(0, n_boot, rows):
        yield _drawn(rng, n, min(rows, n_boot - start))


@lru_cache(maxsize=1)
def _kept_resamples(n: int, n_boot: int, seed: int) -> ndarray:
    return _drawn(np.random.default_rng(seed), n, n_boot)


def _drawn(rng: np.random.Generator, n: int, n_resamples: int) -> ndarray:
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float)


@cache
def _expanded_tail(tail: float, n: int) -> float:
    return float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))


def seed_interval(values: Float[ndarray, "seeds *shape"], *, confidence: float = 0.95) -> Interval:
    """The mean over training seeds with Student's t interval; the seed is the unit.

    Raises:
        InputError: fewer than 5 seeds, a value that is not finite, or a confidence outside 0 to 1.

    >>> interval = seed_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    >>> float(interval.estimate), round(float(interval.low), 2), round(float(interval.high), 2)
    (3.0, 1.04, 4.96)
    """
    _check_confidence(confidence)
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 5:
        raise InputError(f"{n} seeds are too few for an interval over seeds: train at least 5")
    if not np.isfinite(values).all():
        raise InputError("a seed's value is not finite: look at that run before averaging over it")
    mean = values.mean(axis=0)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Interval(*(np.asarray(part) for part in (mean, mean - half, mean + half)))  # one value is an array too


def jackknife_values(whole: float, without_each: Float[ndarray, "units"]) -> Float[ndarray, "units"]:
    """One value per unit (seed, block) of an estimate that is no mean, such as a ratio: n θ − (n − 1) θ₋ᵢ.

    ``whole`` is the estimate θ from all n units and ``without_each[i]`` the estimate θ₋ᵢ without unit i. Their mean
    is the estimate less its first-order bias, and ``seed_interval`` takes them like any values. For a mean they are
    the units' own values.

    Source: Tukey (1958), Bias and confidence in not quite large samples (from memory).

    >>> jackknife_values(2.0, np.array([2.5, 2.0, 1.5]))
    array([1., 2., 3.])
    """
    n = len(without_each)
    return n * whole - (n - 1) * without_each


def _check_confidence(confidence: float) -> None:
    if not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence!r} is no probability: give a number between 0 and 1, 0.95 say")

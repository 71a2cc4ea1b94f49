import math

import numpy as np
import pytest
from scipy import stats

from interp.statistics import (
    jackknife_values,
    percentile_ends,
    ratio_interval,
    resampled_ratios,
    seed_interval,
    simultaneous_ratio_interval,
)
from tasks.errors import InputError

# 95 % of 2000 intervals: one standard error of the measured coverage is 0.49 %, the accepted band is ± 2 %.
N_SIMULATIONS = 2000
PER_SEED = 250  # data sets that share one set of resamples


def coverage(draw, truth, n_prompts, n_boot=1000):
    """Share of simulated data sets whose interval holds the truth; draw(rng, shape) -> sums, counts."""
    rng = np.random.default_rng(12)
    held = []
    for seed in range(N_SIMULATIONS // PER_SEED):
        sums, counts = draw(rng, (n_prompts, PER_SEED))
        interval = ratio_interval(sums, counts, n_boot=n_boot, seed=seed)
        held.append((interval.low <= truth) & (truth <= interval.high))
    return np.concatenate(held).mean()


def normal(rng, shape):
    return rng.normal(3.0, 2.0, shape), np.ones(shape)


def exponential(rng, shape):
    return rng.exponential(2.0, shape), np.ones(shape)


def random_counts(rng, shape):
    """Poisson(1) scored positions per prompt (37 % score nothing); each adds a difficulty that the prompt shares."""
    counts = rng.poisson(1.0, shape)
    difficulty = rng.normal(1.5, 0.5, shape)
    return counts * difficulty + np.sqrt(counts) * rng.normal(0, 1, shape), counts


def paired(rng, shape):
    """After minus before: prompts differ by 10, the effect by 0.2, so only the pairing can see it."""
    before = rng.normal(0.0, 10.0, shape)
    after = before + rng.normal(0.2, 1.0, shape)
    return after - before, np.ones(shape)


@pytest.mark.parametrize(
    ("draw", "truth", "n_prompts"),
    [(normal, 3.0, 20), (normal, 3.0, 60), (exponential, 2.0, 80), (random_counts, 1.5, 60), (paired, 0.2, 30)],
    ids=["normal-20", "normal-60", "exponential-80", "random-counts-60", "paired-30"],
)
def test_95_percent_intervals_over_prompts_hold_the_truth_in_93_to_97_percent(draw, truth, n_prompts):
    assert 0.93 <= coverage(draw, truth, n_prompts) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n_prompts", [50, 200])
def test_95_percent_intervals_of_skewed_means_hold_the_truth_in_93_to_97_percent(n_prompts):
    assert 0.93 <= coverage(exponential, 2.0, n_prompts, n_boot=4000) <= 0.97


@pytest.mark.parametrize("n_seeds", [5, 7, 10])
def test_95_percent_intervals_over_seeds_hold_the_truth_in_93_to_97_percent(n_seeds):
    interval = seed_interval(np.random.default_rng(4).normal(1.0, 3.0, (n_seeds, 20_000)))
    covered = ((interval.low <= 1.0) & (interval.high >= 1.0)).mean()
    assert 0.93 <= covered <= 0.97
    assert covered == pytest.approx(0.95, abs=0.005)  # exact for normal values


@pytest.mark.slow
def test_intervals_that_hold_together_do_so_in_93_to_97_percent_of_families():
    rng = np.random.default_rng(8)
    mix = np.linalg.cholesky(np.full((6, 6), 0.3) + 0.7 * np.eye(6))
    held = []
    for seed in range(1500):  # one standard error: 0.56 %
        sums = rng.normal(size=(60, 6)) @ mix.T + np.arange(6)
        interval = simultaneous_ratio_interval(sums, np.ones_like(sums), n_boot=300, seed=seed)
        held.append(((interval.low <= np.arange(6)) & (np.arange(6) <= interval.high)).all())
    assert 0.93 <= np.mean(held) <= 0.97


def test_the_ends_are_the_widened_percentiles_of_the_resampled_ratios():
    sums, counts = np.array([1.0, 5.0, 2.0, 8.0, 4.0, 0.0]), np.array([1, 3, 1, 2, 2, 0])
    interval = ratio_interval(sums[:, None], counts[:, None], confidence=0.9, n_boot=200_000, seed=3)
    # by hand: the tail is Φ(√(n/(n−1)) t_{n−1}⁻¹(5 %)) with n = 5 prompts that count
    tail = stats.norm.cdf(math.sqrt(5 / 4) * stats.t.ppf(0.05, 4))
    assert tail == pytest.approx(0.00857, abs=2e-5)
    every = np.indices((6,) * 6).reshape(6, -1).T  # all 46,656 resamples, equally likely
    with np.errstate(invalid="ignore"):
        ratios = sums[every].sum(1) / counts[every].sum(1)
    # the resamples that were drawn miss the tail by less than five standard errors of 0.02 %
    (low_from, low_to), (high_from, high_to) = (
        np.nanquantile(ratios, [at - 0.001, at + 0.001]) for at in (tail, 1 - tail)
    )
    assert interval.estimate == pytest.approx([20 / 9])
    assert low_from <= interval.low.item() <= low_to < np.nanquantile(ratios, 0.05)
    assert np.nanquantile(ratios, 0.95) < high_from <= interval.high.item() <= high_to


def test_an_estimate_is_the_ratio_of_the_sums_and_no_mean_of_ratios():
    interval = ratio_interval(np.array([[1.0], [9.0]]), np.array([[1], [3]]))
    assert interval.estimate.tolist() == [2.5]  # the mean of 1 and 3 would be 2


def test_a_quantity_that_fewer_than_two_prompts_count_for_has_no_ends():
    sums, counts = np.array([[0.0, 4.0, 4.0], [0.0, 0.0, 6.0]]), np.array([[0, 2, 2], [0, 0, 2]])
    interval = ratio_interval(sums, counts)
    assert np.isnan(interval.estimate).tolist() == [True, False, False]
    assert interval.estimate[1:].tolist() == [2.0, 2.5]
    assert np.isnan(interval.low).tolist() == np.isnan(interval.high).tolist() == [True, True, False]


def test_a_constant_has_an_interval_of_width_zero():
    interval = ratio_interval(np.zeros((9, 1)), np.ones((9, 1)))
    assert (interval.low.item(), interval.estimate.item(), interval.high.item()) == (0.0, 0.0, 0.0)


def test_prompts_that_count_nothing_do_not_change_an_estimate():
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(30, 1))
    padded = np.vstack([sums, np.zeros((20, 1))])
    alone = ratio_interval(sums, np.ones((30, 1)), n_boot=20_000)
    with_idle = ratio_interval(padded, np.vstack([np.ones((30, 1)), np.zeros((20, 1))]), n_boot=20_000)
    assert with_idle.estimate == pytest.approx(alone.estimate)
    assert with_idle.low == pytest.approx(alone.low, abs=0.03)
    assert with_idle.high == pytest.approx(alone.high, abs=0.03)


def test_the_seed_decides_the_resamples():
    sums, counts = np.random.default_rng(0).normal(size=(30, 1)), np.ones((30, 1))
    first, again, other = (ratio_interval(sums, counts, seed=seed) for seed in (1, 1, 2))
    assert first.low == again.low
    assert first.low != other.low


def test_chunks_of_resamples_make_no_difference(monkeypatch):
    sums, counts = np.random.default_rng(0).normal(size=(30, 2)), np.ones((30, 2))
    whole = ratio_interval(sums, counts)
    monkeypatch.setattr("interp.statistics._BOOTSTRAP_CELLS", 30 * 7)
    chunked = ratio_interval(sums, counts)
    assert np.array_equal(whole.low, chunked.low)
    assert np.array_equal(whole.high, chunked.high)


def test_a_seed_interval_is_students():
    values = np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0], [5.0, 2.0], [3.0, 2.0]])
    interval = seed_interval(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 4, loc=3.0, scale=stats.sem(values[:, 0]))
    assert interval.estimate.tolist() == [3.0, 2.0]
    assert interval.low == pytest.approx([low, 2.0])
    assert interval.high == pytest.approx([high, 2.0])


def test_jackknife_values_of_a_mean_are_the_values():
    values = np.random.default_rng(0).normal(size=6)
    without = (values.sum() - values) / 5
    assert jackknife_values(values.mean(), without) == pytest.approx(values)


def test_jackknife_values_take_the_bias_from_a_squared_mean():
    # The square of a mean exceeds the squared expectation by σ²/n; taking s²/n off makes it unbiased.
    values = np.random.default_rng(1).normal(size=7)
    without = ((values.sum() - values) / 6) ** 2
    unbiased = values.mean() ** 2 - values.var(ddof=1) / 7
    assert jackknife_values(values.mean() ** 2, without).mean() == pytest.approx(unbiased)


def test_one_prompt_is_refused():
    assert np.isfinite(ratio_interval(np.ones((2, 1)), np.ones((2, 1))).low).all()
    with pytest.raises(InputError, match="needs at least 2 prompts, this has 1"):
        ratio_interval(np.ones((1, 1)), np.ones((1, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_refused(bad):
    sums = np.ones((5, 2))
    sums[1, 1] = bad
    with pytest.raises(InputError, match="1 of the 10 sums are not finite"):
        ratio_interval(sums, np.ones((5, 2)))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    for interval in (
        lambda: ratio_interval(np.ones((5, 1)), np.ones((5, 1)), confidence=confidence),
        lambda: seed_interval(np.ones(5), confidence=confidence),
    ):
        with pytest.raises(InputError, match="is no probability"):
            interval()


def test_four_seeds_are_refused_and_five_are_enough():
    assert seed_interval(np.arange(5.0)).estimate == 2.0
    with pytest.raises(InputError, match="4 seeds are too few"):
        seed_interval(np.arange(4.0))


def test_a_seed_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite"):
        seed_interval(np.array([1.0, 2.0, np.nan, 4.0, 5.0]))


def test_a_resample_is_the_same_prompts_for_every_quantity():
    values = np.random.default_rng(0).normal(size=(20, 1))
    sums = np.hstack([values, 3 * values, values + 1])
    resampled = resampled_ratios(sums, np.ones_like(sums), n_boot=300, seed=4)
    np.testing.assert_allclose(resampled[:, 1], 3 * resampled[:, 0])
    np.testing.assert_allclose(resampled[:, 2], resampled[:, 0] + 1)
    assert resampled[:, 0].std() == pytest.approx(values.std() / math.sqrt(20), rel=0.2)


def test_the_ends_of_resampled_ratios_are_those_of_the_ratio_interval():
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, (30, 2)).astype(float)
    sums = counts * rng.normal(1.0, 1.0, (30, 2))
    interval = ratio_interval(sums, counts, confidence=0.9, seed=7)
    for k in range(2):
        n = int((counts[:, k] > 0).sum())
        low, high = percentile_ends(resampled_ratios(sums, counts, seed=7)[:, k], n, confidence=0.9)
        assert (interval.low[k], interval.high[k]) == (low, high)


def test_resamples_without_a_value_are_left_out_of_the_ends():
    resampled = np.random.default_rng(2).normal(size=(400, 3))
    resampled[::4, 1], resampled[:, 2] = np.nan, np.nan
    ends = percentile_ends(resampled, 50)
    np.testing.assert_allclose(ends[:, 1], percentile_ends(resampled[~np.isnan(resampled[:, 1]), 1], 50))
    assert np.isnan(ends).tolist() == [[False, False, True]] * 2
    with pytest.raises(InputError, match=r"confidence = 1\.0 is no probability"):
        percentile_ends(resampled, 50, confidence=1.0)

import itertools

import numpy as np
import pytest

from analyses.support_split import split_by_support


def split(effects, support, counts=None, n_permutations=999, seed=0, confidence=0.95):
    counts = np.ones((len(effects), 1)) if counts is None else counts
    return split_by_support(effects, counts, support, n_permutations=n_permutations, confidence=confidence, seed=seed)


def test_effects_are_ratios_of_sums_over_prompts_inside_and_outside():
    effects, counts = np.array([[2.0], [4.0], [9.0], [0.0]]), np.array([[1.0], [2.0], [3.0], [0.0]])
    support = np.array([[True, False], [True, True], [False, False], [True, True]])
    found = split(effects, support, counts)
    assert found["delta_in"].tolist() == [pytest.approx([6 / 3, 4 / 2])]
    assert found["delta_out"].tolist() == [pytest.approx([9 / 3, 11 / 4])]
    assert found["contrast"].tolist() == [pytest.approx([2 - 3, 2 - 11 / 4])]
    assert found["n_in"].tolist() == [[2, 1]]  # the last prompt scores nothing
    assert found["n_out"].tolist() == [[1, 2]]


def test_the_p_value_is_the_share_of_all_permutations():
    rng = np.random.default_rng(0)
    effects, support = rng.normal(size=(7, 1)), np.array([[True]] * 3 + [[False]] * 4)
    measured = abs(effects[:3].mean() - effects[3:].mean())
    every = []
    for inside in itertools.combinations(range(7), 3):
        outside = [b for b in range(7) if b not in inside]
        every.append(abs(effects[list(inside)].mean() - effects[outside].mean()) >= measured - 1e-12)
    exact = np.mean(every)
    found = split(effects, support, n_permutations=4000)["p_value"].item()
    assert 0.05 < exact < 0.95
    assert found == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 4000))


def test_p_values_are_uniform_where_effects_do_not_depend_on_the_support():
    rng = np.random.default_rng(1)
    effects, support = rng.exponential(1.0, (60, 50)), rng.random((60, 40)) < 0.3
    p = split(effects, support, n_permutations=199)["p_value"]
    assert p.shape == (50, 40)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_intervals_of_contrasts_hold_the_truth_in_93_to_97_percent():
    rng = np.random.default_rng(2)
    inside, held = np.arange(60)[:, None] < 20, []
    for seed in range(8):
        effects = rng.normal(0.0, 1.0, (60, 250)) + inside * 0.7
        found = split(effects, inside, n_permutations=1, seed=seed)
        held.append((found["contrast_ci_low"] <= 0.7) & (found["contrast_ci_high"] >= 0.7))
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_part_of_fewer_than_two_prompts_has_no_interval():
    effects = np.array([[1.0], [2.0], [4.0]])
    support = np.array([[True, True], [False, True], [False, True]])
    found = split(effects, support)
    assert found["contrast"].tolist()[0] == [pytest.approx(1 - 3), pytest.approx(np.nan, nan_ok=True)]
    assert np.isnan(found["contrast_ci_low"]).all()
    assert np.isnan(found["p_value"]).tolist() == [[False, True]]


def test_idle_heads_have_contrasts_of_exactly_zero_and_p_one():
    found = split(np.zeros((6, 1)), np.array([[True], [False]] * 3))
    for column in ("delta_in", "delta_out", "contrast", "contrast_ci_low", "contrast_ci_high"):
        assert found[column].item() == 0.0
    assert found["p_value"].item() == 1.0

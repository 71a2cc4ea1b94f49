from dataclasses import replace

import pytest
import torch

from analyses.papers.chen2024.algorithms import (
    CANDIDATES,
    DESCENT,
    PREPROCESSED,
    RIDGE,
    compared,
    problems_of,
    risks_of_candidates,
    tuned_risks,
)
from analyses.papers.chen2024.setting import JUDGED, TEST_SEED
from tasks import GradientDescent, PreprocessThenOptimize, Ridge, SparseRegression
from tasks.errors import InputError

TASK = SparseRegression(d=8, sparsity=2, n_context=32, weights="signs")
PREDICTORS = {RIDGE: Ridge(lam=1.0), DESCENT: GradientDescent(steps=1), PREPROCESSED: PreprocessThenOptimize(steps=1)}


@pytest.mark.parametrize("n_context", [3, 8, 40])
def test_all_candidates_at_once_are_what_the_predictors_find_one_by_one(n_context):
    x, y, w = problems_of(SparseRegression(d=8, sparsity=2, n_context=n_context).sample(20, seed=0))
    at_once = risks_of_candidates(x, y, w)
    for name, predictor in PREDICTORS.items():
        paths = predictor.path(x, y, CANDIDATES[name])
        one_by_one = torch.stack([(fitted - w).square().sum(dim=1).mean() for fitted in paths])
        torch.testing.assert_close(at_once[name], one_by_one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_exact_risk_is_what_many_queries_would_show(name):
    found = tuned_risks(TASK, 300, seed=1)[name]
    chosen = int(found.chosen) if name != RIDGE else found.chosen
    asked = SparseRegression(d=8, sparsity=2, n_context=32, weights="signs", n_queries=400)
    prompts = asked.sample(300, seed=(TEST_SEED, JUDGED, 1))
    sums, counts = prompts.excess_risk(replace(PREDICTORS[name], **{PREDICTORS[name].parameter: chosen})(prompts))
    # other contexts, as more queries draw more numbers: both are means over 300 prompts
    per_prompt = sums / counts
    error = float(per_prompt.std()) * (2 / 300) ** 0.5
    assert found.risk == pytest.approx(float(sums.sum() / counts.sum()), abs=4 * error)


def test_the_table_of_reference_values_comes_out_again():
    """d = 16, s = 4, σ = 0.5, n = 80, 2000 prompts: ridge .058, descent .060, preprocessed .031, all in hindsight."""
    risks = tuned_risks(SparseRegression(n_context=80, weights="signs"), 400, seed=0)
    assert risks[RIDGE].risk == pytest.approx(0.058, rel=0.1)
    assert risks[DESCENT].risk == pytest.approx(0.060, rel=0.1)
    assert risks[PREPROCESSED].risk == pytest.approx(0.031, rel=0.15)


def test_tuning_does_not_look_at_the_prompts_that_are_judged():
    for seed in range(4):
        prompts = TASK.sample(40, seed=(TEST_SEED, JUDGED, seed))
        best_in_hindsight = Ridge.hindsight(prompts).lam
        if tuned_risks(TASK, 40, seed=seed)[RIDGE].chosen != best_in_hindsight:
            return
    pytest.fail("λ was the best on the judged prompts in each of four draws")


def test_every_setting_of_the_grid_has_each_algorithm_once():
    rows = compared(seed=0, d=4, sparsities=[1, 2], contexts=[8, 16], noises=[0.1, 1.0], n_prompts=20)
    assert len(rows) == 2 * 2 * 2 * len(PREDICTORS)
    assert not rows.duplicated(["d", "s", "n", "noise", "algorithm"]).any()


@pytest.mark.parametrize("covariance", ["identity", "power"])
def test_another_covariance_is_refused(covariance):
    exponent = 1.0 if covariance == "power" else None
    task = SparseRegression(d=4, sparsity=1, n_context=8, covariance=covariance, covariance_exponent=exponent)
    if covariance == "identity":
        assert tuned_risks(task, 10, seed=0)[RIDGE].risk > 0
        return
    with pytest.raises(InputError, match=r"N\(0, I\) only"):
        tuned_risks(task, 10, seed=0)

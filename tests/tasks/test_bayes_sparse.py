import itertools
import math

import numpy as np
import pytest
import torch

from tasks.bayes_sparse import BayesSparse
from tasks.errors import InputError
from tasks.lasso import Lasso
from tasks.regression_layout import regression_prompts
from tasks.regression_predictors import GradientDescent, LeastSquares, PreprocessThenOptimize, Ridge
from tasks.sparse_regression import SparseRegression

GAUSSIAN = SparseRegression(d=3, sparsity=2, n_context=4, noise=0.6, weight_scale=1.5)
SIGNS = SparseRegression(d=3, sparsity=2, n_context=4, noise=0.6, weight_scale=1.5, weights="signs")


def context(prompts):
    inputs = prompts.inputs.double().numpy()
    return inputs[:, :-1, :-1], inputs[:, :-1, -1]


def test_gaussian_posterior_mean_equals_numerical_integration_over_the_prior():
    prompts = GAUSSIAN.sample(5, seed=0)
    axis = np.linspace(-9, 9, 361)
    first, second = np.meshgrid(axis, axis)
    prior = np.exp(-(first**2 + second**2) / (2 * 1.5**2))
    expected = []
    for x, y in zip(*context(prompts), strict=True):
        evidence, mean = 0.0, np.zeros(3)
        for j, k in itertools.combinations(range(3), 2):
            residuals = y[:, None, None] - x[:, j, None, None] * first - x[:, k, None, None] * second
            weight = prior * np.exp(-(residuals**2).sum(axis=0) / (2 * 0.6**2))
            evidence += weight.sum()
            mean[[j, k]] += (weight * first).sum(), (weight * second).sum()
        expected.append(mean / evidence)
    ours = BayesSparse(GAUSSIAN).fit(*(torch.from_numpy(part) for part in context(prompts)))
    np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_signs_posterior_mean_equals_a_sum_over_every_w():
    prompts = SIGNS.sample(5, seed=0)
    size = 1.5 / math.sqrt(2)
    hypotheses = [w for w in itertools.product([-size, 0.0, size], repeat=3) if np.count_nonzero(w) == 2]
    assert BayesSparse(SIGNS).n_hypotheses == len(hypotheses) == 12
    expected = []
    for x, y in zip(*context(prompts), strict=True):
        likelihood = [np.exp(-((y - x @ np.array(w)) ** 2).sum() / (2 * 0.6**2)) for w in hypotheses]
        expected.append(np.average(hypotheses, axis=0, weights=likelihood))
    ours = BayesSparse(SIGNS).fit(*(torch.from_numpy(part) for part in context(prompts)))
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("weights", ["gaussian", "signs"])
def test_no_other_predictor_has_a_lower_risk(weights):
    task = SparseRegression(d=8, sparsity=2, n_context=16, weights=weights)
    prompts = task.sample(3000, seed=0)
    bayes, _ = prompts.excess_risk(BayesSparse(task)(prompts))
    rivals = [LeastSquares(), *(family.hindsight(prompts) for family in (Ridge, Lasso, GradientDescent))]
    rivals.append(PreprocessThenOptimize.hindsight(prompts))
    for rival in rivals:
        excess = prompts.excess_risk(rival(prompts))[0] - bayes
        assert excess.mean() > 3 * excess.std() / math.sqrt(len(prompts)), rival


def test_with_full_support_it_is_ridge_at_the_bayes_penalty():
    task = SparseRegression(d=4, sparsity=4, noise=0.5, weight_scale=2.0)
    prompts = task.sample(20, seed=0)
    torch.testing.assert_close(BayesSparse(task)(prompts), Ridge(lam=0.5**2 / 2.0**2)(prompts))


@pytest.mark.parametrize("task", [GAUSSIAN, SIGNS])
def test_prompts_taken_in_small_groups_give_the_same_answer(task, monkeypatch):
    prompts = task.sample(7, seed=0)
    at_once = BayesSparse(task)(prompts)
    monkeypatch.setattr("tasks.bayes_sparse.NUMBERS_AT_ONCE", 60)
    torch.testing.assert_close(BayesSparse(task)(prompts), at_once)


def test_only_active_features_are_considered():
    task = SparseRegression(d=6, sparsity=2, active_dims=3, n_context=4)
    prompts = task.sample(5, seed=0)
    inner = SparseRegression(d=3, sparsity=2, n_context=4)
    without_the_rest = regression_prompts(prompts.inputs[..., :3], prompts.targets)
    torch.testing.assert_close(BayesSparse(task)(prompts), BayesSparse(inner)(without_the_rest))


def test_what_it_cannot_enumerate_or_weigh_is_refused():
    assert BayesSparse(SparseRegression(d=16, sparsity=4, weights="signs")).n_hypotheses == 29_120
    with pytest.raises(InputError, match=r"635376 hypotheses .*the limit is 100000"):
        BayesSparse(SparseRegression(d=64, sparsity=4))
    with pytest.raises(InputError, match="noise = 0"):
        BayesSparse(SparseRegression(noise=0.0))
    with pytest.raises(InputError, match="prompts have d = 4 but BayesSparse's task has d = 3"):
        BayesSparse(GAUSSIAN)(SparseRegression(d=4, sparsity=2).sample(2, seed=0))

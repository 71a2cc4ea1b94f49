import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso

from tasks.errors import InputError
from tasks.lasso import Lasso, kkt_violation, solve_lasso
from tasks.regression_predictors import second_moments
from tasks.sparse_regression import SparseRegression

TASKS = [
    SparseRegression(d=16, noise=0.5, n_context=40),
    SparseRegression(d=16, noise=0.0, n_context=40),
    SparseRegression(d=16, noise=0.1, n_context=20),
    SparseRegression(d=16, noise=0.0, n_context=8),
    SparseRegression(d=64, noise=0.5, n_context=30),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: f"d{task.d}-n{task.n_context}-noise{task.noise}")


def pairs(task, n_prompts=12):
    inputs = task.sample(n_prompts, seed=0).inputs.double()
    return inputs[:, :-1, :-1], inputs[:, :-1, -1]


@each_task
@pytest.mark.parametrize("lam", [0.003, 0.05, 1.0])
def test_it_equals_scikit_learn(task, lam):
    x, y = pairs(task)
    ours = Lasso(lam).fit(x, y)
    for a, b, w in zip(x.numpy(), y.numpy(), ours.numpy(), strict=True):
        # scikit-learn's tolerance is on the duality gap, relative to |y|²
        theirs = SklearnLasso(alpha=lam, fit_intercept=False, tol=1e-13, max_iter=1_000_000).fit(a, b).coef_
        np.testing.assert_allclose(w, theirs, atol=1e-6)


@each_task
@pytest.mark.parametrize("lam", [1e-4, 0.003, 0.05, 1.0])
def test_it_satisfies_the_optimality_conditions(task, lam):
    x, y = pairs(task, n_prompts=50)
    w = Lasso(lam).fit(x, y)
    # written from the objective, by itself: the gradient of the squared error against λ times the subgradient
    gradient = torch.einsum("bnd,bn->bd", x, y - torch.einsum("bnd,bd->bn", x, w)) / x.shape[1]
    violation = torch.where(w == 0, gradient.abs() - lam, (gradient - lam * w.sign()).abs())
    assert violation.max() < 1e-6


def test_the_kkt_violation_is_that_of_a_hand_worked_case():
    gram, moment = torch.eye(2)[None].double(), torch.tensor([[2.0, 0.5]]).double()
    for w, violation in [([1.0, 0.0], 0.0), ([1.5, 0.0], 0.5), ([1.0, 0.1], 0.6), ([0.0, 0.0], 1.0)]:
        assert kkt_violation(gram, moment, 1.0, torch.tensor([w]).double()).item() == pytest.approx(violation)


def test_the_start_does_not_change_the_answer():
    gram, moment = second_moments(*pairs(TASKS[2]))
    far = torch.full_like(moment, -3.0)
    torch.testing.assert_close(
        solve_lasso(gram, moment, 0.01, start=far),
        solve_lasso(gram, moment, 0.01, start=torch.zeros_like(moment)),
        atol=1e-8,
        rtol=0,
    )


def test_a_repeated_feature_is_still_solved():
    x, y = pairs(TASKS[0])
    x = torch.cat([x, x], dim=-1)
    gram, moment = second_moments(x, y)
    w = Lasso(0.01).fit(x, y)
    assert kkt_violation(gram, moment, 0.01, w).max() < 1e-6
    torch.testing.assert_close(w[:, :16] + w[:, 16:], Lasso(0.01).fit(x[..., :16], y), atol=1e-6, rtol=0)


def test_a_problem_left_unsolved_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("tasks.lasso.MAX_ROUNDS", 0)
    with pytest.raises(InputError, match=r"lam = 0\.01 is unsolved for 12 prompts after 0 rounds") as refusal:
        Lasso(0.01).fit(*pairs(TASKS[0]))
    assert "\n" not in str(refusal.value)

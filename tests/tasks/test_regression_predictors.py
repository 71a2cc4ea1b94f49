import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from tasks.bayes_sparse import BayesSparse
from tasks.errors import InputError
from tasks.lasso import Lasso
from tasks.regression_layout import regression_prompts
from tasks.regression_predictors import GradientDescent, LeastSquares, PreprocessThenOptimize, Ridge
from tasks.sparse_regression import SparseRegression

TASK = SparseRegression(d=5, sparsity=2, n_context=9)
PROMPTS = TASK.sample(6, seed=0)
PREDICTORS = [
    LeastSquares(),
    Ridge(lam=0.7),
    Lasso(lam=0.05),
    GradientDescent(steps=7),
    PreprocessThenOptimize(steps=7),
    BayesSparse(TASK),
    BayesSparse(SparseRegression(d=5, sparsity=2, weights="signs")),
]
each_predictor = pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda predictor: type(predictor).__name__)


def context(prompts):
    """x, y of the context and the query, in numpy: read from the documented layout, not with the code under test."""
    inputs = prompts.inputs.double().numpy()
    return inputs[:, :-1, :-1], inputs[:, :-1, -1], inputs[:, -1, :-1]


def descend(x, y, steps, step_size):
    """Gradient descent as the textbook writes it, one prompt."""
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        w = w + step_size / len(y) * sum((y[i] - w @ x[i]) * x[i] for i in range(len(y)))
    return w


@pytest.mark.parametrize(("d", "n_context"), [(16, 32), (16, 64), (8, 100)])
def test_the_risk_of_least_squares_agrees_with_its_closed_form(d, n_context):
    prompts = SparseRegression(d=d, n_context=n_context, noise=0.5).sample(4000, seed=0)
    risk, _ = prompts.excess_risk(LeastSquares()(prompts))
    standard_error = risk.std().item() / math.sqrt(len(prompts))
    assert abs(risk.mean().item() - 0.25 * d / (n_context - d - 1)) < 3 * standard_error


@pytest.mark.parametrize("n_context", [1, 3, 5, 6, 9])
def test_least_squares_takes_the_shortest_of_its_solutions(n_context):
    prompts = SparseRegression(d=5, sparsity=2, n_context=n_context).sample(100, seed=0)
    if n_context == 9:  # more pairs than features, but one feature twice
        prompts.inputs[:, :, 1] = prompts.inputs[:, :, 0]
    x, y, query = context(prompts)
    expected = [q @ np.linalg.lstsq(a, b, rcond=None)[0] for a, b, q in zip(x, y, query, strict=True)]
    np.testing.assert_allclose(LeastSquares()(prompts)[:, -1], expected, atol=1e-8)


@pytest.mark.parametrize("lam", [1e-3, 0.7, 50.0])
def test_ridge_equals_scikit_learn(lam):
    x, y, query = context(PROMPTS)
    fits = [SklearnRidge(alpha=lam, fit_intercept=False).fit(a, b) for a, b in zip(x, y, strict=True)]
    expected = [fit.predict(q[None])[0] for fit, q in zip(fits, query, strict=True)]
    np.testing.assert_allclose(Ridge(lam)(PROMPTS)[:, -1], expected, atol=1e-10)


@pytest.mark.parametrize("step_size", [None, 0.1])
def test_gradient_descent_takes_the_steps_of_the_textbook(step_size):
    x, y, query = context(PROMPTS)
    expected = []
    for a, b, q in zip(x, y, query, strict=True):
        rate = step_size or 1 / np.linalg.norm(a.T @ a / len(b), ord=2)
        expected.append(q @ descend(a, b, 7, rate))
    np.testing.assert_allclose(GradientDescent(7, step_size)(PROMPTS)[:, -1], expected, atol=1e-10)


@pytest.mark.parametrize("step_size", [None, 0.1])
def test_preprocess_then_optimise_descends_on_the_scaled_features(step_size):
    x, y, query = context(PROMPTS)
    expected = []
    for a, b, q in zip(x, y, query, strict=True):
        r = np.array([np.mean(a[:, j] * b) for j in range(5)])
        rate = step_size or 1 / np.linalg.norm((a * r).T @ (a * r) / len(b), ord=2)
        expected.append((r * q) @ descend(a * r, b, 7, rate))
    np.testing.assert_allclose(PreprocessThenOptimize(7, step_size)(PROMPTS)[:, -1], expected, atol=1e-10)


def test_many_steps_of_gradient_descent_end_at_least_squares():
    prompts = SparseRegression(d=5, sparsity=2, n_context=20).sample(20, seed=0)
    torch.testing.assert_close(GradientDescent(3000)(prompts), LeastSquares()(prompts), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", [GradientDescent, PreprocessThenOptimize])
def test_iterates_start_at_zero_and_the_last_one_makes_the_prediction(family):
    predictor = family(steps=4)
    weights = predictor.weights(PROMPTS)
    assert weights.shape == (5, 6, 5)
    assert not weights[0].any()
    predictions = torch.einsum("bnd,bd->bn", PROMPTS.inputs[..., :-1].double(), weights[-1])
    torch.testing.assert_close(predictor(PROMPTS), predictions)
    assert torch.equal(predictor.weights(PROMPTS, steps=[1, 3]), weights[[1, 3]])


@each_predictor
def test_the_order_of_the_context_does_not_matter(predictor):
    order = [*torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist(), 9]
    shuffled = regression_prompts(PROMPTS.inputs[:, order, :-1], PROMPTS.targets[:, order])
    torch.testing.assert_close(predictor(shuffled), predictor(PROMPTS)[:, order], atol=1e-9, rtol=0)


@each_predictor
def test_the_querys_y_is_not_seen(predictor):
    changed = PROMPTS.targets.clone()
    changed[:, -1] += 100
    after = predictor(regression_prompts(PROMPTS.inputs[..., :-1], changed))
    torch.testing.assert_close(after, predictor(PROMPTS), atol=1e-12, rtol=0)


@each_predictor
def test_each_of_several_queries_is_answered_as_if_alone(predictor):
    x, y = PROMPTS.inputs[..., :-1], PROMPTS.targets
    together = predictor(regression_prompts(x, y, n_queries=3))
    for query in (7, 8, 9):
        pairs = [*range(7), query]
        alone = predictor(regression_prompts(x[:, pairs], y[:, pairs]))
        torch.testing.assert_close(together[:, pairs], alone, atol=1e-12, rtol=0)


@each_predictor
def test_interleaved_predictions_use_the_pairs_before_and_no_others(predictor):
    task = SparseRegression(d=5, sparsity=2, n_context=4, layout="interleaved")
    prompts = task.sample(6, seed=0)
    predictions = predictor(prompts)
    assert predictions.shape == prompts.targets.shape
    assert not predictions[:, 0].any()
    assert not predictions[:, 1::2].any()
    x, y = prompts.inputs[:, 0::2, :-1], prompts.targets[:, 0::2]
    for n in range(1, 5):
        alone = predictor(regression_prompts(x[:, : n + 1], y[:, : n + 1]))[:, -1]
        torch.testing.assert_close(predictions[:, 2 * n], alone, atol=1e-9, rtol=0)
    changed = y.clone()
    changed[:, 2] += 1
    after = predictor(regression_prompts(x, changed, layout="interleaved"))
    torch.testing.assert_close(after[:, :5], predictions[:, :5], atol=1e-12, rtol=0)
    assert (after[:, [6, 8]] != predictions[:, [6, 8]]).any(dim=0).all()


@each_predictor
def test_a_context_of_zeros_is_predicted_as_zero(predictor):
    prompts = regression_prompts(torch.zeros(2, 4, 5), torch.zeros(2, 4))
    assert not predictor(prompts).any()


@pytest.mark.parametrize("layout", ["query", "interleaved"])
@pytest.mark.parametrize(
    ("family", "values"),
    [
        (Ridge, [0.01, 1.0, 4.0, 100.0]),
        (Lasso, [0.001, 0.01, 0.1, 1.0]),
        (GradientDescent, [1, 3, 30]),
        (PreprocessThenOptimize, [1, 3, 30]),
    ],
)
def test_the_chosen_value_is_the_best_of_the_candidates_and_says_how_it_was_chosen(family, values, layout):
    prompts = SparseRegression(d=5, sparsity=2, n_context=9, layout=layout).sample(50, seed=1)
    risks = [prompts.excess_risk(family(value)(prompts))[0].sum() for value in values]
    best = values[int(torch.stack(risks).argmin())]
    assert repr(family.hindsight(prompts, values)) == repr(family(best, chosen="hindsight"))
    assert repr(family.tuned(prompts, values)) == repr(family(best, chosen="tuned"))
    assert "chosen='hindsight'" in repr(family.hindsight(prompts, values))


def test_without_w_star_the_value_is_chosen_on_the_noisy_targets():
    prompts = regression_prompts(PROMPTS.inputs[..., :-1], PROMPTS.targets)
    losses = [prompts.loss(Ridge(lam)(prompts))[0].sum() for lam in Ridge.candidates]
    assert Ridge.tuned(prompts).lam == Ridge.candidates[int(torch.stack(losses).argmin())]


def test_a_setting_stays_while_the_steps_are_chosen():
    chosen = GradientDescent.tuned(PROMPTS, range(1, 5), step_size=0.01)
    assert chosen == GradientDescent(steps=4, step_size=0.01, chosen="tuned")


def test_choosing_from_nothing_is_refused():
    with pytest.raises(InputError, match="from 0 values on 6 scored positions"):
        Ridge.tuned(PROMPTS, [])
    with pytest.raises(InputError, match="on 0 scored positions"):
        Ridge.hindsight(PROMPTS.score_only(torch.zeros_like(PROMPTS.scored)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ridge(lam=0.0), "lam = 0.0 .*above 0"),
        (lambda: Lasso(lam=-1.0), "lam = -1.0"),
        (lambda: Ridge.tuned(PROMPTS, [1.0, math.inf]), "lam = inf"),
        (lambda: GradientDescent(steps=-1), "steps = -1"),
        (lambda: GradientDescent(steps=3, step_size=0.0), "step_size = 0.0"),
        (lambda: PreprocessThenOptimize(steps=3, step_size=math.nan), "step_size = nan"),
        (lambda: GradientDescent(steps=3).weights(PROMPTS, steps=[3, 1]), r"steps = \[3, 1\] must be increasing"),
        (lambda: GradientDescent(steps=3).weights(PROMPTS, steps=[]), r"steps = \[\]"),
        (lambda: GradientDescent(steps=3000, step_size=9.0)(PROMPTS), "diverges by step 3000 at step_size = 9.0"),
    ],
)
def test_a_value_out_of_range_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.refusal
def test_a_value_of_the_wrong_kind_is_refused():
    with pytest.raises(InputError, match=r"steps = 2\.5"):
        GradientDescent(steps=2.5)
    with pytest.raises(InputError, match="step_size = 'big'"):
        GradientDescent(steps=2, step_size="big")
    with pytest.raises(InputError, match="lam = 'big'"):
        Ridge(lam="big")
    with pytest.raises(InputError, match="chosen = 'guessed'"):
        Ridge(lam=1.0, chosen="guessed")


REFERENCE = {
    (16, 4, 0.5, 40): {"OLS": 0.171, "ridge": 0.134, "lasso": 0.079, "GD": 0.141, "preprocess+GD": 0.094},
    (16, 4, 0.5, 80): {"OLS": 0.0625, "ridge": 0.058, "lasso": 0.034, "GD": 0.060, "preprocess+GD": 0.031},
    (16, 4, 0.5, 160): {"OLS": 0.0275, "ridge": 0.027, "lasso": 0.015, "GD": 0.027, "preprocess+GD": 0.010},
    (64, 4, 0.5, 256): {"OLS": 0.083, "ridge": 0.075, "lasso": 0.017, "GD": 0.078, "preprocess+GD": 0.009},
    (16, 4, 0.1, 20): {"OLS": 0.051, "ridge": 0.040, "lasso": 0.011, "GD": 0.041, "preprocess+GD": 0.057},
}
"""Excess risks measured beforehand by other code on other prompts, as many of them per row."""


@pytest.mark.slow
def test_the_reference_table_is_reproduced_its_losing_row_included():
    script = Path(__file__).parents[2] / "benchmarks" / "regression_reference.py"
    table = runpy.run_path(str(script))["reference_table"](seed=0)
    table = table.set_index(["d", "s", "σ", "n", "predictor"]).sort_index()
    assert len(table) == 25
    for setting, risks in REFERENCE.items():
        for predictor, risk in risks.items():
            row = table.loc[(*setting, predictor)]
            # The reference has a standard error like ours, and is rounded.
            assert abs(row["risk"] - risk) < 3 * math.sqrt(2) * row["se"], (setting, predictor)
    losing = table.loc[(16, 4, 0.1, 20)]["risk"]
    assert losing["preprocess+GD"] > max(losing["ridge"], losing["GD"], losing["lasso"])
    winning = table.loc[(64, 4, 0.5, 256)]["risk"]
    assert winning["preprocess+GD"] < min(winning["ridge"], winning["GD"], winning["lasso"])

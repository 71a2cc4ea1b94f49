from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses import gap_closed
from interp.constructions.regression import gradient_descent_transformer
from tasks import BayesSparse, GradientDescent, LeastSquares, Ridge, SparseRegression
from tasks.errors import InputError

TASK = SparseRegression(d=4, sparsity=1, n_context=8)
STEP = 0.1


@pytest.fixture(scope="module")
def prompts():
    return TASK.sample(80, seed=0)


@pytest.fixture(scope="module")
def model():
    return gradient_descent_transformer(4, 12, 3, STEP)


def test_the_share_is_that_of_risks_worked_out_by_hand(prompts, model):
    predictors = {"one step": GradientDescent(1, STEP), "ols": LeastSquares(), "Bayes": BayesSparse(TASK)}
    frame = gap_closed(model, prompts, predictors, bayes="Bayes", batch_size=17).frame.set_index("reference")
    truth = prompts.labels["clean_target"][:, -1].double()

    def risk(predictions):
        return float((predictions[:, -1].double() - truth).square().mean())

    own, best = risk(model(prompts.inputs).detach()[..., 0]), risk(predictors["Bayes"](prompts))
    for name in ("one step", "ols"):
        reference = risk(predictors[name](prompts))
        assert frame.loc[name, "share"] == pytest.approx((reference - own) / (reference - best), rel=1e-5)
        assert frame.loc[name, "gap"] == pytest.approx(reference - best, rel=1e-6)
        assert frame.loc[name, "model_risk"] == pytest.approx(own, rel=1e-6)
    assert frame.loc["one step", "ci_low"] < frame.loc["one step", "share"] < frame.loc["one step", "ci_high"]


def test_a_model_that_is_the_reference_closes_nothing_and_one_that_is_bayes_everything(prompts, model):
    closed = gap_closed(model, prompts, {"itself": GradientDescent(3, STEP), "Bayes": BayesSparse(TASK)}, bayes="Bayes")
    row = closed.frame.iloc[0]
    np.testing.assert_allclose([row["share"], row["ci_low"], row["ci_high"]], 0, atol=1e-5)
    all_of_it = gap_closed(
        model, prompts, {"none": GradientDescent(0, STEP), "itself": GradientDescent(3, STEP)}, bayes="itself"
    )
    row = all_of_it.frame.iloc[0]
    np.testing.assert_allclose([row["share"], row["ci_low"], row["ci_high"]], 1, atol=1e-5)


def test_where_there_is_no_gap_there_is_no_share(prompts, model):
    bayes = BayesSparse(TASK)
    predictors = {"nearly Bayes": lambda part: bayes(part) + 1e-3, "ridge": Ridge(1.0), "Bayes": bayes}
    closed = gap_closed(model, prompts, predictors, bayes="Bayes")
    frame = closed.frame.set_index("reference")
    assert frame.loc["nearly Bayes", ["share", "ci_low", "ci_high"]].isna().all()
    assert np.isfinite(frame.loc["ridge", "share"])
    assert closed.notes == (
        "on prompts nearly Bayes is not distinguishably worse than Bayes: there is no gap to close",
    )


def test_each_set_of_prompts_has_its_own_bayes(prompts, model):
    noisy = SparseRegression(d=4, sparsity=1, n_context=8, noise=2.0)
    sets = {"as trained": prompts, "noise 2": noisy.sample(60, seed=1)}
    bayes = {"as trained": BayesSparse(TASK), "noise 2": BayesSparse(noisy)}
    closed = gap_closed(model, sets, {"zero": GradientDescent(0), "Bayes": bayes}, bayes="Bayes")
    alone = gap_closed(model, sets["noise 2"], {"zero": GradientDescent(0), "Bayes": BayesSparse(noisy)}, bayes="Bayes")
    by_set = closed.frame.set_index("prompts")
    assert by_set.loc["noise 2", "share"] == pytest.approx(alone.frame["share"].item())
    assert by_set.loc["as trained", "share"] != by_set.loc["noise 2", "share"]
    assert list(closed.plot().layout.xaxis.ticktext) == ["as trained", "noise 2"]


def test_prompts_without_known_weights_are_judged_by_their_loss(model, prompts):
    blind = replace(prompts, labels={k: v for k, v in prompts.labels.items() if k != "clean_target"})
    frame = gap_closed(model, blind, {"zero": GradientDescent(0), "ols": LeastSquares()}, bayes="ols").frame
    assert frame["metric"].item() == "loss"
    assert frame["reference_risk"].item() == pytest.approx(float(prompts.targets[:, -1].square().mean()))


def test_a_bayes_that_is_no_predictor_or_stands_alone_is_refused(prompts, model):
    predictors = {"ridge": Ridge(1.0), "Bayes": BayesSparse(TASK)}
    with pytest.raises(InputError, match="bayes = 'bayes' is none of the predictors: choose ridge, Bayes"):
        gap_closed(model, prompts, predictors, bayes="bayes")
    with pytest.raises(InputError, match="holds 'Bayes' alone"):
        gap_closed(model, prompts, {"Bayes": BayesSparse(TASK)}, bayes="Bayes")
    short = {"short": lambda part: torch.zeros(len(part), 2)}
    with pytest.raises(InputError, match=r"predictor 'short' returned \[80, 2\]"):
        gap_closed(model, prompts, predictors | short, bayes="Bayes")

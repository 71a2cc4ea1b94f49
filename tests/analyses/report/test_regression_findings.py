"""The sentences of a regression report, on models whose algorithm is known because it was built in."""

from dataclasses import replace

import pytest
import torch

from analyses import assess_heads
from analyses.algorithm_distance import measure_algorithm_distances
from analyses.report.regression_findings import find_algorithm, find_risk, find_shares
from interp import HookedTransformer
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import GradientDescent, LeastSquares, Prompts, Ridge, SparseRegression

STEP_SIZE = 0.2


def zero(prompts: Prompts) -> torch.Tensor:
    return torch.zeros_like(prompts.targets)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return SparseRegression(d=4, sparsity=1, n_context=12, noise=0.5).sample(300, seed=0)


@pytest.fixture(scope="module")
def descent(prompts: Prompts) -> HookedTransformer:
    return gradient_descent_transformer(d=4, n_ctx=13, steps=4, step_size=STEP_SIZE)


def test_a_model_that_descends_beats_zero_and_is_not_told_from_itself(prompts, descent):
    found = find_risk(
        descent, prompts, {"zero": zero, "itself": GradientDescent(4, step_size=STEP_SIZE), "OLS": LeastSquares()}
    )
    assert found.claims
    assert "zero" in found.numbers["beaten"]
    assert "itself" not in found.numbers["beaten"] + found.numbers["ahead_of_model"]
    assert "not told from that of itself" in found.sentence
    risk = float(prompts.excess_risk(GradientDescent(4, step_size=STEP_SIZE)(prompts))[0].mean())
    assert found.numbers["model"]["value"] == pytest.approx(risk, rel=1e-5)


def test_a_model_that_predicts_zero_learned_nothing(prompts, descent):
    silent = HookedTransformer(descent.cfg)  # without a seed all weights are zero
    found = find_risk(silent, prompts, {"zero": zero, "OLS": LeastSquares()})
    assert not found.claims
    assert found.sentence.startswith("Nothing was learned")


def test_preprocessing_uses_all_heads_first_and_one_later(prompts):
    model = preprocess_then_optimize_transformer(d=4, n_ctx=13, steps=2, step_size=0.05)
    found = find_shares(assess_heads(model, prompts, metric="excess_risk"))
    assert found.claims
    assert found.numbers["first_layer_uses_more"]
    assert [round(row["effective_heads"], 6) for row in found.numbers["layers"][1:]] == [1.0, 1.0]


def test_layers_that_were_given_different_numbers_of_heads_are_not_compared(prompts):
    whole = preprocess_then_optimize_transformer(d=4, n_ctx=13, steps=2, step_size=0.05)
    pruned = HookedTransformer(replace(whole.cfg, absent_heads=("L1H[1-3]", "L2H[1-3]")))
    pruned.load_state_dict(whole.state_dict())
    found = find_shares(assess_heads(pruned, prompts, metric="excess_risk"))
    assert not found.claims
    assert "different numbers of heads" in found.sentence


def test_a_silent_model_has_no_shares(prompts, descent):
    found = find_shares(assess_heads(HookedTransformer(descent.cfg), prompts, metric="excess_risk"))
    assert not found.claims
    assert found.sentence.startswith("Nothing was found")


def test_the_algorithm_that_was_built_in_is_named(prompts, descent):
    rivals = {"descent": GradientDescent(4, step_size=STEP_SIZE), "ridge": Ridge(30.0), "OLS": LeastSquares()}
    shifted = SparseRegression(d=4, sparsity=1, n_context=12, noise=1.0).sample(300, seed=1)
    distances = measure_algorithm_distances(descent, {"as trained": prompts, "σ = 1": shifted}, rivals)
    found = find_algorithm(distances, "as trained")
    assert found.claims
    assert "most like descent" in found.sentence
    assert "closest on 1 of 1 shifted sets" in found.sentence
    failing = find_algorithm(distances, "as trained", worse_than_zero=["σ = 1"])
    assert "closest on 0 of 1 shifted sets" in failing.sentence
    assert "On σ = 1 the model does worse than predicting 0" in failing.sentence


def test_two_algorithms_that_cannot_be_told_apart_are_not_claimed(prompts, descent):
    ridges = {"ridge 3.0": Ridge(3.0), "ridge 3.1": Ridge(3.1)}
    found = find_algorithm(measure_algorithm_distances(descent, {"as trained": prompts}, ridges), "as trained")
    assert not found.claims
    assert "not told from ridge 3" in found.sentence

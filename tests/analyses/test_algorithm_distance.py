from itertools import product

import pytest
import torch

from analyses import measure_algorithm_distances
from interp import HookedTransformerConfig
from interp.constructions.regression import gradient_descent_transformer
from tasks import GradientDescent, LeastSquares, Ridge, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.regression_layout import regression_prompts

TASK = SparseRegression(d=4, sparsity=2, n_context=8)
STEP = 0.1


class Wrapped(torch.nn.Module):
    """A predictor in a model's clothes."""

    cfg = HookedTransformerConfig(n_layers=1, d_model=1, n_ctx=1, d_vocab=1)
    hook_dict = {}  # noqa: RUF012 — what the interface asks for

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def hooks(self, fwd_hooks=(), bwd_hooks=()):
        raise NotImplementedError

    def forward(self, inputs):
        if inputs.is_floating_point():
            inputs = regression_prompts(inputs[..., :-1], inputs[..., -1])
        else:
            inputs = Prompts.from_tensors(inputs)
        return self.predictor(inputs)


def constant(value):
    return lambda prompts: torch.full(prompts.targets.shape, value)


@pytest.fixture(scope="module")
def prompts():
    return TASK.sample(30, seed=0)


def distance(frame, source, algorithm, column="distance", **where):
    rows = frame[(frame["source"] == source) & (frame["algorithm"] == algorithm)]
    for key, value in where.items():
        rows = rows[rows[key] == value]
    return rows[column].item()


def test_a_predictor_is_at_distance_zero_from_itself_and_others_are_where_a_loop_puts_them(prompts):
    predictors = {"ols": LeastSquares(), "ridge": Ridge(2.0), "gd": GradientDescent(3)}
    for own in predictors:
        frame = measure_algorithm_distances(Wrapped(predictors[own]), prompts, predictors, batch_size=7).frame
        for one, other in product(["model", *predictors], predictors):
            if one == other:
                assert frame.query("source == @one and algorithm == @other").empty
                continue
            total = 0.0
            for b in range(30):
                of_one, of_other = (
                    float(predictors[name](prompts[b : b + 1])[0, -1])
                    for name in (own if one == "model" else one, other)
                )
                total += (of_one - of_other) ** 2
            assert distance(frame, one, other) == pytest.approx(total / 30, abs=1e-9)
        closest = frame[(frame["source"] == "model") & frame["closest"]]
        assert closest["algorithm"].item() == own
        assert distance(frame, "model", own, "ci_high") == 0


def test_the_lag_behind_the_closest_is_paired(prompts):
    predictors = {"ols": LeastSquares(), "ridge": Ridge(2.0)}
    frame = measure_algorithm_distances(Wrapped(Ridge(3.0)), prompts, predictors).frame
    lag = distance(frame, "model", "ols") - distance(frame, "model", "ridge")
    assert distance(frame, "model", "ols", "behind") == pytest.approx(lag)
    assert distance(frame, "model", "ols", "behind_low") > 0
    assert distance(frame, "model", "ridge", "behind_high") == 0


def test_algorithms_nearer_to_each_other_than_the_model_to_either_are_said_to_be_one(prompts):
    """On a line: a at 0, b at 0.1, the model at 1, c at 2."""
    level = {"a": constant(0.0), "b": constant(0.1), "c": constant(2.0)}
    result = measure_algorithm_distances(Wrapped(constant(1.0)), prompts, level)
    of_model = result.frame[result.frame["source"] == "model"].set_index("algorithm")
    assert of_model["distance"].round(5).to_dict() == {"a": 1.0, "b": 0.81, "c": 1.0}
    assert of_model["not_told_from"].to_dict() == {"a": "b", "b": "a", "c": ""}
    assert of_model["resolution"].round(5).to_dict() == {"a": 0.01, "b": 0.01, "c": 3.61}
    assert of_model["resolution_from"].to_dict() == {"a": "b", "b": "a", "c": "b"}
    assert len(result.notes) == 1
    assert "closest to b, but a lies nearer to that than the model to either" in result.notes[0]
    near = measure_algorithm_distances(Wrapped(constant(0.09)), prompts, level)
    assert (near.frame[near.frame["source"] == "model"]["not_told_from"] == "").all()
    assert near.notes == ()


def test_steps_of_descent_are_told_apart_and_named():
    model = gradient_descent_transformer(4, 9, 3, STEP)
    steps = {f"after {t}": GradientDescent(t, STEP) for t in range(6)} | {"ridge": Ridge(1.0)}
    closest = measure_algorithm_distances(model, TASK.sample(30, seed=0), steps).closest()
    assert closest.query("source == 'model'")["steps"].item() == 3


def test_shifted_prompts_are_measured_apart_with_the_predictors_that_fit_them(prompts):
    shifted = SparseRegression(d=4, sparsity=2, n_context=3).sample(20, seed=1)
    sets = {"as trained": prompts, "n = 3": shifted}
    predictors = {"gd": GradientDescent(2), "ridge": {"as trained": Ridge(1.0), "n = 3": Ridge(5.0)}}
    frame = measure_algorithm_distances(Wrapped(LeastSquares()), sets, predictors).frame
    for name, lam in (("as trained", 1.0), ("n = 3", 5.0)):
        alone = measure_algorithm_distances(Wrapped(LeastSquares()), sets[name], {"ridge": Ridge(lam)}).frame
        expected = distance(alone, "model", "ridge")
        assert distance(frame, "model", "ridge", prompts=name) == pytest.approx(expected)
        assert distance(frame, "model", "ridge", "n_prompts", prompts=name) == len(sets[name])


def test_a_label_splits_the_distances():
    prompts = SparseRegression(d=4, sparsity=2, n_context=4, layout="interleaved").sample(20, seed=0)
    zero = constant(0.0)
    ours = measure_algorithm_distances(Wrapped(zero), prompts, {"ols": LeastSquares()}, by="n_context").frame
    predicted = LeastSquares()(prompts)
    for n in range(5):
        expected = float(predicted[:, 2 * n].square().mean())
        assert distance(ours, "model", "ols", n_context=n) == pytest.approx(expected)


def test_tokens_are_compared_by_total_variation():
    prompts = Prompts.from_tensors(torch.zeros(4, 3, dtype=torch.long))
    sure = [lambda it, k=k: torch.nn.functional.one_hot(torch.full(it.inputs.shape, k), 3) * 50.0 for k in range(3)]
    frame = measure_algorithm_distances(Wrapped(sure[0]), prompts, {"0": sure[0], "1": sure[1]}).frame
    assert distance(frame, "model", "0") == 0
    assert distance(frame, "model", "1") == pytest.approx(1)


def test_maps_show_the_model_among_the_algorithms_or_over_the_sets(prompts):
    predictors = {"gd": GradientDescent(2), "ridge": Ridge(1.0)}
    one = measure_algorithm_distances(Wrapped(LeastSquares()), prompts, predictors).plot()
    assert list(one.data[0].y) == ["model", "gd", "ridge"]
    assert len(one.layout.shapes) == 3  # each row's closest is framed
    several = measure_algorithm_distances(Wrapped(LeastSquares()), {"a": prompts, "b": prompts}, predictors).plot()
    assert list(several.data[0].y) == ["a", "b"]


def test_what_cannot_be_compared_is_refused(prompts):
    model = Wrapped(LeastSquares())
    assert len(measure_algorithm_distances(model, prompts, {"ridge": Ridge(1.0)}).frame) == 1
    with pytest.raises(InputError, match="predictors is empty"):
        measure_algorithm_distances(model, prompts, {})
    with pytest.raises(InputError, match="a predictor is called 'model'"):
        measure_algorithm_distances(model, prompts, {"model": Ridge(1.0)})
    with pytest.raises(InputError, match="prompts is empty"):
        measure_algorithm_distances(model, {}, {"ridge": Ridge(1.0)})
    with pytest.raises(InputError, match="'ridge' has nothing for the prompts 'b': it has a"):
        measure_algorithm_distances(model, {"a": prompts, "b": prompts}, {"ridge": {"a": Ridge(1.0)}})
    with pytest.raises(InputError, match=r"predictor 'short' returned \[30, 2\]"):
        measure_algorithm_distances(model, prompts, {"short": lambda part: torch.zeros(len(part), 2)})
    with pytest.raises(InputError, match="by = 'era' is no label"):
        measure_algorithm_distances(model, prompts, {"ridge": Ridge(1.0)}, by="era")

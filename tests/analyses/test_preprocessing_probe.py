from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses import probe_preprocessing
from analyses.query_features import features_as_queries
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import preprocess_then_optimize_transformer
from interp.sites import Site
from tasks import GradientDescent, PreprocessThenOptimize, SparseRegression
from tasks.errors import InputError
from tasks.regression_layout import regression_pairs

TASK = SparseRegression(d=4, sparsity=1, n_context=10)
AFTER_LAYER_0 = Site(0, "resid_post")


@pytest.fixture(scope="module")
def prompts():
    return TASK.sample(60, seed=1)


@pytest.fixture(scope="module")
def built():
    return preprocess_then_optimize_transformer(4, 11, 2, 0.1)


def softmax_model(**fields):
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_ctx": 20, "d_in": 5, "d_out": 1, "seed": 3}
    sizes |= {"attention_dir": "query_masked", "positional_embedding_type": "none", "normalization_type": "LN"}
    return HookedTransformer(HookedTransformerConfig(**(sizes | fields)))


def as_in_the_formula(model, prompts, **how):
    return probe_preprocessing(model, prompts, centred=False, **how)


def curve(result, features, rule="1/λ_max per prompt", column="value"):
    rows = result.frame[(result.frame["features"] == features) & (result.frame["step_rule"] == rule)]
    return rows[rows["metric"] != "steps_needed"][column].to_numpy()


def risk_of(predictor, prompts):
    sums, counts = prompts.excess_risk(predictor(prompts))
    return float(sums.sum() / counts.sum())


def test_every_arm_is_the_reference_predictor_it_stands_for(prompts, built):
    """The hand-built first layer writes R x: descent on it is preprocess-then-optimise, on raw x gradient descent."""
    result = as_in_the_formula(built, prompts, site="L0.attn", max_steps=6, batch_size=25)
    for step in range(7):
        raw, preprocessed = (risk_of(one(step), prompts) for one in (GradientDescent, PreprocessThenOptimize))
        assert curve(result, "raw x")[step] == pytest.approx(raw, rel=1e-6)
        assert curve(result, "exact R x")[step] == pytest.approx(preprocessed, rel=1e-6)
        assert curve(result, "layer")[step] == pytest.approx(preprocessed, rel=1e-4)
    assert result.frame["features"].unique().tolist() == [
        "raw x", "layer", "random map of x", "untrained layer", "exact R x",
    ]  # fmt: skip


def test_the_residual_stream_joins_x_to_its_preprocessed_twin(prompts, built):
    result = as_in_the_formula(built, prompts, max_steps=3, untrained_seed=None)
    x, y, _ = (part.double() if isinstance(part, torch.Tensor) else part for part in regression_pairs(prompts))
    r = (x[:, :10] * y[..., None]).mean(dim=1)
    errors = []
    for b in range(len(prompts)):
        phi = torch.cat([x[b], r[b] * x[b]], dim=1)
        context, query, w = phi[:10], phi[10], torch.zeros(8, dtype=torch.float64)
        rate = 1 / torch.linalg.eigvalsh(context.T @ context / 10)[-1]
        for _ in range(3):
            w = w + rate * context.T @ (y[b] - context @ w) / 10
        errors.append(float(query @ w - prompts.labels["clean_target"][b, -1]) ** 2)
    assert curve(result, "layer")[3] == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_context_x_has_the_features_of_that_x_as_a_query_and_none_of_its_own_y(prompts, built):
    of_context, of_query = features_as_queries(built, prompts, AFTER_LAYER_0, "as_query")
    assert of_context.shape == (60, 10, 10)
    assert of_query.shape == (60, 1, 10)
    in_place = built.run_with_cache(prompts.inputs)[1]["blocks.0.hook_resid_post"]
    error = 8  # the coordinate that starts as y
    torch.testing.assert_close(in_place[:, :10, error], prompts.inputs[:, :10, -1])
    assert not of_context[..., error].any()
    model = softmax_model()
    of_context, _ = features_as_queries(model, prompts[:3], AFTER_LAYER_0, "as_query")
    for i in range(10):
        asked = prompts.inputs[:3].clone()
        asked[:, -1, :-1] = asked[:, i, :-1]
        alone = model.run_with_cache(asked)[1]["blocks.0.hook_resid_post"][:, -1]
        torch.testing.assert_close(of_context[:, i], alone)


def test_many_queries_at_once_have_the_features_of_one_at_a_time():
    prompts = SparseRegression(d=4, sparsity=1, n_context=7, n_queries=3).sample(4, seed=0)
    model = softmax_model(n_queries=3)
    single = softmax_model()
    single.load_state_dict(model.state_dict())
    together = features_as_queries(model, prompts, AFTER_LAYER_0, "as_query")
    for k in range(3):
        alone = prompts.inputs[:, [*range(7), 7 + k]]
        one = single.run_with_cache(alone)[1]["blocks.0.hook_resid_post"][:, -1]
        torch.testing.assert_close(together[1][:, k], one)
    asked = prompts.inputs[:, :8].clone()
    asked[:, -1, :-1] = asked[:, 6, :-1]  # the 7th pair: alone in the third round of three
    torch.testing.assert_close(together[0][:, 6], single.run_with_cache(asked)[1]["blocks.0.hook_resid_post"][:, -1])


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_leaving_one_out_takes_the_pair_away(layout):
    task = SparseRegression(d=4, sparsity=1, n_context=5, layout=layout)
    prompts = task.sample(3, seed=0)
    model = softmax_model(attention_dir="causal", n_ctx=30)
    of_context, _ = features_as_queries(model, prompts, AFTER_LAYER_0, "leave_one_out")
    width = 1 if layout == "query" else 2
    for i in range(5):
        kept = [p for p in range(prompts.inputs.shape[1]) if p // width != i]
        shorter = prompts.inputs[:, kept].clone()
        shorter[:, -1, :-1] = prompts.inputs[:, i * width, :-1]
        alone = model.run_with_cache(shorter)[1]["blocks.0.hook_resid_post"][:, -1]
        torch.testing.assert_close(of_context[:, i], alone)


def test_the_exact_reference_is_asked_as_the_layer_is(prompts, built):
    """With a pair left out the hand-built layer shows R x of the other pairs, for each pair anew."""
    how = {"site": "L0.attn", "context": "leave_one_out", "max_steps": 4, "untrained_seed": None}
    result = as_in_the_formula(built, prompts[:20], **how)
    np.testing.assert_allclose(curve(result, "layer"), curve(result, "exact R x"), rtol=1e-4)
    with_own = as_in_the_formula(built, prompts[:20], **(how | {"context": "as_query"}))
    assert abs(curve(result, "layer")[4] / curve(with_own, "layer")[4] - 1) > 0.01


def test_centring_fits_an_intercept_in_every_arm(prompts, built):
    result = probe_preprocessing(built, prompts, max_steps=2, centred=True, untrained_seed=None)
    errors = []
    for b in range(len(prompts)):
        x, y = prompts.inputs[b, :10, :4].double(), prompts.inputs[b, :10, 4].double()
        around, level = x - x.mean(dim=0), y - y.mean()
        rate, w = 1 / torch.linalg.eigvalsh(around.T @ around / 10)[-1], torch.zeros(4, dtype=torch.float64)
        for _ in range(2):
            w = w + rate * around.T @ (level - around @ w) / 10
        prediction = y.mean() + (prompts.inputs[b, 10, :4].double() - x.mean(dim=0)) @ w
        errors.append(float(prediction - prompts.labels["clean_target"][b, -1]) ** 2)
    assert curve(result, "raw x")[2] == pytest.approx(np.mean(errors), rel=1e-6)


def test_what_a_layer_writes_for_every_x_slows_descent_unless_it_is_centred(prompts):
    """The hand-built first layer with a bias, which says nothing: centred it changes nothing."""
    plain, biased = (preprocess_then_optimize_transformer(4, 11, 1, 0.1) for _ in range(2))
    how = {"max_steps": 5, "untrained_seed": None}
    point = "blocks.0.hook_resid_post"
    biased.add_hook(point, lambda resid, **_: resid + 5.0)
    slowed = as_in_the_formula(biased, prompts, **how)
    assert curve(slowed, "layer")[5] > 1.5 * curve(as_in_the_formula(plain, prompts, **how), "layer")[5]
    centred = [probe_preprocessing(model, prompts, centred=True, **how) for model in (plain, biased)]
    np.testing.assert_allclose(*(curve(result, "layer") for result in centred), rtol=1e-4)


def test_interleaved_prompts_are_judged_at_their_last_x_alone():
    task = SparseRegression(d=4, sparsity=1, n_context=6, layout="interleaved")
    prompts = task.sample(30, seed=0)
    result = as_in_the_formula(softmax_model(attention_dir="causal"), prompts, max_steps=2)
    predicted = GradientDescent(2)(prompts)[:, -1]
    expected = float((predicted - prompts.labels["clean_target"][:, -1]).square().mean())
    assert curve(result, "raw x")[2] == pytest.approx(expected, rel=1e-6)


def test_a_random_map_of_x_needs_more_steps_than_x(prompts, built):
    result = probe_preprocessing(built, prompts, max_steps=3, untrained_seed=None)
    assert curve(result, "random map of x")[0] == curve(result, "raw x")[0]
    assert curve(result, "random map of x")[3] > curve(result, "raw x")[3]


def test_deltas_are_paired_with_raw_x_at_the_same_step(prompts, built):
    result = probe_preprocessing(built, prompts, max_steps=2)
    raw = curve(result, "raw x")
    for features in ("raw x", "layer", "untrained layer"):
        np.testing.assert_allclose(curve(result, features, column="delta"), curve(result, features) - raw, atol=1e-12)
    assert (curve(result, "raw x", column="delta_high") == 0).all()
    width = curve(result, "layer", column="delta_high") - curve(result, "layer", column="delta_low")
    alone = curve(result, "layer", column="ci_high") - curve(result, "layer", column="ci_low")
    assert width[2] < alone[2]  # what prompts share cancels


def test_steps_needed_are_where_the_curve_and_its_interval_first_reach_the_target(prompts, built):
    result = probe_preprocessing(built, prompts, site="L0.attn", max_steps=12, target_risk=0.2)
    needed = result.steps_needed.set_index("features")
    for features in ("raw x", "layer", "random map of x"):
        for column, of_curve in (("steps", "value"), ("ci_low", "ci_low"), ("ci_high", "ci_high")):
            below = np.flatnonzero(curve(result, features, column=of_curve) <= 0.2)
            assert needed[column].astype(float).fillna(np.inf)[features] == (below[0] if len(below) else np.inf)
    assert needed.loc["layer", "steps"] < needed.loc["raw x", "steps"]
    assert needed["ci_high"].isna().any()  # the case has an arm that does not get there


def test_the_default_target_lies_a_tenth_above_the_best_of_raw_x(prompts, built):
    result = probe_preprocessing(built, prompts, max_steps=8, untrained_seed=None)
    assert result.settings["target_risk"] == pytest.approx(1.1 * curve(result, "raw x").min())


def test_a_fixed_step_is_the_best_on_the_tuning_prompts_whatever_the_judged_ones_say(prompts, built):
    tuning = TASK.sample(40, seed=7)
    result = as_in_the_formula(built, prompts, max_steps=4, tuning_prompts=tuning, untrained_seed=None)
    steepest = 0.0
    for part in (prompts, tuning):
        x = part.inputs[:, :10, :4].double()
        steepest = max(steepest, float(torch.linalg.eigvalsh(x.mT @ x / 10)[:, -1].max()))
    sizes = [factor / steepest for factor in (0.25, 0.5, 1.0, 1.5, 1.9)]
    for step in (1, 4):
        on_tuning = [risk_of(GradientDescent(step, size), tuning) for size in sizes]
        best = sizes[int(np.argmin(on_tuning))]
        expected = risk_of(GradientDescent(step, best), prompts)
        assert curve(result, "raw x", "best fixed")[step] == pytest.approx(expected, rel=1e-6)


def test_without_known_weights_the_error_against_the_noisy_target_is_judged(prompts, built):
    blind = replace(prompts, labels={k: v for k, v in prompts.labels.items() if k != "clean_target"}, latents={})
    result = as_in_the_formula(built, blind, max_steps=1, untrained_seed=None)
    assert set(result.frame["metric"]) == {"loss", "steps_needed"}
    assert curve(result, "raw x")[0] == pytest.approx(float(prompts.targets[:, -1].square().mean()))


def test_the_figure_has_a_line_for_every_arm_and_the_target(prompts, built):
    result = probe_preprocessing(built, prompts, max_steps=3)
    named = [trace.name for trace in result.plot().data if trace.showlegend]
    assert named == ["raw x", "layer", "random map of x", "untrained layer", "exact R x", "target"]


def test_queries_that_read_each_other_are_refused_beside_some_that_do_not():
    prompts = SparseRegression(d=4, sparsity=1, n_context=7, n_queries=3).sample(4, seed=0)
    probe_preprocessing(softmax_model(n_queries=3), prompts, max_steps=1, untrained_seed=None)
    with pytest.raises(InputError, match="read each other"):
        probe_preprocessing(softmax_model(attention_dir="bidirectional"), prompts, max_steps=1)


def test_prompts_that_cannot_serve_are_refused(prompts, built):
    with pytest.raises(InputError, match="tuning_prompts"):
        probe_preprocessing(built, prompts, tuning_prompts=TASK.sample(30, seed=1))
    one = SparseRegression(d=4, sparsity=1, n_context=1).sample(5, seed=0)
    probe_preprocessing(built, one, max_steps=1)
    with pytest.raises(InputError, match="1 context pairs, too few"):
        probe_preprocessing(built, one, max_steps=1, context="leave_one_out")
    with pytest.raises(InputError, match="holds 1 prompts"):
        probe_preprocessing(built, prompts[:1])


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"max_steps": 0}, "max_steps = 0"),
        ({"context": "in_place"}, "context = 'in_place' is unknown: choose 'as_query' or 'leave_one_out'"),
        ({"target_risk": -1.0}, "target_risk = -1.0"),
        ({"site": "L7.attn"}, "does not exist"),
        ({"site": "L0.mlp"}, "no hook point"),
    ],
)
def test_arguments_out_of_range_are_refused(prompts, built, argument, says):
    with pytest.raises(InputError, match=says):
        probe_preprocessing(built, prompts, **argument)

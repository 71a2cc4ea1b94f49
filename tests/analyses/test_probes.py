import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error, r2_score, roc_auc_score

from analyses import probe_layers
from analyses.probe_targets import probe_target
from analyses.untrained import untrained_twin
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import GradientDescent, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

TASK = SparseRegression(d=4, sparsity=2, n_context=12)
STEP = 0.1


@pytest.fixture(scope="module")
def fit():
    return TASK.sample(150, seed=1)


@pytest.fixture(scope="module")
def test():
    return TASK.sample(120, seed=2)


@pytest.fixture(scope="module")
def model():
    return HookedTransformer(
        HookedTransformerConfig(n_layers=2, d_model=12, n_heads=2, n_ctx=13, d_in=5, d_out=1, normalization_type="LN")
    )


def residual(model, point):
    def at(prompts):
        return model.run_with_cache(prompts.inputs, names_filter=point)[1][point]

    return at


def value(frame, component, metric="r2", probe="model", **where):
    rows = frame[(frame["component"] == component) & (frame["metric"] == metric) & (frame["probe"] == probe)]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows["value"].item()


def test_a_planted_linear_target_is_recovered_and_its_shuffled_twin_is_not(model, fit, test):
    direction = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))

    def planted(prompts):
        return residual(model, "blocks.1.hook_resid_post")(prompts) @ direction + 5

    probed = probe_layers(model, fit, planted, test_prompts=test, at="all")
    assert value(probed.frame, "L1.resid_post") == pytest.approx(1, abs=1e-6)
    assert value(probed.frame, "L0.resid_pre") < 0.999
    shuffled = probed.frame.query("probe == 'shuffled targets' and metric == 'r2'")
    assert len(shuffled) == 3
    assert (shuffled["ci_low"] <= 0).all()
    assert (shuffled["value"].abs() < 0.02).all()
    assert value(probed.frame, "L1.resid_post", probe="untrained model") < 0.999


def test_scores_are_those_of_scikit_learn_on_the_cached_residual_stream(model, fit, test):
    probed = probe_layers(model, fit, "preprocessed", test_prompts=test, ridge=0.01, untrained_seed=None)
    x, x_test = (residual(model, "blocks.0.hook_resid_post")(part)[:, -1].detach().double() for part in (fit, test))
    y, y_test = (
        (part.inputs[:, :12, :4] * part.inputs[:, :12, 4:]).mean(dim=1) * part.inputs[:, -1, :4] for part in (fit, test)
    )
    alpha = 0.01 * float(x.var(dim=0, correction=0).mean()) * len(x)
    predicted = Ridge(alpha=alpha).fit(x.numpy(), y.double().numpy()).predict(x_test.numpy())
    expected = r2_score(y_test.numpy(), predicted, multioutput="variance_weighted")
    assert value(probed.frame, "L0.resid_post") == pytest.approx(expected, abs=1e-5)
    error = 4 * mean_squared_error(y_test.numpy(), predicted)  # summed over the 4 numbers of the target
    assert value(probed.frame, "L0.resid_post", "squared_error") == pytest.approx(error, abs=1e-5)


def test_each_layer_of_hand_built_gradient_descent_holds_its_own_iterate(fit, test):
    model = gradient_descent_transformer(4, 13, 4, STEP)
    steps = {f"t = {t}": GradientDescent(t, step_size=STEP) for t in range(1, 5)}
    frame = probe_layers(model, fit, steps, test_prompts=test, untrained_seed=None).frame
    for t in range(1, 5):
        assert value(frame, f"L{t - 1}.resid_post", target=f"t = {t}") == pytest.approx(1, abs=1e-6)
        for before in range(t - 1):
            assert value(frame, f"L{before}.resid_post", target=f"t = {t}") < 1 - 1e-4
        assert value(frame, "L0.resid_pre", target=f"t = {t}") < 0.1


def test_the_first_layer_of_hand_built_preprocessing_holds_the_preprocessed_x_and_later_layers_lower_the_risk(
    fit, test
):
    model = preprocess_then_optimize_transformer(4, 13, 4, STEP)
    targets = {"preprocessed": "preprocessed", "answer": "answer"}
    frame = probe_layers(model, fit, targets, test_prompts=test, untrained_seed=None).frame
    assert value(frame, "L0.resid_post", target="preprocessed") == pytest.approx(1, abs=1e-6)
    assert value(frame, "L0.resid_pre", target="preprocessed") < 0.1
    risks = [value(frame, site, "squared_error", target="answer") for site in ("L0.resid_pre", "L1.resid_post")]
    assert risks[1] < 0.8 * risks[0]


def test_more_features_than_prompts_make_no_target_out_of_noise():
    wide = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=64, n_ctx=13, d_in=5, d_out=1))
    few, many = TASK.sample(40, seed=1), TASK.sample(400, seed=2)
    draw = torch.Generator().manual_seed(0)
    noise = (torch.randn(40, 1, 1, generator=draw), torch.randn(400, 1, 1, generator=draw))
    frame = probe_layers(wide, few, noise, test_prompts=many).frame
    r2 = frame[frame["metric"] == "r2"]
    assert (r2["value"] < 0.02).all()
    assert (r2["ci_low"] < 0).all()


def test_the_test_prompts_have_no_say_in_the_ridge(model, fit, test):
    targets = {"answer": "answer", "sum": lambda prompts: prompts.inputs.sum(dim=-1)}
    one, other = (
        probe_layers(model, fit, targets, test_prompts=part, untrained_seed=None).frame.query("probe == 'model'")
        for part in (test, SparseRegression(d=4, sparsity=2, n_context=12, noise=3.0).sample(50, seed=9))
    )
    assert one["ridge"].nunique() > 1
    assert one["ridge"].tolist() == other["ridge"].tolist()


def test_positions_of_one_prompt_are_not_taken_for_independent():
    """Every position repeats the first: the interval is that of one position per prompt."""
    model = HookedTransformer(
        HookedTransformerConfig(n_layers=1, d_model=6, n_ctx=8, d_in=3, positional_embedding_type="none", d_out=1)
    )

    def prompts(seed, n_pos):
        x = torch.randn(60, 1, 3, generator=torch.Generator().manual_seed(seed)).expand(-1, n_pos, -1)
        noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(seed + 50)).expand(-1, n_pos)
        return Prompts.from_tensors(x.contiguous(), x[..., 0] + noise)

    once, often = (
        probe_layers(model, prompts(0, n), "answer", test_prompts=prompts(1, n), untrained_seed=None, ridge=0.1).frame
        for n in (1, 8)
    )
    for column in ("value", "ci_low", "ci_high"):
        np.testing.assert_allclose(
            once.query("probe == 'model'")[column], often.query("probe == 'model'")[column], atol=1e-4
        )


def test_integers_are_classes_and_booleans_have_an_auc():
    model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=10, n_ctx=6, d_vocab=5, attn_only=True))

    def sample(seed):
        tokens = torch.randint(5, (60, 6), generator=torch.Generator().manual_seed(seed))
        labels = {"token": tokens, "even": tokens % 2 == 0}
        return Prompts.from_tensors(tokens, labels=labels, seed=seed)

    fit, test = sample(0), sample(1)
    frame = probe_layers(model, fit, {"token": "token", "even": "even"}, test_prompts=test).frame
    assert value(frame, "L0.resid_pre", "accuracy", target="token") == 1.0
    shuffled = frame.query("probe == 'shuffled targets' and metric == 'accuracy' and component == 'L0.resid_pre'")
    assert shuffled["ci_low"].item() < 0.25  # 5 tokens
    probed = probe_layers(model, fit, "even", test_prompts=test, ridge=0.5, untrained_seed=None, sites=["L0.attn"])
    features, features_test = (
        residual(model, "blocks.0.hook_attn_out")(part)[part.scored].detach().double() for part in (fit, test)
    )
    alpha = 0.5 * float(features.var(dim=0, correction=0).mean()) * len(features)
    probe = Ridge(alpha=alpha).fit(features.numpy(), fit.labels["even"][fit.scored].numpy())
    expected = roc_auc_score(test.labels["even"][test.scored].numpy(), probe.predict(features_test.numpy()))
    assert value(probed.frame, "L0.attn", "auc") == pytest.approx(expected, abs=1e-6)
    assert value(frame, "L0.resid_pre", "auc", target="even") == 1.0


def test_heads_and_chosen_positions_can_be_probed(model, fit, test):
    def context(prompts):
        return prompts.labels["role"] == 0

    sites = ["L1H0", "L1H1.v"]
    frame = probe_layers(model, fit, "answer", test_prompts=test, sites=sites, at=context, untrained_seed=None).frame
    assert frame["component"].unique().tolist() == sites
    # y, and so nearly its value without noise, stands in a context column; a value vector has only 6 numbers
    assert value(frame, "L1H1.v") > 0.1


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_correlation_and_preprocessed_are_those_of_a_loop_over_pairs(layout):
    prompts = SparseRegression(d=3, sparsity=1, n_context=4, layout=layout).sample(5, seed=0)
    everywhere = (torch.ones_like(prompts.scored),) * 2
    r, preprocessed = (
        probe_target(name, name, (prompts, prompts), everywhere).fit.reshape(5, -1, 3)
        for name in ("correlation", "preprocessed")
    )
    for b in range(5):
        for pos in range(prompts.inputs.shape[1]):
            if layout == "query":
                pairs = [(prompts.inputs[b, i, :3], prompts.inputs[b, i, 3]) for i in range(4)]
            else:
                pairs = [(prompts.inputs[b, i - 1, :3], prompts.inputs[b, i, 3]) for i in range(1, pos + 1, 2)]
            expected = sum((x * y for x, y in pairs), torch.zeros(3)) / max(len(pairs), 1)
            torch.testing.assert_close(r[b, pos].float(), expected)
            torch.testing.assert_close(preprocessed[b, pos].float(), expected * prompts.inputs[b, pos, :3])


def test_the_answer_is_without_its_noise_where_that_is_known(fit):
    at = (fit.scored, fit.scored)
    clean = probe_target("answer", "answer", (fit, fit), at).fit[:, 0]
    torch.testing.assert_close(clean.float(), fit.labels["clean_target"][:, -1])
    tokens = Prompts.from_tensors(torch.tensor([[0, 1, 2]]))
    assert probe_target("answer", "answer", (tokens, tokens), (tokens.scored,) * 2).fit.flatten().tolist() == [1, 2]


def test_facts_about_whole_prompts_serve_at_every_position_read(fit):
    everywhere = (torch.ones_like(fit.scored),) * 2
    by_name = probe_target("w", "w_star", (fit, fit), everywhere).fit
    by_function = probe_target("w", lambda part: part.latents["w_star"][:, None], (fit, fit), everywhere).fit
    assert torch.equal(by_name, by_function)
    torch.testing.assert_close(by_name.reshape(150, 13, 4)[:, 7].float(), fit.latents["w_star"])


def test_what_was_used_is_recorded_and_figures_are_drawn(model, fit, test):
    one = probe_layers(model, fit, "answer", test_prompts=test, seed=4)
    assert (one.settings["fit_prompts_seed"], one.settings["prompts_seed"], one.settings["seed"]) == (1, 2, 4)
    assert one.frame.columns.tolist() == [
        "target", "probe", "layer", "component", "metric", "value", "ci_low", "ci_high", "n_prompts", "ridge",
    ]  # fmt: skip
    assert one.plot().data[0].name == "model"
    assert list(one.plot().layout.xaxis.ticktext) == ["embed", "L0", "L1"]
    several = probe_layers(model, fit, {"answer": "answer", "w": "w_star"}, test_prompts=test)
    assert several.plot().data[0].z.shape == (3, 2)


def test_the_model_is_left_as_it_was(model, fit, test):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    probe_layers(model, fit, "answer", test_prompts=test)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_fitting_on_the_test_prompts_is_refused(model, fit, test):
    probe_layers(model, fit[:20], "answer", test_prompts=test[:20], untrained_seed=None)
    with pytest.raises(InputError, match="test_prompts"):
        probe_layers(model, fit, "answer", test_prompts=fit)
    with pytest.raises(InputError, match="seed"):
        probe_layers(model, fit, "answer", test_prompts=TASK.sample(30, seed=1))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("w", r"target = 'w' is unknown: these prompts have .*w_star.*answer, correlation, preprocessed"),
        (lambda prompts: prompts.latents["w_star"], r"\[150, 4\] for 150 prompts of 13 positions.*\[batch, 1, k\]"),
        (lambda prompts: torch.ones(len(prompts), 13), "same at every position of the test prompts"),
        (lambda prompts: torch.full((len(prompts), 13), torch.nan), "NaN or infinity"),
        (lambda prompts: torch.randint(3, (len(prompts), 13, 2)), "classes are one non-negative integer"),
        ((torch.ones(150, 13),) * 3, "holds 3 tensors"),
        ({}, "target is empty"),
    ],
)
@pytest.mark.refusal
def test_targets_that_cannot_be_read_are_refused(model, fit, test, target, says):
    with pytest.raises(InputError, match=says):
        probe_layers(model, fit, target, test_prompts=test)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"at": "context"}, "at = 'context' is unknown"),
        ({"at": lambda prompts: prompts.targets}, "boolean mask"),
        ({"at": lambda prompts: prompts.scored & False}, "has 0 prompts with a position to read"),
        ({"sites": []}, "sites is empty"),
        ({"sites": ["L0.attn", "L0.attn"]}, "names L0.attn twice"),
        ({"sites": ["L2.attn"]}, "does not exist: the model has 2 layers"),
        ({"ridge": -1.0}, "ridge = -1.0"),
        ({"untrained_seed": 0}, "untrained_seed = 0 is the model's own seed"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"confidence": 2.0}, "confidence = 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(model, fit, test, argument, says):
    with pytest.raises(InputError, match=says):
        probe_layers(model, fit, "answer", test_prompts=test, **argument)


def test_a_twin_has_the_models_architecture_and_other_weights(model):
    twin = untrained_twin(model, 5)
    assert twin is not None
    assert twin.cfg.n_heads == model.cfg.n_heads
    assert not torch.equal(twin.W_U, model.W_U)
    assert untrained_twin(model, None) is None

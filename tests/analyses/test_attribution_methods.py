"""attribute_heads by gradients, integrated gradients and Shapley values."""

from itertools import permutations

import numpy as np
import pytest
import torch

from analyses import ablate, ablate_heads, attribute_heads
from analyses.shapley_attribution import default_permutations
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import induction_circuit
from interp.constructions.regression import preprocess_then_optimize_transformer
from interp.edits import Scale
from tasks import BigramICL, BigramStatistics, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

REFERENCES = ("zero", "mean", "counterfactual")
MOVING = ("gradient", "integrated", "shapley")


def random_model(**options):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "d_vocab_out": 6}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model.double()


def linear_model(**options):
    """Patterns that do not depend on the prompt, no LayerNorm, a linear feed-forward part."""
    model = random_model(mlp_type="linear", **options)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.W_K.zero_()
    return model


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(6, (9, 5), generator=generator) for _ in range(3))
    scored = torch.rand((9, 5), generator=generator) < 0.7
    labels = {"half": (torch.arange(5) > 2).long().expand(9, -1)}
    other = Prompts.from_tensors(others)
    return Prompts.from_tensors(tokens, scored=scored, wrong=wrong, labels=labels, counterfactual=other)


def bigrams(**sharpness):
    """A circuit with an idle head in either layer, and prompts for it."""
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake")
    task = BigramICL(stats, n_triggers=2, seq_len=24)
    circuit = induction_circuit(d_vocab=task.d_vocab, n_ctx=24, triggers=task.trigger_tokens, idle_heads=1, **sharpness)
    return circuit.model, task.sample(24, seed=0)


def values(result, column="attribution"):
    return result.frame.set_index("component")[column]


@pytest.mark.parametrize("attn_fn", ["softmax", "linear"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_in_a_linear_network_the_gradient_is_the_ablation(attn_fn, reference, prompts):
    model = linear_model(attn_fn=attn_fn)
    exact = ablate_heads(model, prompts, method=reference, metric="logit_diff", by="half").frame
    found = attribute_heads(model, prompts, method="gradient", reference=reference, metric="logit_diff", by="half")
    frame = found.frame
    assert exact["component"].tolist() == frame["component"].tolist()
    for mine, theirs in (("attribution", "delta"), ("ci_low", "ci_low"), ("ci_high", "ci_high")):
        np.testing.assert_allclose(frame[mine], exact[theirs], atol=1e-9)
    assert frame["n_prompts"].tolist() == exact["n_prompts"].tolist()
    assert frame["attribution"].abs().min() > 1e-5
    assert found.totals["error"].abs().max() < 1e-9


@pytest.mark.parametrize("method", MOVING)
def test_in_one_layer_of_a_linear_network_all_methods_agree(method, prompts):
    model = linear_model()
    how = {"metric": "logit_diff", "layers": [1]}
    found = attribute_heads(model, prompts, method=method, **how)
    expected = values(ablate_heads(model, prompts, method="zero", metric="logit_diff"), "delta")
    np.testing.assert_allclose(values(found), expected[["L1H0", "L1H1"]], atol=1e-9)


@pytest.mark.parametrize("metric", ["logit", "logit_diff"])
def test_in_the_last_layer_taking_a_head_away_removes_what_it_adds_directly(metric, prompts):
    model = random_model(attn_only=True)
    direct = values(attribute_heads(model, prompts, metric=metric))
    moved = values(attribute_heads(model, prompts, method="gradient", metric=metric, layers=[1]))
    np.testing.assert_allclose(moved, -direct[["L1H0", "L1H1"]], atol=1e-9)


@pytest.mark.parametrize("metric", ["loss", "prob", "logit_diff", "logit"])
@pytest.mark.parametrize("variant", [{"normalization_type": "LN"}, {"attn_only": True, "attn_fn": "relu"}])
def test_the_gradient_is_the_finite_difference_on_the_way_to_zero(metric, variant, prompts):
    model = random_model(act_fn="gelu", **variant)
    found = values(attribute_heads(model, prompts, method="gradient", metric=metric))
    step = 1e-5
    measured = mean_logit if metric == "logit" else metric
    there, back = (
        values(ablate_heads(model, prompts, method=Scale(1 - sign * step), metric=measured), "delta")
        for sign in (1, -1)
    )
    np.testing.assert_allclose(found, (there - back) / (2 * step), atol=1e-7)
    assert found.abs().min() > 1e-5


def mean_logit(outputs, prompts):
    picked = outputs.gather(-1, prompts.targets[..., None])[..., 0]
    return (picked * prompts.scored).sum(1) * len(prompts) / prompts.scored.sum()


def test_one_head_in_a_layer_integrates_to_its_ablation(prompts):
    model = random_model(n_heads=1, normalization_type="LN", act_fn="gelu")
    for reference in REFERENCES:
        exact = values(ablate_heads(model, prompts, method=reference), "delta")
        found = attribute_heads(model, prompts, method="integrated", reference=reference, metric="loss", n_steps=24)
        np.testing.assert_allclose(values(found), exact, atol=1e-3)


def test_integration_is_complete_and_the_error_falls_with_the_steps(prompts):
    model = random_model(normalization_type="LN", act_fn="gelu")
    errors = []
    for n_steps in (2, 8, 32):
        found = attribute_heads(model, prompts, method="integrated", metric="loss", n_steps=n_steps, by="half")
        errors.append(found.totals["error"].abs().max())
        for row in found.totals.itertuples():
            heads = found.frame[(found.frame["layer"] == row.layer) & (found.frame["half"] == row.half)]
            assert heads["attribution"].sum() == pytest.approx(row.attributed, abs=1e-9)
            layer = ablate(model, prompts, [[f"L{row.layer}H0", f"L{row.layer}H1"]], method="zero", by="half").frame
            measured = layer.set_index("half").loc[row.half, "delta"]
            assert row.measured == pytest.approx(measured, abs=1e-9)
            assert row.error == pytest.approx(row.attributed - measured, abs=1e-9)
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 4e-3


def test_integrated_gradients_are_the_integral_along_the_line_by_finite_differences(prompts):
    model = random_model(normalization_type="LN", act_fn="gelu")
    n_steps, step = 3, 1e-5
    found = values(attribute_heads(model, prompts, method="integrated", metric="loss", n_steps=n_steps, layers=[0]))

    def loss(factors):
        def scaled(z, hook):
            return z * torch.tensor(factors, dtype=z.dtype)[:, None]

        with torch.no_grad():
            out = model.run_with_hooks(prompts.inputs, fwd_hooks=[("blocks.0.attn.hook_z", scaled)])
        sums, counts = prompts.loss(out)
        return float(sums.sum() / counts.sum())

    for head, component in enumerate(found.index):
        slopes = []
        for k in range(n_steps):
            kept = 1 - (k + 0.5) / n_steps
            less, more = [kept, kept], [kept, kept]
            less[head] -= step
            more[head] += step
            slopes.append((loss(less) - loss(more)) / (2 * step))
        assert found[component] == pytest.approx(np.mean(slopes), abs=1e-7)


def test_shapley_values_are_the_mean_over_all_orders_of_ablation(prompts):
    model = random_model()
    heads = ["L0H0", "L0H1", "L1H0", "L1H1"]
    found = attribute_heads(model, prompts, method="shapley", metric="loss", reference="mean")
    effect = {frozenset(): 0.0}

    def change(together):
        if together not in effect:
            effect[together] = ablate(model, prompts, [list(together)], method="mean").frame["delta"][0]
        return effect[together]

    shares = dict.fromkeys(heads, 0.0)
    for order in permutations(heads):
        for k, head in enumerate(order):
            shares[head] += (change(frozenset(order[: k + 1])) - change(frozenset(order[:k]))) / 24
    np.testing.assert_allclose(values(found), [shares[head] for head in heads], atol=1e-9)
    assert found.totals["layer"].isna().all()
    assert found.totals["measured"][0] == pytest.approx(change(frozenset(heads)), abs=1e-9)
    assert abs(found.totals["error"][0]) < 1e-9


def test_drawn_permutations_share_the_whole_and_their_intervals_hold_the_exact_values(prompts):
    model = random_model()
    how = {"method": "shapley", "metric": "loss"}
    exact = attribute_heads(model, prompts, **how)
    few, many = (attribute_heads(model, prompts, n_permutations=n, **how) for n in (5, 60))
    for drawn in (few, many):
        assert drawn.totals["error"].abs().max() < 1e-9
        assert (values(drawn, "ci_low") < values(exact)).all()
        assert (values(exact) < values(drawn, "ci_high")).all()
    width = [(one.frame["ci_high"] - one.frame["ci_low"]).sum() for one in (exact, many, few)]
    assert width[0] < width[1] < width[2]
    assert few.settings["n_permutations"] == 5
    assert exact.settings["n_permutations"] is None
    assert (values(many) - values(exact)).abs().max() > 1e-6


def test_above_twelve_heads_permutations_are_drawn(prompts):
    assert [default_permutations(n) for n in (1, 12, 13)] == [None, None, 200]
    model = random_model(n_layers=1, n_heads=13, d_head=1, d_model=4, attn_only=True)
    found = attribute_heads(model, prompts, method="shapley", metric="logit", n_permutations=3)
    alone = ablate_heads(model, prompts, method="zero", metric=mean_logit)
    np.testing.assert_allclose(values(found), values(alone, "delta"), atol=1e-9)  # in a linear layer orders are alike


def test_the_two_heads_of_a_circuit_share_it_and_idle_heads_have_nothing():
    model, prompts = bigrams()
    prompts = prompts.score_only(prompts.labels["segment"] == prompts.label_names["segment"].index("in_context"))
    found = attribute_heads(model, prompts, method="shapley", metric="logit")
    rows = found.frame.set_index("component")
    assert rows.loc[["L0H1", "L1H1"], ["attribution", "ci_low", "ci_high"]].abs().to_numpy().max() == 0.0
    drop = values(ablate_heads(model, prompts, method="zero", metric=mean_logit), "delta")
    # without the copying head the other is of no use, so that the loss of both is the loss of that one
    assert rows["attribution"].sum() == pytest.approx(drop["L1H0"], abs=1e-3)
    assert rows.loc["L0H0", "attribution"] == pytest.approx(drop["L0H0"] / 2, abs=1e-3)
    assert drop["L0H0"] < -10


@pytest.mark.parametrize("method", MOVING)
def test_an_idle_head_gets_exactly_nothing(method):
    model, prompts = bigrams(attention_logit=4.0, copy_logit=4.0)
    rows = attribute_heads(model, prompts, method=method, metric="loss", by="segment").frame
    rows = rows[rows["segment"] == "in_context"].set_index("component")
    assert rows.loc[["L0H1", "L1H1"], ["attribution", "ci_low", "ci_high"]].abs().to_numpy().max() == 0.0
    assert rows.loc[["L0H0", "L1H0"], "ci_low"].min() > 0.1


def test_a_saturated_circuit_shows_the_gradient_nothing_and_the_totals_say_so():
    """Sharp attention and certain answers are flat: the ablation costs nats, the slope is nil."""
    model, prompts = bigrams()
    rows = attribute_heads(model, prompts, method="gradient", metric="loss", by="segment")
    in_context = rows.frame[rows.frame["segment"] == "in_context"]
    assert in_context["attribution"].abs().max() < 1e-3
    assert rows.totals.loc[rows.totals["segment"] == "in_context", "error"].max() < -2
    assert "miss what ablating them together changes by up to 2." in rows.notes[-1]


def test_real_valued_tasks_have_attributions_of_their_loss():
    model = preprocess_then_optimize_transformer(d=3, n_ctx=11, steps=2, step_size=0.1)
    prompts = SparseRegression(d=3, sparsity=1, n_context=10).sample(16, seed=0)
    for metric in ("loss", "excess_risk"):
        found = attribute_heads(model, prompts, method="integrated", metric=metric, n_steps=16)
        assert found.totals["error"].abs().max() < 1e-3
        assert values(found)["L1H0"] > 0.01
        assert values(found)["L1H1"] == 0.0


@pytest.mark.parametrize("method", MOVING)
def test_batches_do_not_matter_and_parts_recombine(method, prompts):
    model = random_model()
    how = {"method": method, "metric": "loss"} | ({"n_steps": 3} if method == "integrated" else {})
    whole = attribute_heads(model, prompts, **how)
    split = attribute_heads(model, prompts, by="half", batch_size=4, **how)
    n = [int((prompts.scored & (prompts.labels["half"] == half)).sum()) for half in (0, 1)]
    parts = [split.matrix("attribution", half=half) for half in (0, 1)]
    together = (n[0] * parts[0] + n[1] * parts[1]) / sum(n)
    torch.testing.assert_close(whole.matrix("attribution"), together, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", MOVING)
def test_frozen_weights_change_nothing(method, prompts):
    model = random_model()
    how = {"method": method, "metric": "loss"} | ({"n_steps": 3} if method == "integrated" else {})
    free = attribute_heads(model, prompts, **how).frame
    for weight in model.parameters():
        weight.requires_grad_(False)
    with torch.inference_mode():
        frozen = attribute_heads(model, prompts, **how).frame
    np.testing.assert_allclose(frozen["attribution"], free["attribution"], atol=1e-12)


def test_methods_have_one_table_and_one_picture(prompts, tmp_path):
    model = random_model()
    tables = [attribute_heads(model, prompts, method=method) for method in ("direct", *MOVING)]
    assert len({tuple(one.frame.columns) for one in tables}) == 1
    assert [one.frame["method"].unique().tolist() for one in tables] == [["direct"], *([method] for method in MOVING)]
    figure = tables[1].plot_against(tables[0])
    (points,) = figure.data
    assert list(points.text) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    np.testing.assert_array_equal(points.x, tables[1].frame["attribution"])
    np.testing.assert_array_equal(points.y, values(tables[0])[list(points.text)])
    assert tables[1].matrix("attribution").shape == (2, 2)
    tables[1].save(tmp_path)
    assert (tmp_path / "attribution_totals.csv").exists()
    assert list(tables[0].tables) == ["attribution"]
    with pytest.raises(InputError, match="one result is split by None, the other by 'half'"):
        tables[0].plot_against(attribute_heads(model, prompts, by="half"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"reference": "zero"}, "method = 'direct' takes no reference: drop it, or choose method = 'gradient' or"),
        ({"method": "gradient", "n_steps": 8}, "takes no n_steps: drop it, or choose method = 'integrated'"),
        ({"method": "integrated", "n_permutations": 8}, "takes no n_permutations"),
        ({"method": "integrated", "n_steps": 0}, "n_steps = 0"),
        ({"method": "shapley", "n_permutations": 1}, "n_permutations = 1"),
        ({"method": "gradient", "layers": [2]}, "the model has 2 layers"),
        ({"method": "gradient", "layers": []}, "layers is empty"),
        ({"method": "gradient", "layers": [1, 1]}, "names a layer twice"),
        ({"method": "gradient", "metric": "accuracy"}, "metric = 'accuracy' has no gradient"),
        ({"method": "integrated", "metric": "accuracy"}, "metric = 'accuracy' has no gradient"),
        ({"method": "gradient", "metric": "kl"}, "its gradient there is 0"),
        ({"method": "gradient", "by": "segment"}, "by = 'segment' is no label"),
        ({"metric": mean_logit}, "adds up logits"),
    ],
)
def test_what_does_not_fit_is_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        attribute_heads(random_model(), prompts, **how)


def test_what_is_missing_is_refused(prompts):
    model = random_model()
    bare = Prompts.from_tensors(prompts.inputs)
    with pytest.raises(InputError, match="carry no counterfactual"):
        attribute_heads(model, bare, method="gradient", reference="counterfactual")
    with pytest.raises(InputError, match="needs a wrong answer"):
        attribute_heads(model, bare, method="gradient", metric="logit_diff")
    assert attribute_heads(model, bare, method="integrated", metric="kl").frame["attribution"].abs().max() > 0


def test_a_metric_that_no_head_reaches_is_refused_rather_than_flat(prompts):
    apart = torch.zeros(9, requires_grad=True)

    def of_something_else(outputs, prompts):
        return 2 * apart

    with pytest.raises(InputError, match=r"no gradient of the metric reaches blocks\.0\.attn\.hook_z"):
        attribute_heads(random_model(), prompts, method="gradient", metric=of_something_else)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "shaply"}, "method = 'shaply' is unknown: choose 'direct', 'gradient', 'integrated', 'shapley'"),
        ({"method": "gradient", "reference": "noise"}, "reference = 'noise' is unknown"),
        ({"method": "gradient", "metric": "los"}, "metric = 'los' is unknown"),
    ],
)
def test_unknown_words_are_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        attribute_heads(random_model(), prompts, **how)


@pytest.mark.parametrize("method", MOVING)
def test_totals_can_be_left_out_and_change_nothing_else(method, prompts):
    model = random_model()
    whole, bare = (
        attribute_heads(model, prompts, method=method, metric="loss", totals=totals) for totals in (None, False)
    )
    assert not whole.totals.empty
    assert bare.totals.empty
    assert list(bare.tables) == [bare.name]
    assert whole.frame.equals(bare.frame)


def test_direct_attribution_takes_no_totals(prompts):
    with pytest.raises(InputError, match="method = 'direct' takes no totals: drop it, or choose method = 'gradient'"):
        attribute_heads(random_model(), prompts, totals=False)

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.head_assessment import assess_heads
from analyses.pruning import prune_heads
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import PreprocessThenOptimize, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

N_POS, N_VOCAB, N_HEADS, N_LAYERS = 4, 5, 3, 3


def random_model(seed=2, **options) -> HookedTransformer:
    sizes = {"n_layers": N_LAYERS, "d_model": 6, "n_ctx": N_POS, "n_heads": N_HEADS, "d_vocab": N_VOCAB}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | {"attn_only": True} | options)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def random_prompts(seed, n=20) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_VOCAB, (n, N_POS), generator=generator)
    return Prompts.from_tensors(tokens, scored=torch.rand((n, N_POS), generator=generator) < 0.7, seed=seed)


def loss_keeping(model, prompts, kept: dict[int, set[int]], means=None) -> np.ndarray:
    """Sums per prompt with every head of kept's layers but those named overwritten, by explicit hooks."""
    hooks = []
    for layer, heads in kept.items():

        def silence(z, hook, layer=layer, heads=heads):
            z = z.clone()
            for head in set(range(N_HEADS)) - heads:
                z[:, :, head] = 0 if means is None else means[layer][:, head]
            return z

        hooks.append((f"blocks.{layer}.attn.hook_z", silence))
    with torch.no_grad():
        return prompts.loss(model.run_with_hooks(prompts.inputs, fwd_hooks=hooks))[0].double().numpy()


def ratio(sums, prompts):
    return sums.sum() / int(prompts.scored.sum())


MODEL, PROMPTS, IMPORTANCE = random_model(), random_prompts(0), random_prompts(1)


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_keeping_the_most_important_heads_is_ablating_the_others_with_explicit_hooks(method):
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, method=method, n_random=0)
    ranked = assess_heads(MODEL, IMPORTANCE, method=method)
    means = None
    if method == "mean":
        _, cache = MODEL.run_with_cache(PROMPTS.inputs)
        means = [cache["z", layer].detach().mean(dim=0) for layer in range(N_LAYERS)]
    rows = result.frame[result.frame["arm"] == "by importance"]
    assert rows["kept"].tolist() == [1, 2, 3]
    assert rows["pruned"].unique().tolist() == ["L1+L2"]
    clean = ratio(loss_keeping(MODEL, PROMPTS, {0: {0, 1, 2}}), PROMPTS)
    for row in rows.to_dict("records"):
        kept = {layer: set(ranked.ranking(layer)[: row["kept"]]) for layer in (1, 2)}
        assert row["heads"].split() == [f"L{la}H{h}" for la in (1, 2) for h in ranked.ranking(la)[: row["kept"]]]
        assert row["ablated"] == pytest.approx(ratio(loss_keeping(MODEL, PROMPTS, kept, means), PROMPTS), abs=1e-5)
        assert row["delta"] == pytest.approx(row["ablated"] - clean, abs=1e-5)
        assert row["ci_low"] <= row["delta"] <= row["ci_high"]
    assert rows["delta"].abs().max() > 0.05


def test_pruning_the_other_layers_instead_leaves_these_whole():
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, layers=[2], n_random=0)
    ranked = assess_heads(MODEL, IMPORTANCE)
    rows = result.frame[result.frame["arm"] == "other layers"]
    assert rows["pruned"].unique().tolist() == ["L0+L1"]
    for row in rows.to_dict("records"):
        kept = {layer: set(ranked.ranking(layer)[: row["kept"]]) for layer in (0, 1)}
        assert row["ablated"] == pytest.approx(ratio(loss_keeping(MODEL, PROMPTS, kept), PROMPTS), abs=1e-5)


def test_random_choices_are_choices_of_that_many_heads_per_layer_and_their_mean_and_ends_are_reported():
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=200, seed=3)
    rows = result.frame[result.frame["arm"] == "at random"].set_index("kept")
    clean = ratio(loss_keeping(MODEL, PROMPTS, {}), PROMPTS)
    assert (rows["n_draws"] == 200).all()
    for kept in (1, 2):
        choices = list(itertools.product(itertools.combinations(range(N_HEADS), kept), repeat=2))
        each = [
            ratio(loss_keeping(MODEL, PROMPTS, {1: set(first), 2: set(second)}), PROMPTS) - clean
            for first, second in choices
        ]
        row = rows.loc[kept]
        # 200 draws of 9 choices miss none of them (probability 5e-10)
        assert (row["draws_low"], row["draws_high"]) == pytest.approx((min(each), max(each)), abs=1e-5)
        assert row["delta"] == pytest.approx(np.mean(each), abs=5 * np.std(each) / np.sqrt(200))
        assert row["heads"] is None or pd.isna(row["heads"])
    assert rows.loc[3, ["delta", "draws_low", "draws_high"]].tolist() == [0.0, 0.0, 0.0]


def test_random_choices_come_from_the_seed():
    def at_random(seed):
        frame = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=2, seed=seed).frame
        return frame[frame["arm"] == "at random"]["delta"].tolist()

    assert at_random(3) == at_random(3)
    assert at_random(3) != at_random(4)


def test_a_contrast_is_the_difference_of_two_arms_and_its_interval_is_paired():
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=4)
    frame = result.frame
    ranked = frame[frame["arm"] == "by importance"].set_index("kept")["delta"]
    assert frame[frame["arm"] == "by importance"]["contrast"].isna().all()
    for arm in ("at random", "other layers"):
        rows = frame[frame["arm"] == arm]
        assert (rows["contrast"] - rows["delta"] + rows["kept"].map(ranked)).abs().max() < 1e-9
        assert (rows["contrast_ci_low"] <= rows["contrast"]).all()
        assert (rows["contrast"] <= rows["contrast_ci_high"]).all()
    # against an arm that loses nothing, since layer 0 writes nothing, a contrast is the other arm's effect turned round
    idle = random_model()
    with torch.no_grad():
        idle.blocks[0].attn.W_O.zero_()
    rows = prune_heads(idle, PROMPTS, importance=IMPORTANCE, n_random=0).frame
    instead = rows[rows["arm"] == "other layers"]
    assert (instead[["delta", "ci_low", "ci_high"]] == 0.0).all(axis=None)
    whole = rows[rows["arm"] == "by importance"]
    assert instead["contrast"].tolist() == pytest.approx((-whole["delta"]).tolist(), abs=1e-9)
    assert instead["contrast_ci_high"].tolist() == pytest.approx((-whole["ci_low"]).tolist(), abs=1e-9)


def test_keeping_every_head_changes_nothing_exactly():
    frame = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=2).frame
    every = frame[frame["kept"] == N_HEADS]
    assert every["arm"].tolist() == ["by importance", "at random", "other layers"]
    assert (every[["delta", "ci_low", "ci_high"]] == 0.0).all(axis=None)
    assert (every["ablated"] == every["baseline"]).all()


def test_another_model_is_measured_on_the_same_prompts():
    other = random_model(seed=9, n_heads=1, n_layers=2)
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=0, others={"one head": other, "same": MODEL})
    rows = result.frame.set_index("arm")
    with torch.no_grad():
        expected = ratio(PROMPTS.loss(other(PROMPTS.inputs))[0].double().numpy(), PROMPTS)
    assert rows.loc["one head", "ablated"] == pytest.approx(expected, abs=1e-5)
    assert pd.isna(rows.loc["one head", "kept"])
    assert rows.loc["same", ["delta", "ci_low", "ci_high"]].tolist() == [0.0, 0.0, 0.0]
    lines = {trace.name: trace for trace in result.plot().data}
    assert {"one head", "same", "full model"} <= set(lines)
    assert set(lines["one head"].y) == {rows.loc["one head", "ablated"]}


def test_the_construction_loses_nothing_with_one_head_later_and_much_with_one_head_first():
    task = SparseRegression(d=4, sparsity=2, n_context=30, noise=0.1, weights="signs")
    model = preprocess_then_optimize_transformer(d=4, n_ctx=31, steps=3, step_size=0.25)
    prompts, ranked_on = task.sample(200, seed=1), task.sample(200, seed=2)
    single = gradient_descent_transformer(d=4, n_ctx=31, steps=4, step_size=0.25)
    result = prune_heads(
        model, prompts, importance=ranked_on, metric="excess_risk", n_random=6, others={"descent": single}
    )
    frame = result.frame
    later = frame[frame["arm"] == "by importance"]
    assert (later[["delta", "ci_low", "ci_high"]] == 0.0).all(axis=None)
    assert all(name in later["heads"].iloc[0].split() for name in ("L1H0", "L2H0", "L3H0"))
    instead = frame[(frame["arm"] == "other layers")].set_index("kept")
    assert (instead["contrast_ci_low"][:3] > 0).all()
    # the top head alone is preprocessing with r = 0 for all other coordinates
    (head,) = (int(name[-1]) for name in instead.loc[1, "heads"].split())
    x = torch.zeros_like(prompts.inputs)
    x[..., [head, -1]] = prompts.inputs[..., [head, -1]]
    alone = Prompts(x, prompts.targets, prompts.scored, prompts.labels, latents=prompts.latents)
    sums, counts = prompts.excess_risk(PreprocessThenOptimize(steps=3, step_size=0.25)(alone))
    assert instead.loc[1, "ablated"] == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-4)
    at_random = frame[frame["arm"] == "at random"].set_index("kept")
    assert at_random.loc[1, "delta"] > 0.05
    assert at_random.loc[1, "draws_low"] >= 0


def test_every_layer_may_be_pruned_and_then_there_are_no_others():
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, layers=[2, 0, 1], n_random=0)
    assert result.frame["arm"].unique().tolist() == ["by importance"]
    assert result.frame["pruned"].unique().tolist() == ["L0–L2"]
    assert result.notes == ("every layer is pruned, so there are no other layers to prune instead",)


def test_the_table_has_these_columns_and_the_settings_say_how_to_measure_again(tmp_path):
    result = prune_heads(MODEL, PROMPTS, importance=IMPORTANCE, n_random=2, seed=5)
    assert list(result.frame) == [
        *("arm", "pruned", "kept", "heads", "metric", "baseline", "ablated", "delta", "ci_low", "ci_high"),
        *("n_prompts", "n_draws", "draws_low", "draws_high", "contrast", "contrast_ci_low", "contrast_ci_high"),
    ]
    expected = {"importance_seed": 1, "prompts_seed": 0, "seed": 5, "n_random": 2, "layers": [1, 2], "method": "zero"}
    assert expected.items() <= result.settings.items()
    assert result.settings["ranking"]["L1"] == list(result.assessment.ranking(1))
    result.save(tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.csv")) == [
        "pruning",
        "pruning_head_assessment",
        "pruning_head_assessment_layers",
    ]
    curves = {trace.name: trace for trace in result.plot().data}
    expected = result.frame[result.frame["arm"] == "by importance"]["ablated"].tolist()
    assert list(curves["by importance"].y) == expected
    assert set(curves) == {"by importance", "at random", "spread of random choices", "L0 instead", "full model"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layers": [3]}, "layer 3 does not exist: the model has layers 0 to 2"),
        ({"layers": []}, r"layers = \[\]: name at least one layer, each once"),
        ({"layers": [1, 1]}, r"layers = \[1, 1\]: name at least one"),
        ({"n_random": 1}, "n_random = 1 shows no spread"),
        ({"n_random": -1}, "n_random = -1 must be a whole number, at least 0"),
        ({"others": {"at random": MODEL}}, "another model is called 'at random', like an arm"),
        ({"others": {"small": random_model(d_vocab=4)}}, "token 4 does not exist"),
        ({"others": {"wide": random_model(d_vocab=6)}}, r"another model's outputs are \[20, 4, 6\]"),
        ({"importance": PROMPTS}, "importance are the prompts that are judged on"),
        ({"importance": random_prompts(0, n=7)}, "importance and prompts were drawn with the same seed, 0"),
        ({"importance": IMPORTANCE[:0]}, "importance holds 0 prompts"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_or_compared_is_refused(how, message):
    with pytest.raises(InputError, match=message) as refusal:
        prune_heads(MODEL, PROMPTS, **({"importance": IMPORTANCE, "n_random": 0} | how))
    assert "\n" not in str(refusal.value)


def test_models_without_heads_to_spare_are_refused():
    with pytest.raises(InputError, match="the model has one head per layer: there is none to prune"):
        prune_heads(random_model(n_heads=1), PROMPTS, importance=IMPORTANCE)
    one_layer = random_model(n_layers=1)
    with pytest.raises(InputError, match=r"say layers=\[0\] to prune it"):
        prune_heads(one_layer, PROMPTS, importance=IMPORTANCE)
    assert len(prune_heads(one_layer, PROMPTS, importance=IMPORTANCE, layers=[0], n_random=0).frame) == N_HEADS
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        prune_heads(one_layer, PROMPTS[:0], importance=IMPORTANCE)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "meen"}, "method = 'meen' is unknown: choose 'zero', 'mean' or 'resample'"),
        ({"metric": "los"}, "metric = 'los' is unknown"),
        ({"n_random": 2.5}, "n_random = 2.5 must be a whole number"),
        ({"others": {"one head": "model"}}, "str is no model: give a model with hooks"),
    ],
    ids=str,
)
def test_options_that_do_not_exist_are_refused(how, message):
    with pytest.raises(InputError, match=message):
        prune_heads(MODEL, PROMPTS, **({"importance": IMPORTANCE} | how))

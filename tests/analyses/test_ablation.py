import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses import ablate, ablate_heads, ablate_layers, ablate_mlps
from analyses.references import derangement
from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Add, Scale
from tasks.errors import InputError
from tasks.prompts import Prompts

N_PROMPTS, N_POS, N_VOCAB = 9, 4, 5
HEADS = ["L0H0", "L0H1", "L1H0", "L1H1"]


def random_model(**options) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": N_POS, "n_heads": 2, "d_vocab": N_VOCAB}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25)
    return model


def random_prompts(seed=0, n=N_PROMPTS) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_VOCAB, (n, N_POS), generator=generator)
    return Prompts.from_tensors(
        tokens,
        scored=torch.rand((n, N_POS), generator=generator) < 0.6,
        wrong=torch.randint(N_VOCAB, (n, N_POS), generator=generator),
        labels={
            "parity": torch.arange(N_POS).remainder(2).expand(n, -1),
            "late": (torch.arange(N_POS) > 1).expand(n, -1),
        },
        label_names={"parity": ("even", "odd")},
    )


@pytest.fixture(params=[{}, {"attn_only": True}, {"normalization_type": "LN", "parallel_attn_mlp": True}], ids=str)
def model(request):
    return random_model(**request.param)


@pytest.fixture
def prompts():
    return random_prompts()


# One prompt at a time, in Python: what an ablation should measure.


def one_pass(model, tokens, written):
    """Logits [pos, vocab] of one prompt; written = {(layer, head): [pos, d_head]} replaces z."""
    hooks = []
    for (layer, head), values in written.items():

        def write(z, hook, head=head, values=values):
            z = z.clone()
            z[0, :, head] = values
            return z

        hooks.append((f"blocks.{layer}.attn.hook_z", write))
    with torch.no_grad():
        return model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0] if hooks else model(tokens[None])[0]


def z_of(model, tokens, layer, head):
    name = f"blocks.{layer}.attn.hook_z"
    with torch.no_grad():
        return model.run_with_cache(tokens[None], names_filter=name)[1][name][0, :, head]


def of_one_position(metric, logits, clean, target, wrong):
    p = logits.double().softmax(0)
    if metric == "loss":
        return -p[target].log()
    if metric == "accuracy":
        return logits.argmax() == target
    if metric == "prob":
        return p[target]
    if metric == "logit_diff":
        return logits[target] - logits[wrong]
    clean_p = clean.double().softmax(0)
    return sum(clean_p[v] * (clean_p[v] / p[v]).log() for v in range(N_VOCAB))


def by_hand(model, prompts, written, metric="loss", where=None):
    """(clean, ablated) ratio of sums over scored positions; written = {(layer, head): [prompt, pos, d_head]}."""
    where = prompts.scored if where is None else where
    totals = [0.0, 0.0]
    for b in range(len(prompts)):
        clean = one_pass(model, prompts.inputs[b], {})
        ablated = one_pass(model, prompts.inputs[b], {at: values[b] for at, values in written.items()})
        for t in where[b].nonzero()[:, 0]:
            answer = prompts.targets[b, t], prompts.wrong[b, t]
            totals[0] += float(of_one_position(metric, clean[t], clean[t], *answer))
            totals[1] += float(of_one_position(metric, ablated[t], clean[t], *answer))
    n = int(where.sum())
    return totals[0] / n, totals[1] / n


def assert_rows(result, expected):
    """expected: component -> (baseline, ablated)."""
    assert result.frame["component"].tolist() == list(expected)
    for row, (baseline, ablated) in zip(result.frame.itertuples(), expected.values(), strict=True):
        assert row.baseline == pytest.approx(baseline, abs=2e-6)
        assert row.ablated == pytest.approx(ablated, abs=2e-6)
        assert row.delta == pytest.approx(ablated - baseline, abs=2e-6)
        assert row.ci_low <= row.delta <= row.ci_high


ZEROS = torch.zeros(N_PROMPTS, N_POS, 4)
HEAD_INDEX = {name: (int(name[1]), int(name[3])) for name in HEADS}


def test_zero_ablation_is_a_loop_over_prompts(model, prompts):
    expected = {name: by_hand(model, prompts, {at: ZEROS}) for name, at in HEAD_INDEX.items()}
    assert_rows(ablate_heads(model, prompts, method="zero"), expected)


@pytest.mark.parametrize("over", ["batch", "batch_pos"])
@pytest.mark.parametrize("own_reference", [False, True])
def test_mean_ablation_is_a_loop_over_prompts(model, prompts, over, own_reference):
    reference = random_prompts(seed=7, n=5) if own_reference else prompts
    expected = {}
    for name, (layer, head) in HEAD_INDEX.items():
        mean = torch.zeros(N_POS, 4)
        for tokens in reference.inputs:
            mean += z_of(model, tokens, layer, head) / len(reference)
        if over == "batch_pos":
            mean = sum(mean[t] for t in range(N_POS)) / N_POS * torch.ones(N_POS, 1)
        expected[name] = by_hand(model, prompts, {(layer, head): mean.expand(N_PROMPTS, -1, -1)})
    result = ablate_heads(model, prompts, over=over, **({"reference": reference} if own_reference else {}))
    assert_rows(result, expected)


def test_resampling_is_a_loop_over_prompts(model, prompts):
    reference, order = random_prompts(seed=7), derangement(N_PROMPTS, seed=11)
    assert sorted(order.tolist()) == list(range(N_PROMPTS))
    assert all(order[b] != b for b in range(N_PROMPTS))
    expected = {}
    for name, at in HEAD_INDEX.items():
        others = torch.stack([z_of(model, reference.inputs[order[b]], *at) for b in range(N_PROMPTS)])
        expected[name] = by_hand(model, prompts, {at: others})
    assert_rows(ablate_heads(model, prompts, method="resample", reference=reference, seed=11), expected)


@pytest.mark.parametrize("metric", ["loss", "accuracy", "logit_diff", "prob", "kl"])
def test_every_metric_is_that_of_a_loop_over_positions(metric, prompts):
    model = random_model()
    expected = {name: by_hand(model, prompts, {at: ZEROS}, metric) for name, at in HEAD_INDEX.items()}
    result = ablate_heads(model, prompts, method="zero", metric=metric)
    assert_rows(result, expected)
    assert result.frame["metric"].unique().tolist() == [metric]
    assert result.frame[metric].tolist() == result.frame["ablated"].tolist()


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_sites_ablated_together_are_a_loop_over_prompts(prompts, method):
    model = random_model()

    def written(layer, head):
        if method == "zero":
            return ZEROS
        mean = sum(z_of(model, tokens, layer, head) for tokens in prompts.inputs) / N_PROMPTS
        return mean.expand(N_PROMPTS, -1, -1)

    sets = {"L0H1+L1H0": [(0, 1), (1, 0)], "L1H0+L1H1": [(1, 0), (1, 1)], "L0H0": [(0, 0)]}
    expected = {name: by_hand(model, prompts, {at: written(*at) for at in heads}) for name, heads in sets.items()}
    result = ablate(model, prompts, [["L0H1", "L1H0"], ((1, 0), (1, 1)), "L0H0"], method=method)
    assert_rows(result, expected)
    assert result.frame["head"].isna().tolist() == [True, True, False]
    assert [len(receipts) for receipts in result.receipts] == [2, 2, 1]


@pytest.mark.parametrize("where", ["late", ("parity", "odd"), "mask"], ids=str)
def test_an_ablation_at_some_positions_is_a_loop_over_prompts(prompts, where):
    model = random_model()
    mask = prompts.inputs == 2 if where == "mask" else torch.tensor([[False, False, True, True]]).expand(N_PROMPTS, -1)
    if where == ("parity", "odd"):
        mask = torch.tensor([[False, True, False, True]]).expand(N_PROMPTS, -1)
    expected = {}
    for name, at in HEAD_INDEX.items():
        clean = torch.stack([z_of(model, tokens, *at) for tokens in prompts.inputs])
        expected[name] = by_hand(model, prompts, {at: clean.masked_fill(mask[..., None], 0.0)})
    result = ablate_heads(model, prompts, method="zero", where=mask if where == "mask" else where, batch_size=4)
    assert_rows(result, expected)
    assert {receipts[0].n_values for receipts in result.receipts} == {4 * int(mask.sum())}


def test_a_batch_without_such_a_position_is_left_as_it_is(prompts):
    mask = torch.zeros(N_PROMPTS, N_POS, dtype=torch.bool)
    mask[0] = True
    model = random_model()
    whole = ablate_heads(model, prompts, method="zero", where=mask)
    for_each = ablate_heads(model, prompts, method="zero", where=mask, batch_size=1)
    np.testing.assert_allclose(for_each.frame["delta"], whole.frame["delta"], atol=1e-6)
    assert [receipts[0].fired for receipts in for_each.receipts] == [1, 1, 1, 1]


def test_an_ablation_with_the_counterfactual_is_a_loop_over_prompts(prompts):
    model, other = random_model(), random_prompts(seed=5)
    paired = replace(prompts, counterfactual=other)
    expected = {}
    for name, at in HEAD_INDEX.items():
        theirs = torch.stack([z_of(model, tokens, *at) for tokens in other.inputs])
        expected[name] = by_hand(model, prompts, {at: theirs})
    assert_rows(ablate_heads(model, paired, method="counterfactual", batch_size=4), expected)
    with pytest.raises(InputError, match=r"carry no counterfactual: attach one, dataclasses.replace"):
        ablate_heads(model, prompts, method="counterfactual")


def test_any_edit_is_a_method(prompts):
    model, steer = random_model(), torch.tensor([1.0, 0.0, -2.0, 0.5])
    expected = {}
    for name, at in HEAD_INDEX.items():
        clean = torch.stack([z_of(model, tokens, *at) for tokens in prompts.inputs])
        expected[name] = by_hand(model, prompts, {at: clean + steer})
    result = ablate_heads(model, prompts, method=Add(steer))
    assert_rows(result, expected)
    assert result.title == "Effect of Add-ablation on loss"
    halved = ablate_heads(model, prompts, method=Scale(0.0)).frame
    assert halved["delta"].tolist() == ablate_heads(model, prompts, method="zero").frame["delta"].tolist()
    with pytest.raises(InputError, match="method = 'Scale' takes no reference prompts"):
        ablate_heads(model, prompts, method=Scale(0.0), reference=prompts)


@pytest.mark.parametrize("site", ["embed", "L0H1.pattern", "L1H0.scores", "L1H1.result", "L0H0.q", "embed@1"])
def test_an_edit_that_changes_nothing_has_an_effect_of_exactly_zero(site, prompts):
    def keep(activation):
        return activation

    model = random_model(normalization_type="LN")
    row = ablate(model, prompts, ["L0H0", site, "L1H1.v"], method=keep, metric=["loss", "kl"]).frame
    assert row["delta"].tolist() == [0.0] * 6
    other = ablate(model, prompts, [site], method=lambda x: x * 0.5).frame if "scores" not in site else None
    assert other is None or other["delta"].abs().min() > 1e-6


def outputs_of(model, prompts, sites, **how):
    """The logits that each ablation was measured on: clean, then one for each ablation."""
    seen = []

    def keep(outputs, prompts):
        seen.append(outputs.clone())
        return torch.zeros(len(prompts))

    ablate(model, prompts, sites, metric=keep, **how)
    return seen


@pytest.mark.parametrize("site", ["L0H0.q", "L1H1.v", "L0.attn", "L1.mlp", "L1.resid_pre", "L1.resid_post"])
def test_sharing_the_clean_prefix_gives_a_full_pass_bit_for_bit(site, prompts):
    model = random_model(normalization_type="LN")
    clean, ablated = outputs_of(model, prompts, [site], method="zero")
    letter = site.partition(".")[2]
    name = f"blocks.{site[1]}." + (f"hook_{letter}" if "_" in letter else f"attn.hook_{letter}")
    name = {"attn": f"blocks.{site[1]}.hook_attn_out", "mlp": f"blocks.{site[1]}.hook_mlp_out"}.get(letter, name)

    def zero(activation, hook):
        activation = activation.clone()
        if "H" in site:
            activation[:, :, int(site[3])] = 0
        else:
            activation[:] = 0
        return activation

    with torch.no_grad():
        assert torch.equal(clean, model(prompts.inputs))
        assert torch.equal(ablated, model.run_with_hooks(prompts.inputs, fwd_hooks=[(name, zero)]))


def test_whole_layers_lose_attention_and_mlp(prompts):
    model = random_model(use_biases=False)
    result = ablate_layers(model, prompts, method="zero")
    assert result.frame["component"].tolist() == ["L0", "L1"]
    for layer in range(2):  # a layer that writes nothing is the identity
        without = random_model(use_biases=False)
        with torch.no_grad():
            without.blocks[layer].attn.W_O.zero_()
            without.blocks[layer].mlp.W_out.zero_()
            sums, counts = prompts.loss(without(prompts.inputs))
        assert result.frame["ablated"][layer] == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-6)


def test_mlps_are_those_of_the_layers_that_have_one(prompts):
    model = random_model(mlp_layers=(1,))
    result = ablate_mlps(model, prompts, method="zero")
    assert result.frame["component"].tolist() == ["L1.mlp"]
    with torch.no_grad():
        model.blocks[1].mlp.W_out.zero_()
        model.blocks[1].mlp.b_out.zero_()
        sums, counts = prompts.loss(model(prompts.inputs))
    assert result.frame["ablated"][0] == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-6)
    with pytest.raises(InputError, match="the model has no feed-forward part in any layer"):
        ablate_mlps(random_model(attn_only=True), prompts)


@pytest.mark.parametrize("by", ["parity", "late"])
def test_the_parts_of_a_split_are_loops_and_recombine_to_the_whole(by, prompts):
    model = random_model()
    split = ablate_heads(model, prompts, method="zero", by=by).frame
    whole = ablate_heads(model, prompts, method="zero").frame.set_index("component")
    values = {"parity": ["even", "odd"], "late": [False, True]}[by]
    assert split[by].tolist() == values * 4
    for name, at in HEAD_INDEX.items():
        recombined = 0.0
        for value, written in zip((0, 1), values, strict=True):
            where = prompts.scored & (prompts.labels[by] == value)
            row = split[(split["component"] == name) & (split[by] == written)].iloc[0]
            baseline, ablated = by_hand(model, prompts, {at: ZEROS}, where=where)
            assert (row["baseline"], row["ablated"]) == pytest.approx((baseline, ablated), abs=2e-6)
            assert row["n_prompts"] == int(where.any(1).sum())
            recombined += row["delta"] * int(where.sum()) / int(prompts.scored.sum())
        assert recombined == pytest.approx(whole["delta"][name], abs=1e-6)


def test_only_values_that_are_scored_somewhere_make_a_part(prompts):
    only_late = prompts.score_only(prompts.labels["late"])
    assert ablate(random_model(), only_late, ["L0H0"], by="late").frame["late"].tolist() == [True]


def test_a_metric_of_ones_own_is_a_mean_over_prompts(prompts):
    model = random_model()

    def first_logit(outputs, prompts):
        return outputs[:, -1, 0] * len(prompts) / len(prompts)

    result = ablate(model, prompts, ["L1H0"], method="zero", metric=["loss", first_logit], batch_size=4).frame
    ablated = [one_pass(model, tokens, {(1, 0): torch.zeros(N_POS, 4)})[-1, 0].item() for tokens in prompts.inputs]
    row = result[result["metric"] == "first_logit"].iloc[0]
    assert row["ablated"] == pytest.approx(sum(ablated) / N_PROMPTS, abs=1e-6)
    assert result["metric"].tolist() == ["loss", "first_logit"]


def test_an_idle_head_has_effects_of_exactly_zero_and_is_kept(prompts):
    model = random_model()
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    for method in ("zero", "mean", "resample"):
        frame = ablate_heads(model, prompts, method=method, metric=["loss", "kl", "accuracy"]).frame
        idle = frame[frame["component"] == "L0H1"]
        assert len(idle) == 3
        assert (idle[["delta", "ci_low", "ci_high"]] == 0.0).all(axis=None)
        assert idle[idle["metric"] == "kl"]["ablated"].item() == 0.0
        working = frame[(frame["component"] == "L0H0") & (frame["metric"] == "kl")]
        assert working["delta"].item() > 1e-4


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_the_batch_size_does_not_matter(method, batch_size, prompts):
    model = random_model()
    whole = ablate_heads(model, prompts, method=method, metric=["loss", "kl"], by="parity").frame
    batched = ablate_heads(model, prompts, method=method, metric=["loss", "kl"], by="parity", batch_size=batch_size)
    numbers = ["baseline", "ablated", "delta", "ci_low", "ci_high"]
    np.testing.assert_allclose(batched.frame[numbers], whole[numbers], atol=2e-6)
    assert batched.frame["n_prompts"].tolist() == whole["n_prompts"].tolist()


def test_receipts_say_how_much_was_written(prompts):
    model = random_model()
    result = ablate_heads(model, prompts, method="zero", batch_size=4)
    for (receipt,), (layer, head) in zip(result.receipts, HEAD_INDEX.values(), strict=True):
        assert receipt.fired == 3  # batches of 4, 4 and 1
        assert receipt.n_values == N_PROMPTS * N_POS * 4
        mean = np.mean([z_of(model, tokens, layer, head).abs().mean().item() for tokens in prompts.inputs])
        assert receipt.mean_abs_change == pytest.approx(mean, rel=1e-5)


def test_the_table_has_these_columns(prompts):
    common = ["baseline", "ablated", "delta", "ci_low", "ci_high", "n_prompts", "loss"]
    assert list(ablate_heads(random_model(), prompts).frame) == ["layer", "head", "component", "metric", *common]
    split = ablate_heads(random_model(), prompts, by="parity").frame
    assert list(split) == ["layer", "head", "component", "metric", "parity", *common]
    assert split["n_prompts"].max() <= N_PROMPTS


def test_the_matrix_is_layer_by_head(prompts):
    result = ablate_heads(random_model(), prompts, metric=["loss", "kl"], by="parity")
    matrix = result.matrix("delta", metric="kl", parity="odd")
    assert matrix.shape == (2, 2)
    for layer, head in itertools.product(range(2), range(2)):
        frame = result.frame
        row = frame[(frame["layer"] == layer) & (frame["head"] == head) & (frame["metric"] == "kl")]
        assert matrix[layer, head] == row[row["parity"] == "odd"]["delta"].item()


def test_the_settings_say_how_to_measure_again(prompts):
    result = ablate_heads(random_model(), prompts, method="resample", seed=5, confidence=0.9)
    assert {"method": "resample", "seed": 5, "confidence": 0.9, "n_prompts": 9}.items() <= result.settings.items()
    again = ablate_heads(random_model(), prompts, method="resample", seed=5, confidence=0.9)
    assert again.frame.equals(result.frame)
    other = ablate_heads(random_model(), prompts, method="resample", seed=6, confidence=0.9)
    assert not other.frame["ablated"].equals(result.frame["ablated"])


def test_intervals_are_paired():
    """Prompts differ by far more than the ablation does; the same prompts in both arms still see it."""
    model, prompts = random_model(), random_prompts(n=200)
    with torch.no_grad():
        model.blocks[1].attn.W_O[0] *= 0.02
    row = ablate(model, prompts, ["L1H0"], method="zero").frame.iloc[0]
    sums, counts = prompts.loss(model(prompts.inputs).detach())
    spread = float((sums / counts.clamp(min=1))[counts > 0].std()) / math.sqrt(200)
    assert row["ci_high"] - row["ci_low"] < spread / 5


# References and derangements.


@pytest.mark.parametrize("n", [2, 3, 17])
def test_a_derangement_leaves_nothing_in_place(n):
    for seed in range(30):
        order = derangement(n, seed)
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()


def test_derangements_of_four_are_drawn_evenly():
    drawn = [tuple(derangement(4, seed).tolist()) for seed in range(1800)]
    every = [p for p in itertools.permutations(range(4)) if all(p[i] != i for i in range(4))]
    assert set(drawn) == set(every)
    for one in every:  # 200 each, with a standard error of 13.3
        assert 140 < drawn.count(one) < 260


# Refusals; the valid examples are above.

WRONG = {
    "layer": ({"sites": ["L2H0"]}, "the model has 2 layers"),
    "head": ({"sites": ["L0H2"]}, "L0 has heads H0 to H1"),
    "position": ({"sites": []}, "sites is empty: name at least one site"),
    "empty set": ({"sites": [[]]}, "a set of sites is empty"),
    "site twice": ({"sites": [["L0H0", (0, 0)]]}, r"the set L0H0\+L0H0 names a site twice"),
    "written wrongly": ({"sites": ["H0L0"]}, "'H0L0' is not understood"),
    "metric": ({"metric": []}, "metric is empty: choose loss"),
    "metric twice": ({"metric": ["loss", "loss"]}, "two metrics are called 'loss'"),
    "label": ({"by": "segment"}, "by = 'segment' is no label of these prompts: choose parity, late"),
    "batch size": ({"batch_size": 0}, "batch_size = 0 is no number of prompts"),
    "confidence": ({"confidence": 95.0}, r"confidence = 95\.0 is no probability"),
    "reference for zero": ({"method": "zero", "reference": random_prompts()}, "takes no reference prompts"),
    "mean over nothing": ({"reference": random_prompts(n=0)}, "reference holds 0 prompts: a mean over nothing"),
    "over without a mean": (
        {"method": "zero", "over": "batch_pos"},
        "over = 'batch_pos' says what a mean is taken over",
    ),
    "other count": (
        {"method": "resample", "reference": random_prompts(n=4)},
        "reference has 4 prompts where 9 are needed, one for each",
    ),
    "other positions": (
        {"reference": Prompts.from_tensors(torch.zeros(9, 3, dtype=torch.long))},
        "reference has 3 positions, the prompts 4",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_measured_is_refused_in_one_line(what, prompts):
    how, message = WRONG[what]
    how = {"sites": ["L0H0"]} | how
    with pytest.raises(InputError, match=message) as refusal:
        ablate(random_model(), prompts, **how)
    assert "\n" not in str(refusal.value)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "meen"}, "method = 'meen' is unknown: choose 'zero', 'mean' or 'resample'"),
        (
            {"metric": "los"},
            "metric = 'los' is unknown: choose loss, accuracy, excess_risk, logit_diff, prob, kl or give a function",
        ),
        ({"metric": 3}, "metric = 3 is neither a name nor a function"),
        ({"over": "pos"}, "over = 'pos' is unknown: choose 'batch'"),
        ({"method": "zero", "over": "pos"}, "over = 'pos' says what a mean is taken over"),
    ],
    ids=str,
)
def test_an_option_that_does_not_exist_is_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        ablate(random_model(), prompts, ["L0H0"], **how)


def test_no_prompts_and_a_single_prompt_are_refused(prompts):
    model = random_model()
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        ablate_heads(model, prompts[:0])
    with pytest.raises(InputError, match="resampling among 1 reference prompts"):
        ablate_heads(model, prompts[:1], method="resample")
    with pytest.raises(InputError, match="needs at least 2 prompts"):
        ablate_heads(model, Prompts.from_tensors(prompts.inputs[:1]))
    nothing = prompts.score_only(torch.zeros(9, N_POS, dtype=torch.bool))
    with pytest.raises(InputError, match="none of the 9 prompts has a scored position"):
        ablate_heads(model, nothing)


def test_a_logit_difference_without_a_wrong_answer_is_refused(prompts):
    without = Prompts.from_tensors(prompts.inputs)
    with pytest.raises(InputError, match="needs a wrong answer to compare with"):
        ablate_heads(random_model(), without, metric="logit_diff")


def test_a_metric_that_is_not_finite_is_refused(prompts):
    def undefined(outputs, prompts):
        return torch.full((len(prompts),), torch.nan)

    with pytest.raises(InputError, match="9 of the 9 sums are not finite"):
        ablate(random_model(), prompts, ["L0H0"], metric=undefined)


def test_a_metric_or_label_called_like_a_column_is_refused(prompts):
    def delta(outputs, prompts):
        return torch.zeros(len(prompts))

    with pytest.raises(InputError, match="the metric is called 'delta', like a column"):
        ablate(random_model(), prompts, ["L0H0"], metric=delta)
    labelled = Prompts.from_tensors(prompts.inputs, labels={"head": prompts.inputs})
    with pytest.raises(InputError, match="by = 'head' is also a column"):
        ablate(random_model(), labelled, ["L0H0"], by="head")


@pytest.mark.parametrize("wrong", [lambda o, p: o.mean(), lambda o, p: o, lambda o, p: 0.0])  # noqa: ARG005
@pytest.mark.refusal
def test_a_metric_that_gives_no_value_per_prompt_is_refused(wrong, prompts):
    with pytest.raises(InputError, match=r"return one value per prompt, \[9\]"):
        ablate(random_model(), prompts, ["L0H0"], metric=wrong)

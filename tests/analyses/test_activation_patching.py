from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import patch_activations
from analyses.paired_runs import share_interval
from analyses.patching_figures import effect_map, patching_figure
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import induction_circuit
from tasks import BigramICL, BigramStatistics, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

N_PROMPTS, N_POS, N_VOCAB = 12, 4, 5
VARIANTS = {
    "MLP": {},
    "attention only": {"attn_only": True},
    "LN, parallel": {"normalization_type": "LN", "parallel_attn_mlp": True},
    "LN, relu attention": {"normalization_type": "LN", "attn_fn": "relu", "attention_dir": "bidirectional"},
}


def random_model(**options) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": N_POS, "n_heads": 2, "d_vocab": N_VOCAB}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.35)
    return model


def random_prompts(seed=0, n=N_PROMPTS) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_VOCAB, (n, N_POS), generator=generator)
    return Prompts.from_tensors(
        tokens,
        scored=torch.rand((n, N_POS), generator=generator) < 0.7,
        wrong=torch.randint(N_VOCAB, (n, N_POS), generator=generator),
        labels={"parity": torch.arange(N_POS).remainder(2).expand(n, -1), "fourth": tokens == 4},
        label_names={"parity": ("even", "odd")},
    )


@pytest.fixture(params=VARIANTS)
def model(request):
    return random_model(**VARIANTS[request.param])


@pytest.fixture
def prompts():
    return replace(random_prompts(), counterfactual=random_prompts(seed=9))


# One forward and one hook for every patch: what it should measure.

POINTS = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "z": "attn.hook_z", "q": "attn.hook_q", "k": "attn.hook_k"}
POINTS |= {"v": "attn.hook_v", "pattern": "attn.hook_pattern", "scores": "attn.hook_attn_scores"}
POINTS |= {"result": "attn.hook_result", "resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post"}


def patched_logits(model, tokens, other_tokens, site, where):
    """The logits of a run whose activation, at the positions ``where`` of each prompt, comes from another run."""
    layer, component, head = site
    name = f"blocks.{layer}.{POINTS[component]}"

    def write(activation, hook):
        edited = activation.clone()
        for b, t in where.nonzero().tolist():
            at = (b, head, t) if component in ("pattern", "scores") else (b, t) if head is None else (b, t, head)
            edited[at] = source[at]
        return edited

    with torch.no_grad():
        source = model.run_with_cache(other_tokens, names_filter=name)[1][name]
        return model.run_with_hooks(tokens, fwd_hooks=[(name, write)])


def at_positions(metric, logits, clean, prompts):
    """The metric of every position, [batch, pos]."""
    log_p, clean_log_p = logits.double().log_softmax(-1), clean.double().log_softmax(-1)

    def picked(values, tokens):
        return values.gather(-1, tokens[..., None])[..., 0]

    if metric == "loss":
        return -picked(log_p, prompts.targets)
    if metric == "logit_diff":
        return picked(logits.double(), prompts.targets) - picked(logits.double(), prompts.wrong)
    return (clean_log_p.exp() * (clean_log_p - log_p)).sum(-1)


ALL = torch.ones(N_PROMPTS, N_POS, dtype=torch.bool)


def by_hand(model, prompts, site, where=ALL, metric="loss", direction="noising", scored=None):
    """(baseline, other, patched) as ratios of sums over scored positions."""
    scored = prompts.scored if scored is None else scored
    mine, theirs = prompts.inputs, prompts.counterfactual.inputs
    base, source = (mine, theirs) if direction == "noising" else (theirs, mine)
    with torch.no_grad():
        clean, at_base, at_source = model(mine), model(base), model(source)
    runs = at_base, at_source, patched_logits(model, base, source, site, where)
    return [float(at_positions(metric, logits, clean, prompts)[scored].mean()) for logits in runs]


def assert_row(row, expected):
    baseline, other, patched = expected
    assert (row.baseline, row.other, row.patched) == pytest.approx((baseline, other, patched), abs=3e-6)
    assert row.delta == pytest.approx(patched - baseline, abs=3e-6)
    assert row.ci_low <= row.delta <= row.ci_high
    if not np.isnan(row.effect):
        assert row.effect == pytest.approx((patched - baseline) / (other - baseline), abs=1e-4, rel=1e-4)
        assert row.effect_low <= row.effect <= row.effect_high


def only(*positions):
    where = torch.zeros(N_PROMPTS, N_POS, dtype=torch.bool)
    where[:, list(positions)] = True
    return where


@pytest.mark.parametrize(
    ("component", "direction"),
    [("resid_pre", "noising"), ("attn", "denoising"), ("z", "noising"), ("pattern", "denoising")],
)
def test_every_patch_is_an_explicit_forward_with_a_hook(model, prompts, component, direction):
    result = patch_activations(model, prompts, sites=component, positions="each", direction=direction, batch_size=5)
    heads = [0, 1] if component in ("z", "pattern") else [None]
    rows = result.frame.itertuples()
    for layer in range(2):
        for head in heads:
            for t in range(N_POS):
                row = next(rows)
                assert (row.layer, row.pos) == (layer, t)
                assert head is None or head == row.head
                site = (layer, component, head)
                assert_row(row, by_hand(model, prompts, site, only(t), "loss", direction))
    assert next(rows, None) is None
    assert len(result.receipts) == len(result.frame)


@pytest.mark.parametrize("component", ["mlp", "q", "k", "v", "scores", "result", "resid_post"])
def test_every_component_is_an_explicit_forward_with_a_hook(prompts, component):
    model = random_model()
    frame = patch_activations(model, prompts, sites=component).frame
    assert len(frame) == (2 if component in ("mlp", "resid_post") else 4)
    for row in frame.itertuples():
        head = None if component in ("mlp", "resid_post") else row.head
        assert_row(row, by_hand(model, prompts, (row.layer, component, head)))
        assert row.pos == "all"


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_every_metric_is_judged_by_the_prompts_answers_and_their_run(prompts, metric, direction):
    model = random_model()
    for row in patch_activations(model, prompts, sites="z", metric=metric, direction=direction).frame.itertuples():
        site = (row.layer, "z", row.head)
        assert_row(row, by_hand(model, prompts, site, ALL, metric, direction))
        if metric == "kl":
            assert (row.baseline if direction == "noising" else row.other) == 0.0


def test_positions_are_chosen_by_a_label_its_values_or_a_mask(prompts):
    model = random_model()
    site = (0, "resid_pre", None)
    of_label = patch_activations(model, prompts, sites="resid_pre", positions="parity").frame
    assert of_label["pos"].tolist() == ["even", "odd"] * 2
    assert_row(of_label.iloc[1], by_hand(model, prompts, site, only(1, 3)))
    fourth = by_hand(model, prompts, site, prompts.inputs == 4)
    for positions in (("fourth",), ("fourth", True), prompts.inputs == 4):
        result = patch_activations(model, prompts, sites=["L0.resid_pre"], positions=positions, batch_size=2)
        assert_row(result.frame.iloc[0], fourth)
        assert result.receipts[0][0].n_values == 8 * int((prompts.inputs == 4).sum())
    both = patch_activations(model, prompts, sites=["L0.resid_pre"], positions=("parity", "even", "odd")).frame
    alone = patch_activations(model, prompts, sites=["L0.resid_pre"]).frame
    assert both["delta"].tolist() == alone["delta"].tolist()
    assert both["pos"].tolist() == ["parity even odd"]


def test_positions_by_number_may_count_from_the_end(prompts):
    model = random_model()
    frame = patch_activations(model, prompts, sites="attn", positions=[-1, 0]).frame
    each = patch_activations(model, prompts, sites="attn", positions="each").frame
    assert frame["delta"].tolist() == [each["delta"][k] for k in (3, 0, 7, 4)]
    written = patch_activations(model, prompts, sites=["L1.attn@3"]).frame
    assert written["delta"].tolist() == [each["delta"][7]]
    assert written["component"].tolist() == ["L1.attn@3"]


def test_sites_patched_together_are_one_run_with_all_hooks(prompts):
    model, other = random_model(normalization_type="LN"), prompts.counterfactual
    row = patch_activations(model, prompts, sites=[["L0H0", "L0H1", "L0.mlp"]]).frame.iloc[0]
    with torch.no_grad():
        cache = model.run_with_cache(other.inputs)[1]
        names = ["blocks.0.attn.hook_z", "blocks.0.hook_mlp_out"]
        hooks = [(name, lambda _, hook: cache[hook.name]) for name in names]
        sums, counts = prompts.loss(model.run_with_hooks(prompts.inputs, fwd_hooks=hooks))
    assert row["patched"] == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-6)
    assert row["component"] == "L0H0+L0H1+L0.mlp"


def test_the_effect_may_be_split_by_a_label(prompts):
    model = random_model()
    frame = patch_activations(model, prompts, sites=["L1H0"], by="parity").frame
    assert frame["parity"].tolist() == ["even", "odd"]
    for row, value in zip(frame.itertuples(), (0, 1), strict=True):
        scored = prompts.scored & (prompts.labels["parity"] == value)
        assert_row(row, by_hand(model, prompts, (1, "z", 0), scored=scored))
        assert row.n_prompts == int(scored.any(1).sum())


SITES = ["resid_pre", "attn", "z", "q", "k", "v", "pattern", "scores", "result", "embed"]


@pytest.mark.parametrize(("variant", "positions"), [*((name, None) for name in VARIANTS), ("LN, parallel", [2, 0])])
def test_patching_a_run_with_itself_changes_nothing_exactly(variant, positions, prompts):
    model = random_model(**VARIANTS[variant])
    result = patch_activations(model, prompts, prompts, sites=SITES, positions=positions, metric=["loss", "kl"])
    assert result.frame["delta"].tolist() == [0.0] * len(result.frame)
    assert (result.frame[["ci_low", "ci_high"]] == 0.0).all(axis=None)
    assert result.frame["effect"].isna().all()
    assert any("no way to have gone a share of" in note for note in result.notes)
    assert {receipt.mean_abs_change for receipts in result.receipts for receipt in receipts} == {0.0}


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patching_the_whole_stream_before_layer_0_gives_the_other_run_exactly(model, prompts, direction):
    seen = []

    def keep(outputs, prompts):
        seen.append(outputs)
        return outputs[:, -1, 0]

    sites = ["L0.resid_pre"] if model.has_positions else []
    patch_activations(model, prompts, sites=sites, direction=direction, metric=keep)
    base, other, patched = seen
    assert torch.equal(patched, other)
    assert not torch.equal(base, other)
    whole = patch_activations(model, prompts, sites=[*sites, "embed"], direction=direction).frame
    assert whole["patched"].tolist() == pytest.approx(whole["other"].tolist(), abs=1e-12)
    assert whole["effect"].dropna().to_numpy() == pytest.approx(1.0, abs=1e-12)


def test_the_batch_size_does_not_matter(prompts):
    model = random_model()
    whole = patch_activations(model, prompts, sites=["z", "resid_pre"], positions="each").frame
    batched = patch_activations(model, prompts, sites=["z", "resid_pre"], positions="each", batch_size=5).frame
    numbers = ["baseline", "other", "delta", "ci_low", "ci_high"]
    np.testing.assert_allclose(batched[numbers], whole[numbers], atol=3e-6)


def test_a_batch_without_a_chosen_position_is_left_as_it_is(prompts):
    mask = torch.zeros(N_PROMPTS, N_POS, dtype=torch.bool)
    mask[0] = True
    for batch_size in (1, 12):
        result = patch_activations(random_model(), prompts, positions=mask, batch_size=batch_size)
        assert result.receipts[0][0].n_values == N_POS * 8
        assert result.receipts[0][0].fired == 1


# A circuit that is known.


@pytest.fixture(scope="module")
def task():
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake that the cat hid")
    return BigramICL(stats, n_triggers=2, seq_len=16)


@pytest.fixture(scope="module")
def circuit(task):
    return induction_circuit(d_vocab=task.d_vocab, n_ctx=16, triggers=task.trigger_tokens, idle_heads=1)


def test_in_the_built_circuit_another_answer_travels_through_the_induction_heads_value(circuit, task):
    prompts = task.sample(40, seed=0)
    how = {"sites": ["z", "q", "k", "v", "pattern"], "metric": "logit_diff", "by": "segment"}
    frame = patch_activations(circuit.model, prompts, task, **how).frame.set_index("component")
    effect = frame["effect"]
    assert frame["segment"].unique().tolist() == ["in_context"]
    assert effect["L1H0"] == pytest.approx(1, abs=1e-3)
    assert effect["L1H0.v"] == pytest.approx(1, abs=1e-3)
    still = ["L0H0", "L0H1", "L1H1", "L0H0.q", "L0H0.k", "L1H0.q", "L1H0.pattern", "L1H1.v", "L0H1.v"]
    assert effect[still].abs().max() < 1e-3


def test_the_answer_is_read_where_the_outputs_stand(circuit, task):
    """The stream before layer 1 differs only where an output of a trigger stands, and right behind it."""
    prompts = task.sample(40, seed=0)
    other = task.counterfactual(prompts, seed=1)
    replaced = prompts.inputs != other.inputs
    for mask, expected in ((replaced, 1.0), (~replaced, 0.0)):
        how = {"sites": ["L1.resid_pre"], "positions": mask, "metric": "logit_diff"}
        row = patch_activations(circuit.model, prompts, other, **how).frame.iloc[0]
        assert row["effect"] == pytest.approx(expected, abs=1e-3)


def test_real_vectors_are_patched_as_well():
    task = SparseRegression(d=3, sparsity=1, n_context=6)
    prompts = task.sample(20, seed=0)
    config = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=7, n_heads=2, d_in=4, d_out=1)
    frame = patch_activations(HookedTransformer(config), prompts, task, metric="excess_risk").frame
    assert frame["patched"][0] == pytest.approx(frame["other"][0], rel=1e-12)


# Statistics of the effect.


def test_the_interval_of_the_effect_covers_the_truth():
    rng = np.random.default_rng(0)
    n, repeats = 60, 1000
    ways = rng.normal(2.0, 1.0, (n, repeats))
    differences = 0.3 * ways + rng.normal(0.0, 0.5, (n, repeats))
    interval = share_interval(differences, ways, np.ones((n, repeats)), 0.95, 0)
    covered = (interval.low <= 0.3) & (interval.high >= 0.3)
    assert 0.93 < covered.mean() < 0.97


def test_two_runs_that_do_not_differ_have_deltas_and_no_effects(prompts):
    model = random_model()
    with torch.no_grad():
        model.unembed.W_U.zero_()
    result = patch_activations(model, prompts, sites="attn", metric=["loss", "accuracy"])
    assert result.frame["effect"].isna().all()
    assert (result.frame["delta"] == 0.0).all()
    assert "4 of 4 rows have a delta but no effect" in result.notes[0]


def test_the_settings_say_how_to_measure_again(task, circuit):
    prompts = task.sample(8, seed=3)
    result = patch_activations(circuit.model, prompts, task, sites="z", seed=4, confidence=0.9)
    expected = {"direction": "noising", "seed": 4, "confidence": 0.9, "n_prompts": 8, "prompts_seed": 3}
    assert (expected | {"counterfactual_seed": 4, "positions": None}).items() <= result.settings.items()
    again = patch_activations(circuit.model, prompts, task.counterfactual(prompts, seed=4), sites="z", confidence=0.9)
    assert again.frame["delta"].tolist() == result.frame["delta"].tolist()


def test_effects_of_heads_are_a_matrix(prompts):
    result = patch_activations(random_model(), prompts, sites="z")
    assert result.matrix("delta").flatten().tolist() == result.frame["delta"].tolist()


# Refusals; the valid examples are above.

WRONG = {
    "sites": ({"sites": []}, "sites is empty"),
    "a component": ({"sites": "resid_mod"}, "'resid_mod' is not understood"),
    "a part the model lacks": ({"sites": "mlp"}, "the model has no mlp: there is no hook point"),
    "a site it lacks": ({"sites": ["L0.mlp"]}, r"L0\.mlp does not exist"),
    "a head": ({"sites": ["L0H2"]}, "L0 has heads H0 to H1"),
    "a position": ({"positions": [4]}, r"position 4 of L0\.resid_pre does not exist"),
    "no position": ({"positions": []}, "positions is empty"),
    "a label": ({"positions": "segment"}, "neither 'each' nor a label of these prompts: choose parity, fourth"),
    "a value": ({"positions": ("parity", "prime")}, "'prime' is no value of label 'parity'"),
    "a mask": ({"positions": torch.zeros(12, 4, dtype=torch.bool)}, "the mask holds at none"),
    "positions twice": ({"sites": ["L0.attn@1"], "positions": "each"}, r"site L0\.attn@1 says positions itself"),
    "a metric": ({"metric": []}, "metric is empty"),
    "by": ({"by": "segment"}, "by = 'segment' is no label"),
    "batches": ({"batch_size": 0}, "batch_size = 0"),
    "another length": ({"counterfactual": random_prompts(n=3)}, r"\[3, 4\] on cpu, the prompts torch\.int64 \[12, 4\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_patched_is_refused_in_one_line(what, prompts):
    how, message = WRONG[what]
    with pytest.raises(InputError, match=message) as refusal:
        patch_activations(random_model(attn_only=True), prompts, **how)
    assert "\n" not in str(refusal.value)


def test_prompts_without_a_counterfactual_are_refused():
    with pytest.raises(InputError, match="carry no counterfactual: give counterfactual=, prompts or their task"):
        patch_activations(random_model(), random_prompts())
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        patch_activations(random_model(), random_prompts(n=0), random_prompts(n=0))


@pytest.mark.refusal
def test_a_direction_that_does_not_exist_is_refused(prompts):
    with pytest.raises(InputError, match="direction = 'noise' is unknown: choose 'noising' or 'denoising'"):
        patch_activations(random_model(), prompts, direction="noise")


# Figures.


def test_the_map_shows_every_effect_at_its_site_and_position(prompts):
    result = patch_activations(random_model(), prompts, sites="resid_pre", positions="each", metric=["loss", "kl"])
    figure = result.plot()
    assert len(figure.data) == 2
    for metric, trace in zip(("loss", "kl"), figure.data, strict=True):
        for row in result.frame[result.frame["metric"] == metric].itertuples():
            place = list(trace.y).index(row.component), list(trace.x).index(str(row.pos))
            assert trace.z[place] == row.effect or np.isnan(row.effect)
            clear = row.effect_low > 0 or row.effect_high < 0
            assert trace.text[place[0]][place[1]].endswith("*") == clear


def test_heads_are_drawn_by_layer_and_head_and_mixtures_as_bars(prompts):
    heads = patch_activations(random_model(), prompts, sites="z").plot().data
    assert [list(heads[0].y), list(heads[0].x)] == [["L0", "L1"], ["H0", "H1"]]
    bars = patch_activations(random_model(), prompts, sites=["L0H1", "L1.mlp"]).plot().data
    assert [bar.name for bar in bars] == ["L0H1", "L1.mlp"]


def test_a_small_effect_that_is_clear_is_not_written_as_nothing():
    rows = [(0.004, 0.003, 0.005), (-0.00004, -0.00005, -0.00003), (0.004, -0.1, 0.1), (-0.25, -0.3, -0.2), (0.0, 0, 1)]
    frame = pd.DataFrame(rows, columns=["effect", "effect_low", "effect_high"])
    frame = frame.assign(metric="loss", component="L0", pos=range(len(rows)))
    (trace,) = effect_map(frame, down="component", across="pos", title="").data
    assert list(trace.text[0]) == ["0.004*", "-4e-5*", "0.00", "-0.25*", "0.00"]


def test_the_colours_of_a_map_say_what_they_stand_for():
    ends = {"effect_low": 0.2, "effect_high": 0.4, "ci_low": 1.0, "ci_high": 3.0}
    frame = pd.DataFrame(
        {"component": "L0.resid_pre", "pos": [0, 1], "metric": "loss", "effect": 0.3, "delta": 2.0} | ends
    )
    for shown, said in ((frame, "effect (share of the way)"), (frame.assign(effect=np.nan), "delta")):
        assert patching_figure(shown, title="").layout.coloraxis.colorbar.title.text == said

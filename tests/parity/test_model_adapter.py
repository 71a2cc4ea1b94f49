"""Every analysis gives the same for the same weights, whoever's class holds them."""

from dataclasses import replace
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch

from analyses import (
    Circuit,
    ablate,
    ablate_heads,
    ablate_layers,
    ablate_mlps,
    attribute_edges,
    attribute_heads,
    circuit_recall,
    compare_predictors,
    discover_circuit,
    evaluate_circuit,
    memory_recall,
    patch_activations,
    patch_paths,
    score_attention_patterns,
)
from analyses.interaction import ablate_pairs
from interp import HookedTransformer, HookedTransformerConfig, InputError
from interp.conversion import from_transformer_lens, to_transformer_lens
from interp.edits import Scale
from interp.interventions import Intervention, Zero, intervene
from interp.model_adapter import activations, hooked, outputs, outputs_from
from interp.sites import Site
from tasks.prompts import Prompts

TRANSFORMER_LENS_3 = int(version("transformer-lens").partition(".")[0]) < 4
D_VOCAB, N_CTX = 11, 9


def shaken(weights):
    """Gains, shifts and biases too, so that none can hide."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)


def lens_3(**architecture):
    config = {"n_layers": 2, "d_model": 12, "n_ctx": N_CTX, "d_vocab": D_VOCAB, "n_heads": 2}
    own = HookedTransformer(HookedTransformerConfig(**config | architecture))
    shaken(own.parameters())
    return own, to_transformer_lens(own)


def bridged(bridge):
    shaken({id(weight): weight for weight in bridge.original_model.parameters()}.values())
    return from_transformer_lens(bridge), bridge


def gpt2(**config):
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    config |= {"n_layer": 2, "n_embd": 12, "n_head": 2, "n_positions": N_CTX, "vocab_size": D_VOCAB}
    hf_config = GPT2Config(bos_token_id=0, eos_token_id=0, **config)
    return build_bridge_from_module(GPT2LMHeadModel(hf_config).eval(), "GPT2LMHeadModel", hf_config=hf_config)


def native(**architecture):
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    config = {"n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 6, "n_ctx": N_CTX, "d_vocab": D_VOCAB, "seed": 0}
    return boot_native(TransformerBridgeConfig(architecture="TransformerLensNative", **config | architecture))


def compatible(bridge):
    """With weights folded and centred, as TransformerLens' compatibility mode does."""
    shaken(bridge.original_model.parameters())
    bridge.enable_compatibility_mode(disable_warnings=True)
    return from_transformer_lens(bridge), bridge


PAIRS = {
    "3.9, attention only": partial(lens_3, attn_only=True),
    "3.9, LN, MLP": partial(lens_3, normalization_type="LN", act_fn="gelu_new"),
    "3.9, parallel": partial(lens_3, parallel_attn_mlp=True, n_heads=3),
    "bridge, GPT-2": lambda: bridged(gpt2()),
    "bridge, GPT-2, compatibility mode": lambda: compatible(gpt2()),
    "bridge, native, attention only": lambda: bridged(native(attn_only=True, normalization_type=None)),
    "bridge, native, MLP": lambda: bridged(native(normalization_type="LN", act_fn="relu", d_mlp=20)),
}


def made(name):
    """The two models: with the same weights in every run, though the classes draw them from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PAIRS[name]()


def marked(name):
    mark = pytest.mark.transformer_lens_3 if name.startswith("3.9") else pytest.mark.transformer_lens_4
    return pytest.param(name, marks=mark)


@pytest.fixture(params=map(marked, PAIRS))
def pair(request):
    return made(request.param)


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(D_VOCAB, (16, N_CTX), generator=generator)
    wrong = torch.randint(D_VOCAB, (16, N_CTX), generator=generator)
    return Prompts.from_tensors(tokens, wrong=wrong)


def assert_same(mine, theirs, *, but=()):
    assert list(mine.frame) == list(theirs.frame)
    for name in mine.frame:
        if name in but:
            continue
        a, b = mine.frame[name], theirs.frame[name]
        if name == "crosstalk":  # divided by a diagonal that may all but vanish: its inverse is what is well determined
            a, b = 1 / a, 1 / b
        if a.dtype.kind == "f":
            # shares of a gap: what is the same to 1e-5 is divided by what may be a tenth of a nat
            within = 1e-4 if name.startswith("effect") else 1e-5
            np.testing.assert_allclose(a.to_numpy(float), b.to_numpy(float), atol=within, rtol=1e-5, err_msg=name)
        else:
            assert a.equals(b), name


def test_outputs_are_the_same(pair, prompts):
    mine, theirs = (outputs(model, prompts.inputs) for model in pair)
    assert float((mine - theirs).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_ablations_of_heads_are_the_same(pair, prompts, method):
    metric = ["loss", "accuracy", "logit_diff", "kl"]
    assert_same(*(ablate_heads(model, prompts, method=method, metric=metric, batch_size=7) for model in pair))


def test_ablations_of_layers_are_the_same(pair, prompts):
    assert_same(*(ablate_layers(model, prompts) for model in pair))


def test_ablations_of_mlps_are_the_same_or_refused_by_both(pair, prompts):
    if pair[0].cfg.attn_only:
        for model in pair:
            with pytest.raises(InputError, match="no feed-forward part"):
                ablate_mlps(model, prompts)
    else:
        assert_same(*(ablate_mlps(model, prompts) for model in pair))


def test_ablations_of_parts_of_heads_and_of_sets_are_the_same(pair, prompts):
    sites = ["L0H1.q", "L1H0.v", "L1.resid_pre", ["L0H0", "L1.attn"], Site.parse("L1H1", positions=[2, -1])]
    assert_same(*(ablate(model, prompts, sites, method="zero") for model in pair))


EVERYWHERE = ["L0H1.q", "L1H0.k", "L0H0.v", "L0H1@1,-1", "L1H1.pattern", "L0.attn", "L0.resid_pre", "L0.resid_post"]


def test_edits_everywhere_are_the_same(pair, prompts):
    sites = [*EVERYWHERE, "embed", "pos_embed"] + ([] if pair[0].cfg.attn_only else ["L1.mlp"])
    assert_same(*(ablate(model, prompts, sites, method=Scale(0.5)) for model in pair))
    sites = [site for site in sites if "@" not in site]
    assert_same(*(ablate(model, prompts, sites, method=Scale(0.5), where=prompts.inputs > 4) for model in pair))


@pytest.mark.parametrize("site", ["L0H1.scores", "L0.resid_mid"])
def test_an_edit_is_the_same_or_refused_where_it_would_not_be_followed(pair, prompts, site):
    mine, theirs = pair
    if site == "L0.resid_mid" and "blocks.0.hook_resid_mid" not in mine.hook_dict:
        pytest.skip("a stream without a middle: no feed-forward part, or one in parallel")
    wanted = ablate(mine, prompts, [site], method=Scale(0.5))
    try:
        found = ablate(theirs, prompts, [site], method=Scale(0.5))
    except InputError as refusal:
        assert not TRANSFORMER_LENS_3
        assert "can only be read in this model" in str(refusal)  # noqa: PT017 — the other outcome is no error at all
    else:
        assert_same(wanted, found)


def test_interactions_are_the_same(pair, prompts):
    assert_same(*(ablate_pairs(model, prompts, method="zero") for model in pair))


def counterfactual_of(prompts):
    return Prompts.from_tensors((prompts.inputs + 3).remainder(D_VOCAB))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patched_activations_are_the_same(pair, prompts, direction):
    other = counterfactual_of(prompts)
    how = {"sites": ["resid_pre", "z", "k", "pattern", "embed"], "direction": direction, "metric": ["loss", "kl"]}
    for positions in (None, [2, -1]):
        assert_same(*(patch_activations(model, prompts, other, positions=positions, **how) for model in pair))
    for model in pair:
        itself = patch_activations(model, prompts, prompts, **how)
        assert (itself.frame["delta"] == 0.0).all()


@pytest.mark.parametrize("through", ["direct", "mlps"])
def test_patched_paths_are_the_same(pair, prompts, through):
    parts = [] if pair[0].cfg.attn_only else ["mlp"]
    how = {"senders": ["z", "embed", *parts], "receivers": ["q", "k", "v", *parts, "output"], "through": through}
    assert_same(*(patch_paths(model, prompts, counterfactual_of(prompts), **how) for model in pair))
    for model in pair:
        assert (patch_paths(model, prompts, prompts, **how).frame["delta"] == 0.0).all()


@pytest.mark.transformer_lens_4
def test_paths_to_keys_that_heads_share_end_at_the_heads_there_are(prompts):
    shared = native(normalization_type="LN", act_fn="relu", n_key_value_heads=1)
    frame = patch_paths(shared, prompts, counterfactual_of(prompts), receivers=["q", "k"]).frame
    assert frame["receiver"].unique().tolist() == ["L1H0.q", "L1H1.q", "L1H0.k"]
    with pytest.raises(InputError, match=r"L1H1\.k does not exist: blocks\.1\.attn\.hook_k has heads H0 to H0"):
        patch_paths(shared, prompts, counterfactual_of(prompts), receivers=["L1H1.k"])


@pytest.mark.parametrize("metric", ["logit", "logit_diff"])
def test_attributions_are_the_same(pair, prompts, metric):
    assert_same(*(attribute_heads(model, prompts, metric=metric) for model in pair))


@pytest.mark.parametrize("method", ["gradient", "integrated", "shapley"])
def test_attributions_of_what_taking_heads_away_changes_are_the_same(pair, prompts, method):
    steps = {"n_steps": 3} if method == "integrated" else {}
    assert_same(*(attribute_heads(model, prompts, method=method, metric="loss", **steps) for model in pair))


def test_first_order_scores_of_edges_are_the_same(pair, prompts):
    mine, theirs = pair
    if not mine.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    for reference in ("zero", "mean"):
        assert_same(*(attribute_edges(model, prompts, reference=reference) for model in pair))


def test_exactly_patched_edges_are_the_same_or_refused_where_heads_have_no_inputs_of_their_own(pair, prompts):
    mine, theirs = pair
    if not mine.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    how = {"method": "exact", "reference": "mean"}
    try:
        theirs.set_use_split_qkv_input(True)
    except NotImplementedError:
        assert not TRANSFORMER_LENS_3
        with pytest.raises(InputError, match="hook_q_input"):
            attribute_edges(theirs, prompts, **how)
    else:
        assert_same(*(attribute_edges(model, prompts[:4], **how) for model in pair))


def test_attention_scores_are_the_same_but_for_their_null(pair, prompts):
    mine, theirs = (score_attention_patterns(model, prompts) for model in pair)
    assert_same(mine, theirs, but=("p_value", "significant"))
    assert theirs.frame["p_value"].isna().all()
    assert any("no p-values" in note for note in theirs.notes)


def test_comparisons_are_the_same(pair, prompts):
    def uniform(prompts):
        return torch.zeros(*prompts.inputs.shape, D_VOCAB)

    assert_same(*(compare_predictors(model, prompts, {"uniform": uniform}) for model in pair))


def test_memories_are_the_same(pair):
    circuit = {"previous_token_head": "L0H0", "induction_head": "L1H1", "triggers": [1, 4, 5]}
    before = HookedTransformer(replace(pair[0].cfg, seed=5))
    mine, theirs = (memory_recall(model, **circuit, init_model=before) for model in pair)
    assert_same(mine, theirs)
    assert len(mine.frame) > 2


def test_circuits_are_the_same(pair):
    assert_same(*(circuit_recall(model) for model in pair))


def test_a_pass_from_a_layer_is_a_full_pass(pair, prompts):
    for model in pair:
        clean, kept = activations(model, prompts.inputs, ["blocks.1.hook_resid_pre"])
        again = outputs_from(model, prompts.inputs, 1, kept["blocks.1.hook_resid_pre"])
        assert float((again - clean).detach().abs().max()) < 1e-6


def test_receipts_say_the_same(pair, prompts):
    receipts = []
    for model in pair:
        with intervene(model, [Intervention(Site.parse("L0H1"), Zero())]) as [receipt]:
            outputs(model, prompts.inputs)
        receipts.append(receipt)
    mine, theirs = receipts
    assert (mine.fired, mine.n_values) == (theirs.fired, theirs.n_values)
    assert mine.mean_abs_change == pytest.approx(theirs.mean_abs_change, abs=1e-6)


def observe(activation, hook):
    return None


def test_unknown_points_are_refused_on_every_model(pair):
    for model in pair:
        with (
            pytest.raises(InputError, match=r"no hook point 'blocks.0.attn.hook_zz'"),
            hooked(model, [("blocks.0.attn.hook_zz", observe)]),
        ):
            pass


def test_a_hook_that_never_fires_is_refused_on_every_model(pair):
    for model in pair:
        with pytest.raises(InputError, match="never fired"), hooked(model, [("blocks.0.attn.hook_z", observe)]):
            pass


@pytest.mark.parametrize(
    ("point", "setter"),
    [
        ("blocks.0.attn.hook_result", "set_use_attn_result"),
        ("blocks.0.hook_q_input", "set_use_split_qkv_input"),
        ("blocks.0.hook_attn_in", "set_use_attn_in"),
    ],
)
def test_a_point_that_is_switched_off_is_refused_and_its_setter_named(pair, prompts, point, setter):
    _, theirs = pair
    message = rf"{point} is switched off in this \w+: call model.{setter}\(True\) first"
    with pytest.raises(InputError, match=message), hooked(theirs, [(point, observe)]):
        outputs(theirs, prompts.inputs)


@pytest.mark.parametrize("name", [marked("3.9, LN, MLP"), marked("bridge, GPT-2")])
def test_a_point_that_is_switched_on_holds_what_ours_computes(name, prompts):
    mine, theirs = PAIRS[name]()
    theirs.set_use_attn_result(True)
    points = ["blocks.0.attn.hook_result", "blocks.1.attn.hook_result"]
    kept = [activations(model, prompts.inputs, points)[1] for model in (mine, theirs)]
    for point in points:
        assert float((kept[0][point] - kept[1][point]).abs().max()) < 1e-5


@pytest.mark.transformer_lens_4
def test_dropout_is_refused(prompts):
    bridge = gpt2()
    assert outputs(bridge, prompts.inputs).shape == (16, N_CTX, D_VOCAB)
    bridge.original_model.train()
    with pytest.raises(InputError, match="training mode"):
        outputs(bridge, prompts.inputs)
    with pytest.raises(InputError, match="training mode"):
        ablate_heads(bridge, prompts)


@pytest.mark.transformer_lens_4
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((3, N_CTX), D_VOCAB), "token 11 does not exist: d_vocab = 11"),
        (torch.full((3, N_CTX), -1), "token -1 does not exist: d_vocab = 11"),
        (torch.zeros((3, N_CTX + 1), dtype=torch.long), "the prompts have 10 positions but the model has n_ctx = 9"),
    ],
)
def test_tokens_and_positions_that_a_bridge_does_not_have_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        ablate_heads(gpt2(), Prompts.from_tensors(tokens), method="zero")


@pytest.mark.transformer_lens_4
def test_a_soft_cap_on_the_logits_makes_attribution_refuse(prompts):
    capped = native(attn_only=True, normalization_type=None, output_logits_soft_cap=0.5)
    shaken(capped.original_model.parameters())
    assert len(ablate_heads(capped, prompts).frame) == 4
    with pytest.raises(InputError, match="miss the answer's logit"):
        attribute_heads(capped, prompts)


@pytest.mark.transformer_lens_4
def test_conversion_refuses_a_bridge_to_another_architecture():
    with pytest.raises(InputError, match="n_key_value_heads = 1"):
        from_transformer_lens(native(normalization_type="LN", act_fn="relu", n_key_value_heads=1))
    with pytest.raises(InputError, match=r"n_key_value_heads|W_K is"):
        circuit_recall(native(normalization_type="LN", act_fn="relu", n_key_value_heads=1))
    assert from_transformer_lens(native(normalization_type="LN", act_fn="relu")).cfg.normalization_type == "LN"


@pytest.mark.transformer_lens_4
def test_conversion_compares_logits_where_the_config_says_nothing():
    bridge = native(attn_only=True, normalization_type=None, output_logits_soft_cap=0.5)
    bridge.cfg.output_logits_soft_cap = -1.0  # as an architecture whose peculiarity has no field
    shaken(bridge.original_model.parameters())
    with pytest.raises(InputError, match="the converted model's logits differ"):
        from_transformer_lens(bridge)


@pytest.mark.transformer_lens_4
def test_converting_to_a_class_that_does_not_exist_is_refused():
    own = from_transformer_lens(native(attn_only=True, normalization_type=None))
    with pytest.raises(InputError, match=r"has no HookedTransformer: install transformer-lens 3.9"):
        to_transformer_lens(own)


@pytest.mark.parametrize("reference", ["counterfactual", "mean", "zero"])
def test_circuits_run_alike(pair, prompts, reference):
    mine, theirs = pair
    if not mine.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    how = {} if reference != "counterfactual" else {"counterfactual": counterfactual_of(prompts)}
    full = Circuit.full(theirs)
    assert full == Circuit.full(mine)
    whole = full.as_model(theirs, prompts, reference=reference, **how)(prompts.inputs)
    assert float((whole - outputs(theirs, prompts.inputs)).detach().abs().max()) < 1e-5
    some = Circuit(full.edges[::2], full.anatomy)
    runs = [some.as_model(model, prompts, reference=reference, **how)(prompts.inputs) for model in pair]
    assert float((runs[0] - runs[1]).abs().max()) < 1e-5


def test_circuits_found_and_judged_are_the_same(pair, prompts):
    mine, theirs = pair
    if not mine.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    other, few = counterfactual_of(prompts), prompts[:6]
    how = {"threshold": 0.003, "progress": False}
    found = [discover_circuit(model, few, other[:6], **how) for model in pair]
    assert found[0].circuit == found[1].circuit
    assert_same(*found)
    judged = [
        evaluate_circuit(model, Circuit.full(model).without(["L0H1"]), few, other[:6], n_random=1, progress=False)
        for model in pair
    ]
    assert_same(*judged)
    for model in pair:
        assert not any(point._forward_hooks for point in model.hook_dict.values())

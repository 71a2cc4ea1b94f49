"""With the same weights, HookedTransformer and TransformerLens 3.9's class compute the same at every shared hook."""

import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig, InputError
from interp.conversion import from_transformer_lens, to_transformer_lens

pytestmark = pytest.mark.transformer_lens_3

TOLERANCE = 1e-5
SIZES = {"n_layers": 2, "d_model": 12, "n_ctx": 7, "d_vocab": 9}
ARCHITECTURES = {
    "attention only": {"attn_only": True},
    "attention only, LN": {"attn_only": True, "normalization_type": "LN", "n_heads": 3},
    "attention only, LNPre, bidirectional": {
        "attn_only": True,
        "normalization_type": "LNPre",
        "attention_dir": "bidirectional",
    },
    "wide heads": {"attn_only": True, "n_heads": 3, "d_head": 7},
    "narrow head": {"attn_only": True, "d_head": 5},
    "MLP, relu": {"act_fn": "relu", "n_heads": 2},
    "MLP, gelu, LN": {"act_fn": "gelu", "normalization_type": "LN", "n_heads": 2, "d_mlp": 10},
    "MLP, gelu_new, LN, eps": {"act_fn": "gelu_new", "normalization_type": "LN", "n_heads": 4, "eps": 0.01},
    "MLP, silu, LNPre": {"act_fn": "silu", "normalization_type": "LNPre", "n_heads": 2},
    "parallel, LN": {"parallel_attn_mlp": True, "normalization_type": "LN", "act_fn": "gelu_new", "n_heads": 2},
    "parallel": {"parallel_attn_mlp": True, "d_head": 5, "n_heads": 3},
    "bidirectional, LN": {"attention_dir": "bidirectional", "normalization_type": "LN", "n_heads": 2},
    "other outputs": {"d_vocab_out": 4, "attn_only": True},
}
COSTLY = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


@pytest.fixture(params=ARCHITECTURES)
def own(request):
    model = HookedTransformer(HookedTransformerConfig(**SIZES | ARCHITECTURES[request.param]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # biases, gains and shifts too, so that none can hide
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def tokens():
    return torch.randint(9, (3, 7), generator=torch.Generator().manual_seed(0))


def same(mine, others):
    finite = torch.isfinite(others)
    assert torch.equal(torch.isfinite(mine), finite)
    return bool(((mine - others)[finite].abs() <= TOLERANCE).all())


def test_logits_are_the_same(own, tokens):
    assert same(own(tokens), to_transformer_lens(own)(tokens))


def test_every_shared_hook_holds_the_same(own, tokens):
    _, theirs = to_transformer_lens(own).run_with_cache(tokens)
    _, mine = own.run_with_cache(tokens)
    assert set(theirs) - set(mine) == {"unembed.hook_in", "unembed.hook_out"}
    assert not set(mine) - set(theirs)
    for name in mine:
        assert mine[name].shape == theirs[name].shape, name
        assert same(mine[name], theirs[name]), name


def test_costly_points_hold_the_same(own, tokens):
    theirs = to_transformer_lens(own)
    theirs.set_use_attn_result(True)
    theirs.set_use_split_qkv_input(True)
    if not own.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    logits, expected = theirs.run_with_cache(tokens)
    names = [name for name in expected if name.endswith(COSTLY)]
    assert len(names) == own.cfg.n_layers * (4 if own.cfg.attn_only else 5)
    mine, cache = own.run_with_cache(tokens, names_filter=names)
    assert same(mine, logits)
    for name in names:
        assert same(cache[name], expected[name]), name


def test_the_tables_of_hook_points_agree(own):
    theirs = to_transformer_lens(own)
    only_there = ("hook_attn_in", "unembed.hook_in", "unembed.hook_out")
    only_there += ("hook_mlp_in", "hook_mlp_out") * own.cfg.attn_only  # which no pass ever reaches
    assert {name for name in theirs.hook_dict if not name.endswith(only_there)} == set(own.hook_dict)


def test_gradients_are_the_same(own, tokens):
    theirs = to_transformer_lens(own)
    for model in (own, theirs):
        model(tokens).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, weight in own.named_parameters():
        assert same(weight.grad, expected[name].grad), name


def test_an_edit_has_the_same_effect(own, tokens):
    def halve(activation, hook):
        return activation / 2

    hooks = [("blocks.0.attn.hook_z", halve), ("blocks.1.attn.hook_v", halve)]
    theirs = to_transformer_lens(own)
    assert same(own.run_with_hooks(tokens, fwd_hooks=hooks), theirs.run_with_hooks(tokens, fwd_hooks=hooks))


def test_a_part_of_the_layers_gives_the_same(own, tokens):
    theirs = to_transformer_lens(own)
    resid = own(tokens, stop_at_layer=1)
    assert same(resid, theirs(tokens, stop_at_layer=1))
    assert same(own(resid, start_at_layer=1), theirs(resid, start_at_layer=1))


def test_the_loss_is_the_same(own, tokens):
    if own.cfg.d_vocab_out == own.cfg.d_vocab:
        assert same(own(tokens, return_type="loss"), to_transformer_lens(own)(tokens, return_type="loss"))


def test_the_round_trip_is_exact(own):
    back = from_transformer_lens(to_transformer_lens(own))
    weights = back.state_dict()
    assert weights.keys() == own.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in own.state_dict().items())
    assert back.cfg.seed is None


def test_the_round_trip_from_the_other_side_is_exact(own):
    theirs = to_transformer_lens(own)
    again = to_transformer_lens(from_transformer_lens(theirs)).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in theirs.state_dict().items())


def test_absent_biases_become_zeros(tokens):
    own = HookedTransformer(HookedTransformerConfig(**SIZES, use_biases=False, identity_queries=True, act_fn="gelu"))
    theirs = to_transformer_lens(own)
    assert not theirs.b_O.any()
    assert same(own(tokens), theirs(tokens))


def test_conversion_leaves_the_global_generator_alone():
    own = HookedTransformer(HookedTransformerConfig(**SIZES))
    before = torch.random.get_rng_state()
    from_transformer_lens(to_transformer_lens(own))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"positional_embedding_type": "rotary"}, "no positional_embedding_type = 'rotary'"),
        ({"n_key_value_heads": 1}, "n_key_value_heads = 1 .grouped-query attention"),
        ({"normalization_type": "RMS"}, "normalization_type = 'RMS' is no"),
        ({"act_fn": "solu_ln"}, "act_fn = 'solu_ln' is no"),
        ({"gated_mlp": True}, "no gated_mlp = True"),
        ({"attn_scores_soft_cap": 5.0}, "no attn_scores_soft_cap = 5.0"),
        ({"scale_attn_by_inverse_layer_idx": True}, "no scale_attn_by_inverse_layer_idx = True"),
        ({"attn_scale": 3.0}, "no attn_scale = 3.0"),
        ({}, None),
    ],
)
def test_what_only_they_have_is_refused_by_name(extra, message):
    import transformer_lens

    config = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 6, "d_vocab": 5}
    config |= {"act_fn": "relu", "device": "cpu"}
    theirs = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**config | extra))
    if message is None:
        assert from_transformer_lens(theirs).cfg.n_heads == 2
    else:
        with pytest.raises(InputError, match=message):
            from_transformer_lens(theirs)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mlp_type": "linear"}, "mlp_type = 'linear' does not exist in TransformerLens"),
        ({"mlp_layers": (1,)}, r"mlp_layers = \(1,\) does not exist"),
        ({"positional_embedding_type": "none"}, "positional_embedding_type = 'none' does not exist"),
    ],
)
def test_what_only_we_have_is_refused_by_name(extra, message):
    with pytest.raises(InputError, match=message):
        to_transformer_lens(HookedTransformer(HookedTransformerConfig(**SIZES | extra)))

from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from interp import HookedTransformerConfig
from tasks.errors import InputError

SIZES = {"n_layers": 2, "d_model": 12, "n_ctx": 5, "d_vocab": 7}


def config(**options) -> HookedTransformerConfig:
    return HookedTransformerConfig(**(SIZES | options))


def test_widths_that_depend_on_others_are_filled_in():
    cfg = config(n_heads=3)
    assert (cfg.d_head, cfg.d_mlp, cfg.d_vocab_out) == (4, 48, 7)
    given = config(n_heads=5, d_head=2, d_mlp=9, d_vocab_out=1)
    assert (given.d_head, given.d_mlp, given.d_vocab_out) == (2, 9, 1)


def test_vectors_or_tokens_go_in_and_real_numbers_or_logits_come_out():
    reals = config(d_vocab=None, d_in=3, d_out=2)
    assert (reals.d_vocab, reals.d_vocab_out, reals.n_outputs) == (None, None, 2)
    read_out = config(d_out=2)
    assert (read_out.d_vocab_out, read_out.n_outputs) == (None, 2)
    classifier = config(d_vocab=None, d_in=3, d_vocab_out=9)
    assert (classifier.d_out, classifier.n_outputs) == (None, 9)
    with pytest.raises(InputError, match="d_out is missing"):
        _ = config(d_vocab=None, d_in=3).n_outputs


def test_queries_may_fill_all_positions_but_one():
    assert config(attention_dir="query_masked", n_queries=4).n_queries == 4


def test_a_config_survives_being_written_and_read():
    cfg = config(mlp_layers=(1,), frozen=("embed.*",), n_heads=2)
    assert HookedTransformerConfig(**asdict(cfg)) == cfg
    reals = config(d_vocab=None, d_in=3, d_out=2, attn_fn="relu", attention_dir="query_masked", n_queries=3)
    assert HookedTransformerConfig(**asdict(reals)) == reals
    assert replace(cfg, seed=4).seed == 4


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        config().n_layers = 3


def test_the_layers_with_a_feed_forward_part():
    assert [config().has_mlp(layer) for layer in range(2)] == [True, True]
    assert [config(mlp_layers=(1,)).has_mlp(layer) for layer in range(2)] == [False, True]
    assert [config(attn_only=True).has_mlp(layer) for layer in range(2)] == [False, False]


def test_absent_heads_are_named_by_patterns():
    cfg = config(n_heads=3, absent_heads=("L1H[1-2]", "L0H0"))
    there = [[cfg.has_head(layer, head) for head in range(3)] for layer in range(2)]
    assert there == [[False, True, True], [True, False, False]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absent_heads": ("L2H0",)}, "absent_heads: 'L2H0' matches no head: the model has L0H0, L1H0"),
        ({"d_in": 3}, "d_vocab = 7 and d_in = 3 exclude each other: drop one of them"),
        ({"d_vocab_out": 4, "d_out": 1}, "d_vocab_out = 4 and d_out = 1 exclude each other"),
        ({"d_vocab": None, "d_in": 0}, "d_in = 0 must be at least 1"),
        ({"d_out": 0}, "d_out = 0 must be at least 1"),
        (
            {"n_queries": 2},
            "n_queries = 2 has no effect with attention_dir = 'causal': set attention_dir = 'query_masked'",
        ),
        ({"n_queries": 2, "attention_dir": "bidirectional"}, "no effect with attention_dir = 'bidirectional'"),
        ({"n_queries": 5, "attention_dir": "query_masked"}, "n_queries = 5 leaves none of n_ctx = 5 positions to read"),
        ({"n_queries": 0, "attention_dir": "query_masked"}, "n_queries = 0 must be at least 1"),
        ({"attention_dir": "masked"}, "attention_dir = 'masked' is no HookedTransformerConfig.attention_dir"),
        ({"attn_fn": "sigmoid"}, "attn_fn = 'sigmoid' is no HookedTransformerConfig.attn_fn"),
        ({"n_head": 2}, "HookedTransformerConfig has no 'n_head': did you mean "),
        ({"n_heads": 5}, "d_model = 12 is no multiple of n_heads = 5: give d_head explicitly"),
        ({"n_layers": 0}, "n_layers = 0 must be at least 1"),
        ({"d_vocab_out": -1}, "d_vocab_out = -1 must be at least 1"),
        ({"d_model": "wide"}, "d_model = 'wide' is no HookedTransformerConfig.d_model"),
        ({"act_fn": "tanh"}, "act_fn = 'tanh' is no HookedTransformerConfig.act_fn"),
        ({"normalization_type": "RMS"}, "normalization_type = 'RMS' is no"),
        ({"mlp_layers": (2,)}, "mlp_layers names layer 2: the model has layers 0 to 1"),
        ({"mlp_layers": (0,), "attn_only": True}, "contradicts attn_only = True"),
        ({"identity_queries": True, "n_heads": 2}, "identity_queries needs one head with d_head = d_model = 12"),
        ({"identity_queries": True, "d_head": 4}, "identity_queries needs one head with d_head = d_model = 12"),
    ],
    ids=str,
)
@pytest.mark.refusal
def test_a_config_that_makes_no_model_is_refused_in_one_line(options, message):
    with pytest.raises(InputError) as refusal:
        config(**options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_size_is_refused_by_name():
    with pytest.raises(InputError, match=r"HookedTransformerConfig\.n_ctx is missing"):
        HookedTransformerConfig(n_layers=1, d_model=4)

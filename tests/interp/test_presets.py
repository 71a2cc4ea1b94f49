"""Presets: what the published model fixes, and how the task and the caller complete it."""

import pytest

from interp import HookedTransformer
from interp.presets import PRESETS, preset
from tasks.errors import InputError
from tasks.sparse_regression import SparseRegression


def trained(model: HookedTransformer) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_the_simplified_model_trains_the_three_memories_and_nothing_else(task):
    model = HookedTransformer(preset("bietti-simplified", task)[0])
    assert trained(model) == {"blocks.0.attn.W_K", "blocks.1.attn.W_K", "blocks.1.attn.W_O"}


def test_the_feed_forward_variant_adds_one_matrix_after_the_second_attention(task):
    plain = HookedTransformer(preset("bietti-simplified", task)[0])
    memory = HookedTransformer(preset("bietti-simplified-ff", task)[0])
    assert trained(memory) - trained(plain) == {"blocks.1.mlp.W_F"}


def test_the_full_model_trains_everything(task):
    model = HookedTransformer(preset("bietti-full", task)[0])
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", PRESETS)
def test_positions_inputs_and_outputs_come_from_the_task(task, name):
    given = task if PRESETS[name].reads == "tokens" else SparseRegression(d=7, n_queries=3)
    config, training = preset(name, given)
    assert (config.n_ctx, config.d_vocab, config.d_in) == (given.n_ctx, given.d_vocab, given.d_in)
    if given.d_in is not None:
        assert (config.n_queries, config.d_out) == (3, 1)
    training.refuse_contradictions()


@pytest.mark.parametrize("attention", ["softmax", "relu", "linear"])
def test_every_number_of_heads_has_the_same_number_of_parameters(attention):
    models = [HookedTransformer(preset(f"chen-{heads}-{attention}", SparseRegression())[0]) for heads in (1, 2, 4, 8)]
    assert len({sum(weight.numel() for weight in model.parameters()) for model in models}) == 1
    assert [model.cfg.n_heads for model in models] == [1, 2, 4, 8]


def test_interleaved_prompts_are_read_causally_with_positions():
    config, _ = preset("chen-8-softmax", SparseRegression(layout="interleaved"))
    assert (config.attention_dir, config.positional_embedding_type) == ("causal", "standard")


def test_fields_that_follow_from_others_follow_the_callers(task):
    config, _ = preset("bietti-full", task, {"d_model": 32})
    assert (config.d_model, config.d_head, config.d_mlp) == (32, 32, 128)


@pytest.mark.refusal
def test_what_no_preset_can_do_is_refused(task):
    with pytest.raises(InputError, match="did you mean bietti-simplified"):
        preset("bietti-simple", task)
    with pytest.raises(InputError, match="did you mean d_model"):
        preset("bietti-full", task, {"d_modl": 3})
    with pytest.raises(InputError, match="reads tokens and the task 'sparse-regression' has none"):
        preset("bietti-full", SparseRegression())
    with pytest.raises(InputError, match="reads real vectors and the task 'bigram' has none"):
        preset("chen-8-linear", task)

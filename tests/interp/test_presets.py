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
def test_positions_and_tokens_come_from_the_task(task, name):
    config, training = preset(name, task)
    assert (config.n_ctx, config.d_vocab) == (task.n_ctx, task.d_vocab)
    training.refuse_contradictions()


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

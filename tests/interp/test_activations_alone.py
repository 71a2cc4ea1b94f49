"""Activations from a pass that ends early, and their truth where another hook writes in place."""

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from interp import HookedTransformer, HookedTransformerConfig
from interp.model_adapter import activations, activations_alone
from tasks.errors import InputError

POINTS = ["hook_embed", "hook_pos_embed", "blocks.0.attn.hook_z", "blocks.0.hook_resid_post"]


def model() -> HookedTransformer:
    torch.manual_seed(0)
    return HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=6, d_vocab=5))


def tokens() -> Tensor:
    return torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))


def test_they_are_those_of_a_whole_pass_and_the_pass_ends_with_the_last():
    subject, later = model(), []
    _, expected = activations(subject, tokens(), POINTS)
    subject.blocks[1].hook_resid_pre.add_perma_hook(lambda tensor, hook: later.append(1))  # noqa: ARG005
    found = activations_alone(subject, tokens(), POINTS)
    assert set(found) == set(POINTS)
    assert all(torch.equal(found[point], expected[point]) for point in POINTS)
    assert later == []
    subject(tokens())
    assert later == [1]


def test_a_hook_that_writes_in_place_afterwards_does_not_change_what_was_seen():
    subject = model()
    _, clean = activations(subject, tokens(), ["blocks.0.hook_resid_post"])

    def spoil(resid: Tensor, hook: HookPoint) -> Tensor:
        return resid.zero_()

    subject.blocks[1].hook_resid_pre.add_perma_hook(spoil)
    _, expected = activations(subject, tokens(), ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
    found = activations_alone(subject, tokens(), ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
    assert torch.equal(found["blocks.0.hook_resid_post"], clean["blocks.0.hook_resid_post"])
    assert all(torch.equal(found[point], expected[point]) for point in found)


def test_it_leaves_no_hook_and_works_in_inference_mode():
    subject = model()
    with torch.inference_mode():
        found = activations_alone(subject, tokens(), POINTS)
    _, expected = activations(subject, tokens(), POINTS)
    assert all(torch.equal(found[point], expected[point]) for point in POINTS)
    assert not any(point.fwd_hooks for point in subject.hook_dict.values())


def test_a_point_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no hook point 'hook_embedd'"):
        activations_alone(model(), tokens(), ["hook_embedd"])

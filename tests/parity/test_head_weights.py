"""Readouts of weights are the same for the same weights, whoever's class holds them."""

import numpy as np
import pytest
import torch

from analyses import score_composition, weight_spectra
from interp import HookedTransformer, HookedTransformerConfig
from interp.conversion import from_transformer_lens, to_transformer_lens


def shaken(weights):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight += 0.2 * torch.randn(weight.shape, generator=generator)


def alike(own, theirs):
    ours, other = (score_composition(model, n_random=10).frame for model in (own, theirs))
    np.testing.assert_allclose(other["score"], ours["score"], atol=1e-5)
    assert other["writer"].tolist() == ours["writer"].tolist()
    ours, other = (weight_spectra(model, n_random=10).frame for model in (own, theirs))
    for column in ("positive", "norm", "effective_rank"):
        np.testing.assert_allclose(other[column], ours[column], atol=1e-4)


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("normalization", [None, "LN"])
def test_transformer_lens_3(normalization):
    own = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=12, n_ctx=9, d_vocab=11, n_heads=2, normalization_type=normalization
        )
    )
    shaken(own.parameters())
    alike(own, to_transformer_lens(own))


@pytest.mark.transformer_lens_4
def test_a_bridge_to_gpt2():
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(bos_token_id=0, eos_token_id=0, n_layer=2, n_embd=12, n_head=2, n_positions=9, vocab_size=11)
    bridge = build_bridge_from_module(GPT2LMHeadModel(config).eval(), "GPT2LMHeadModel", hf_config=config)
    shaken({id(weight): weight for weight in bridge.original_model.parameters()}.values())
    alike(from_transformer_lens(bridge), bridge)

"""Processed weights equal those of TransformerLens 3.9, tensor by tensor."""

import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig
from interp.conversion import to_transformer_lens
from interp.weight_processing import center_unembed, center_writing_weights, fold_ln

pytestmark = pytest.mark.transformer_lens_3

STEPS = {"fold_ln": fold_ln, "center_writing_weights": center_writing_weights, "center_unembed": center_unembed}
ARCHITECTURES = {
    "attention only": {"attn_only": True},
    "MLP": {"act_fn": "gelu_new"},
    "parallel": {"parallel_attn_mlp": True},
    "bidirectional": {"attention_dir": "bidirectional"},
}


@pytest.fixture(params=ARCHITECTURES)
def own(request):
    config = {"n_layers": 2, "d_model": 12, "n_heads": 2, "n_ctx": 7, "d_vocab": 9, "normalization_type": "LN"}
    model = HookedTransformer(HookedTransformerConfig(**config | ARCHITECTURES[request.param]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("steps", [[name] for name in STEPS] + [list(STEPS)], ids="+".join)
def test_processed_weights_are_the_same(own, steps):
    theirs = to_transformer_lens(own)
    switches = {name: name in steps for name in STEPS}
    theirs.load_and_process_state_dict(theirs.state_dict(), fold_value_biases=False, **switches)
    mine = own
    for name in steps:
        mine = STEPS[name](mine)
    expected = theirs.state_dict()
    for name, weight in mine.state_dict().items():
        assert float((weight - expected[name]).abs().max()) < 1e-5, name
    assert theirs.cfg.normalization_type == mine.cfg.normalization_type
    tokens = torch.randint(9, (3, 7), generator=torch.Generator().manual_seed(0))
    assert float((mine(tokens) - theirs(tokens)).detach().abs().max()) < 1e-5

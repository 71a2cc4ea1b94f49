import math

import numpy as np
import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig
from interp.initialisation import matching_parameters
from tasks.errors import InputError

SIZES = {"n_layers": 2, "d_model": 48, "n_ctx": 60, "n_heads": 3, "d_head": 20, "d_mlp": 70, "d_vocab": 90}


def model(**options) -> HookedTransformer:
    return HookedTransformer(HookedTransformerConfig(**(SIZES | options)))


def test_gpt2_mode_draws_normal_weights_of_std_0_8_over_sqrt_d_model():
    for name, weight in model().named_parameters():
        if ".b_" in name:
            assert weight.abs().max() == 0, name
            continue
        std, n = 0.8 / math.sqrt(48), weight.numel()
        assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * n), name  # five standard errors
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(n), name
        assert weight.abs().max() > 2.5 * std, name  # a uniform draw of this std would end at 1.73


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_torch_linear_mode_draws_as_pytorchs_linear_layers_do(kind):
    fan_in = {"W_Q": 48, "W_K": 48, "W_V": 48, "W_O": 3 * 20, "W_in": 48, "W_out": 70, "W_F": 48, "W_U": 48}
    seen = set()
    for name, weight in model(init_mode="torch_linear", mlp_type=kind).named_parameters():
        part, n = name.rpartition(".")[2], weight.numel()
        seen.add(part)
        if part in ("W_E", "W_pos"):
            assert abs(weight.std().item() - 1) < 5 / math.sqrt(2 * n), name
            assert weight.abs().max() > 2.5, name
        elif part in fan_in:
            bound = 1 / math.sqrt(fan_in[part])
            assert 0.99 * bound < weight.abs().max() <= bound, name
            assert abs(weight.mean().item()) < 5 * bound / math.sqrt(3 * n), name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
        else:
            assert weight.abs().max() == 0, name
    assert ("W_F" in seen) == (kind == "linear")
    reference = torch.nn.Linear(48, 90).weight
    assert reference.abs().max() <= 1 / math.sqrt(48)  # the bound above is PyTorch's own


def test_layer_norms_begin_as_the_plain_normalisation():
    for name, weight in model(normalization_type="LN").named_parameters():
        if "ln" in name:
            assert torch.equal(weight, torch.ones(48) if name.endswith("w") else torch.zeros(48))


def test_identity_queries_begin_as_the_identity():
    one_head = model(identity_queries=True, n_heads=1, d_head=48)
    for block in one_head.blocks:
        assert torch.equal(block.attn.W_Q[0], torch.eye(48))
        assert block.attn.b_Q is None
        assert not block.attn.W_Q.requires_grad


def test_the_seed_decides_every_weight():
    first, again, other = model(seed=5), model(seed=5), model(seed=6)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
        assert torch.equal(weight, other.get_parameter(name)) == (".b_" in name), name


def test_weights_of_one_kind_differ_between_heads_and_layers():
    W_Q = model().W_Q.flatten(0, 1)
    assert all(not torch.equal(W_Q[a], W_Q[b]) for a in range(6) for b in range(a))


def test_the_global_generators_are_left_alone():
    torch.manual_seed(11)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 — the global one is meant
    model()
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(12)
    assert torch.equal(model().W_E, model().W_E)


def test_frozen_parameters_get_no_gradient_and_all_others_do():
    frozen = model(frozen=("embed.*", "pos_embed.W_pos", "blocks.*.attn.W_V", "blocks.1.mlp.*"))
    frozen(torch.randint(90, (4, 9), generator=torch.Generator().manual_seed(0)), "loss").backward()
    without = {name for name, weight in frozen.named_parameters() if weight.grad is None}
    assert without == {
        "embed.W_E",
        "pos_embed.W_pos",
        "blocks.0.attn.W_V",
        "blocks.1.attn.W_V",
        *(f"blocks.1.mlp.{part}" for part in ("W_in", "b_in", "W_out", "b_out")),
    }


def test_a_pattern_that_matches_no_parameter_is_refused():
    assert matching_parameters(model(), ("*.W_E",)) == ["embed.W_E"]
    with pytest.raises(InputError, match=r"'blocks\.2\.\*' matches no parameter: the model has embed\.W_E"):
        model(frozen=("embed.W_E", "blocks.2.*"))

import numpy as np
import pytest
import torch

from analyses.interaction import ablate_pairs
from interp import HookedTransformer, HookedTransformerConfig
from tasks import InputError, Prompts


def prompts(n: int = 24) -> Prompts:
    tokens = torch.randint(7, (n, 6), generator=torch.Generator().manual_seed(1))
    return Prompts.from_tensors(tokens, wrong=(tokens + 1) % 7)


def model(**changes) -> HookedTransformer:
    fields = {"n_layers": 2, "d_model": 12, "n_heads": 3, "n_ctx": 6, "d_vocab": 7, "attn_only": True} | changes
    return HookedTransformer(HookedTransformerConfig(**fields))


def loss_without(net: HookedTransformer, heads: list[tuple[int, int]], data: Prompts) -> float:
    def silence(layer: int):
        def hook(z, hook):
            z = z.clone()
            for of_layer, head in heads:
                if of_layer == layer:
                    z[:, :, head] = 0.0
            return z

        return hook

    layers = {layer for layer, _ in heads}
    hooks = [(f"blocks.{layer}.attn.hook_z", silence(layer)) for layer in layers]
    with torch.no_grad():
        sums, counts = data.loss(net.run_with_hooks(data.inputs, fwd_hooks=hooks))
    return float(sums.sum() / counts.sum())


def test_an_interaction_is_the_joint_effect_minus_the_single_ones():
    net, data = model(), prompts()
    frame = ablate_pairs(net, data, ["L0H1", "L1H0", "L1H2"], method="zero").frame.set_index(["first", "second"])
    clean = loss_without(net, [], data)
    for a, b in [((0, 1), (1, 0)), ((0, 1), (1, 2)), ((1, 0), (1, 2))]:
        expected = loss_without(net, [a, b], data) - loss_without(net, [a], data) - loss_without(net, [b], data) + clean
        row = frame.loc[(f"L{a[0]}H{a[1]}", f"L{b[0]}H{b[1]}")]
        assert row["interaction"] == pytest.approx(expected, abs=1e-5)
        assert row["ci_low"] <= row["interaction"] <= row["ci_high"]


def test_heads_of_one_layer_that_add_up_in_the_logit_do_not_interact():
    net, data = model(n_layers=1), prompts()
    frame = ablate_pairs(net, data, metric="logit_diff").frame
    assert np.abs(frame["interaction"]).max() < 1e-5
    assert np.abs(frame["delta_joint"]).min() > 1e-4


def test_two_copies_of_a_head_under_a_saturated_loss_are_redundant():
    """Two equal heads each suffice for the answer: losing one costs next to nothing, losing both costs it all."""
    net, data = model(n_layers=1, d_model=16, n_heads=2, d_head=8, use_biases=False), prompts()
    answer = torch.zeros_like(data.targets)
    data = Prompts.from_tensors(data.inputs, answer)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        net.embed.W_E[:, 0] = 1.0
        net.blocks[0].attn.W_V[:, 0, 0] = 1.0
        net.blocks[0].attn.W_O[:, 0, 1] = 20.0
        net.unembed.W_U[1, 0] = 1.0
    row = ablate_pairs(net, data, method="zero").frame.iloc[0]
    alone, nothing = np.log1p(6 * np.exp(-20.0)), np.log(7)
    assert row["delta_first"] == pytest.approx(alone - np.log1p(6 * np.exp(-40.0)), abs=1e-6)
    assert row["interaction"] == pytest.approx(nothing, abs=1e-4)


def test_fewer_than_two_sites_are_refused():
    with pytest.raises(InputError, match="at least 2 different sites"):
        ablate_pairs(model(), prompts(), ["L0H1"])
    with pytest.raises(InputError, match="at least 2 different sites"):
        ablate_pairs(model(), prompts(), ["L0H1", (0, 1)])

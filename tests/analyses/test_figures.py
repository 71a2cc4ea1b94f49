import pytest
import torch

from analyses import ablate_heads, attribute_heads, compare_predictors, patch_activations
from interp import HookedTransformer, HookedTransformerConfig
from tasks import SparseRegression
from tasks.prompts import Prompts


def of_tokens():
    config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=5, n_heads=2, d_vocab=6, attn_only=True, seed=0)
    prompts = Prompts.from_tensors(torch.randint(6, (9, 5), generator=torch.Generator().manual_seed(0)))
    return HookedTransformer(config), prompts, lambda batch: torch.zeros(len(batch), 5, 6)


def of_real_vectors():
    config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=9, n_heads=2, d_in=4, d_out=1, attn_only=True, seed=0)
    prompts = SparseRegression(d=3, sparsity=1, n_context=8).sample(9, seed=0)
    return HookedTransformer(config), prompts, lambda batch: torch.zeros_like(batch.targets)


@pytest.mark.parametrize(("case", "unit"), [(of_tokens, "nats"), (of_real_vectors, "squared units of y")])
def test_the_axis_of_a_loss_says_its_unit(case, unit):
    model, prompts, nothing = case()
    drawn = {
        "delta": ablate_heads(model, prompts, method="zero"),
        "attribution": attribute_heads(model, prompts, method="gradient", metric="loss"),
    }
    for value, result in drawn.items():
        assert result.plot().layout.yaxis.title.text == f"{value} ({unit})"
    alike = patch_activations(model, prompts, prompts, sites=["L0.attn"])  # no gap that an effect could be a share of
    assert alike.plot().layout.yaxis.title.text == f"delta ({unit})"
    assert compare_predictors(model, prompts, {"nothing": nothing}).plot().layout.xaxis.title.text == unit

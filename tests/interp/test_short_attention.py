"""Attention over short prompts in slices: against the definition written out, and when it is taken."""

import math

import pytest
import torch
from torch import Tensor

from interp import HookedTransformer, HookedTransformerConfig
from interp.short_attention import short_attention, suits_short_attention


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def queries_keys_values(*, batch: int, n_pos: int, n_heads: int, d_head: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, n_pos, 3, n_heads, d_head, generator=generator, dtype=dtype).requires_grad_()


def written_out(together: Tensor) -> Tensor:
    q, k, v = together.unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize(
    ("batch", "n_pos", "n_heads", "d_head"),
    [(1, 1, 2, 3), (3, 5, 2, 4), (9, 64, 8, 16), (70, 64, 2, 8), (2, 600, 2, 4)],  # one slice, several, one each
)
def test_z_and_gradients_are_those_of_the_definition(batch: int, n_pos: int, n_heads: int, d_head: int):
    together = queries_keys_values(batch=batch, n_pos=n_pos, n_heads=n_heads, d_head=d_head, dtype=torch.float64)
    direction = torch.randn(batch, n_pos, n_heads, d_head, dtype=torch.float64)
    z, true_z = short_attention(together), written_out(together)
    torch.testing.assert_close(z, true_z, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(z, together, direction)
    (true_gradient,) = torch.autograd.grad(true_z, together, direction)
    torch.testing.assert_close(gradient, true_gradient, atol=1e-12, rtol=0)


def test_gradients_are_those_of_finite_differences():
    together = queries_keys_values(batch=2, n_pos=4, n_heads=2, d_head=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(short_attention, (together,))


def test_a_second_derivative_is_refused_rather_than_wrong():
    together = queries_keys_values(batch=2, n_pos=4, n_heads=2, d_head=3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(short_attention(together).sum(), together, create_graph=True)


def small_model() -> HookedTransformer:
    torch.manual_seed(0)
    return HookedTransformer(
        HookedTransformerConfig(n_layers=2, d_model=32, n_heads=4, n_ctx=40, d_vocab=11, attn_only=True)
    )


def test_the_remedy_it_names_for_second_derivatives_works(two_threads: None):
    model = small_model()
    watch = [(f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: None) for layer in (0, 1)]  # noqa: ARG005
    with model.hooks(fwd_hooks=watch):
        (gradient,) = torch.autograd.grad(model(tokens()).square().mean(), model.W_E, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), model.W_E)
    assert second.isfinite().all()


def tokens() -> Tensor:
    return torch.randint(11, (6, 40), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: HookedTransformer) -> list[Tensor]:
    logits = model(tokens())
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    return [loss, *torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])]


def test_a_model_trains_through_it_and_takes_the_same_step(two_threads: None, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        "interp.components.short_attention", lambda together: calls.append(1) or short_attention(together)
    )
    model = small_model()
    found = loss_and_gradients(model)
    assert len(calls) == model.cfg.n_layers
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda pattern, hook: None)]):  # noqa: ARG005
        expected = loss_and_gradients(model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("point", ["hook_q", "hook_k", "hook_v", "hook_attn_scores", "hook_pattern"])
def test_a_hook_before_z_is_heard(two_threads: None, point: str):
    model, heard = small_model(), []
    with model.hooks(fwd_hooks=[(f"blocks.0.attn.{point}", lambda tensor, hook: heard.append(tensor.shape))]):  # noqa: ARG005
        model(tokens())
    assert len(heard) == 1


def test_a_hook_at_z_edits_it(two_threads: None):
    model = small_model()
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", lambda z, hook: z * 0) for layer in (0, 1)]):  # noqa: ARG005
        silenced = model(tokens())
    assert silenced.requires_grad
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.W_O)
    torch.testing.assert_close(silenced, model(tokens()))


def test_it_is_taken_only_where_it_is_faster_and_possible(two_threads: None):
    def suits(*, n_pos: int = 64, n_heads: int = 8, d_head: int = 16, dtype: torch.dtype = torch.float32) -> bool:
        together = queries_keys_values(batch=2, n_pos=n_pos, n_heads=n_heads, d_head=d_head, dtype=dtype)
        assert not suits_short_attention(together.detach())  # nothing to differentiate
        return suits_short_attention(together)

    assert suits()
    assert not suits(n_pos=256)
    assert not suits(n_pos=8)
    assert not suits(n_heads=1)
    assert not suits(d_head=64)
    assert not suits(dtype=torch.bfloat16)
    torch.set_num_threads(1)
    assert not suits()


def test_torch_func_takes_gradients_of_a_model_of_its_shape(two_threads: None):
    model = small_model()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (tokens(),)).logsumexp(-1).mean()

    found = torch.func.grad(loss)(weights)
    (expected,) = torch.autograd.grad(model(tokens()).logsumexp(-1).mean(), model.unembed.W_U)
    torch.testing.assert_close(found["unembed.W_U"], expected, atol=1e-6, rtol=1e-5)

"""Causal softmax attention over short prompts with many small heads, on a CPU: slices that stay in the cache.

PyTorch's fused attention multiplies one tile of one head at a time. With heads of 16 numbers that is a call for very
little work, and two threads were measured to take as long as one. Here one batched product serves all heads of a
slice of prompts, and the gradients of queries, keys and values are written where the projection's backward reads
them. ``benchmarks/bench_training.py`` shows what that is worth.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd.function import FunctionCtx

_SCORES_PER_SLICE = 1 << 18
"""Scores computed at a time: 1 MiB in float32, about a core's second-level cache."""


def suits_short_attention(together: Float[Tensor, "batch pos 3 head d_head"]) -> bool:
    """Whether this way is possible (on a CPU, with gradients, outside torch.func) and was measured to be faster.

    On one thread PyTorch's own kernel is the faster one, with any shape.
    """
    _, n_pos, _, n_heads, d_head = together.shape
    return (
        24 <= n_pos <= 128
        and n_heads > 1
        and d_head <= 32
        and together.device.type == "cpu"
        and torch.get_num_threads() > 1
        and together.dtype in (torch.float32, torch.float64)
        and together.requires_grad
        and not _functorch.maybe_current_level()
    )


def short_attention(together: Float[Tensor, "batch pos 3 head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
    """z of causal softmax attention from queries, keys and values [:, :, 0], [:, :, 1] and [:, :, 2]."""
    return _ShortAttention.apply(together)  # pyright: ignore[reportReturnType]


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, together: Tensor) -> Tensor:
        batch, n_pos, _, n_heads, d_head = together.shape
        z = together.new_empty(batch, n_pos, n_heads, d_head)
        heads = together.new_empty(3, batch, n_heads, n_pos, d_head)
        pattern = together.new_empty(batch, n_heads, n_pos, n_pos)
        hidden = together.new_full((n_pos, n_pos), -math.inf).triu_(1)
        for prompts in _slices(pattern):
            heads[:, prompts] = together[prompts].permute(2, 0, 3, 1, 4)
            q, k, v = heads[:, prompts].flatten(1, 2)
            scores = torch.baddbmm(hidden, q, k.mT, alpha=1 / math.sqrt(d_head))
            mixed = torch.bmm(torch.softmax(scores, dim=-1, out=pattern[prompts].flatten(0, 1)), v)
            z[prompts] = mixed.unflatten(0, (-1, n_heads)).transpose(1, 2)
        ctx.save_for_backward(heads, pattern, z)
        return z

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        """The softmax's gradient is pattern · (∂pattern − z · ∂z), so that no sum over the sources is needed."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused attention has no second derivative (create_graph=True); put a hook at every layer's "
                "hook_pattern: attention is then written out, and can be differentiated twice"
            )
        heads, patterns, z = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        batch, n_pos, n_heads, d_head = z.shape
        d_together = z.new_empty(batch, n_pos, 3, n_heads, d_head)
        for prompts in _slices(patterns):
            q, k, v = heads[:, prompts].flatten(1, 2)
            d_z = _head_first(gradients[0][prompts])
            pattern = patterns[prompts].flatten(0, 1)
            overlap = (d_z * _head_first(z[prompts])).sum(dim=-1, keepdim=True)
            d_scores = torch.bmm(d_z, v.mT).sub_(overlap).mul_(pattern)
            d_q = torch.bmm(d_scores, k).div_(math.sqrt(d_head))
            d_k = torch.bmm(d_scores.mT, q).div_(math.sqrt(d_head))
            d_v = torch.bmm(pattern.mT, d_z)
            for part, gradient in enumerate((d_q, d_k, d_v)):
                d_together[prompts, :, part] = gradient.unflatten(0, (-1, n_heads)).transpose(1, 2)
        return d_together


def _slices(pattern: Float[Tensor, "batch head dest src"]) -> list[slice]:
    size = max(1, _SCORES_PER_SLICE // pattern[0].numel())
    return [slice(start, start + size) for start in range(0, len(pattern), size)]


def _head_first(part: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch_head pos d_head"]:
    return part.transpose(1, 2).flatten(0, 1)

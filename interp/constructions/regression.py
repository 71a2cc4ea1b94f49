"""Linear-attention transformers built by hand that descend gradients in context, so what each head does is known.

Preprocessing takes d heads and cannot do with fewer, however wide. It has to write x_j r_j to coordinate j, where
r_j = (1/n) Σ_i x_ij y_i, so a context column (x′; y′) has to contribute x_j x′_j y′ at a query column (x; 0). What H
heads of one layer of linear attention contribute is Σ_h Σ_k x_k (a_hk · (x′; y′)) (b_hj · (x′; y′)), for vectors a_hk
and b_hj in R^(d+1) that the weights give. Let α [H, d] hold the last entry of each a_hk and β [d, H] that of each b_hj.

1. The target has no term in y′², so β α = 0, and rank α + rank β ≤ H.
2. The null space of α has d − rank α dimensions, so it holds a vector w of at least d − rank α non-zero entries.
3. At x = w the coefficient of x′_p y′ is Σ_h β_jh Σ_k w_k a_hk[p], as the other half, with α w, is 0; it must be w_j if
   p = j and 0 if not. So diag(w) is a product with β, and rank β ≥ rank diag(w) ≥ d − rank α. With 1: H ≥ d.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import Attention
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError
from tasks.field_checks import check_real, check_whole


def preprocess_then_optimize_transformer(
    d: int, n_ctx: int, steps: int, step_size: float, n_queries: int = 1, dtype: torch.dtype = torch.float32
) -> HookedTransformer:
    """A transformer that equals ``tasks.PreprocessThenOptimize(steps, step_size)`` at every position.

    The residual stream holds x_i (d numbers), the preprocessed x̃_i (d), an error e_i and a prediction p_i, and starts
    as (x_i, 0, y_i, 0). Sums run over the n context positions, which every position reads; nobody reads a query.

    - Layer 0, one head per feature: head j asks with x_j, matches x_ij and copies y_i, which makes
      x̃_j = x_j r_j with r_j = (1/n) Σ_i x_ij y_i. Fewer than d heads cannot do it (see the module's note).
    - Each of the ``steps`` layers behind it, head 0: it asks with x̃, matches x̃_i and copies e_i, and with
      η = ``step_size`` adds η (1/n) Σ_i e_i ⟨x̃_i, x̃⟩ to p and takes it from e. So p = ⟨w̃_t, x̃⟩ after step t of gradient
      descent, and e_i = y_i − p_i. The other d − 1 heads have zero weights.

    The output is p. Zeroing head j of layer 0 is preprocessing with r_j = 0; zeroing head 0 of a later layer is one
    step fewer; zeroing any other changes nothing.

    Args:
        d: features; the model reads columns (x; y) of d + 1 numbers, ``SparseRegression(d=d, …).d_in``.
        n_ctx: positions of the longest prompt, queries included; the model has no positions and takes shorter ones.
        step_size: one number for all prompts. Descent goes on for ever only below 2 / λ_max of the *preprocessed*
            problem, which differs far more between prompts than that of x.
        n_queries: positions at the end that ask and are read by none.
        dtype: of the weights, and so of the inputs. ``model.double()`` afterwards would keep a rounded step size.

    Raises:
        InputError: a size or step size out of range, or a dtype that is not real.

    Source: Chen, Zhao and Zou 2024 (arXiv 2408.04532): the algorithm, and that it takes many heads first and one later
    [abs][mem]; the layout of the residual stream and the bound on the heads are ours.

    >>> from tasks import PreprocessThenOptimize, SparseRegression
    >>> prompts = SparseRegression(d=4, sparsity=2, n_context=20).sample(3, seed=0)
    >>> model = preprocess_then_optimize_transformer(d=4, n_ctx=21, steps=5, step_size=0.1)
    >>> expected = PreprocessThenOptimize(steps=5, step_size=0.1)(prompts)
    >>> torch.allclose(model(prompts.inputs).squeeze(-1).double(), expected, atol=1e-5)
    True
    """
    _check(d, steps, step_size, dtype)
    model = _without_weights(1 + steps, d, 2 * d + 2, d, n_ctx, n_queries, dtype)
    x, preprocessed, error, prediction = slice(0, d), slice(d, 2 * d), 2 * d, 2 * d + 1
    with torch.no_grad():
        _wire_ends(model, d, x, error, prediction)
        first, *later = (block.attn for block in model.blocks)
        for j in range(d):
            first.W_Q[j, j, 0] = math.sqrt(d)  # attention divides scores by √d_head
            first.W_K[j, j, 0] = 1
            first.W_V[j, error, 0] = 1
            first.W_O[j, 0, d + j] = 1
        for attn in later:
            _write_step(attn, preprocessed, error, prediction, step_size)
    return model


def gradient_descent_transformer(
    d: int, n_ctx: int, steps: int, step_size: float, n_queries: int = 1, dtype: torch.dtype = torch.float32
) -> HookedTransformer:
    """A transformer that equals ``tasks.GradientDescent(steps, step_size)`` at every position, with one head per layer.

    The second phase of ``preprocess_then_optimize_transformer`` on x itself: the residual stream holds x_i (d numbers),
    an error e_i and a prediction p_i, starts as (x_i, y_i, 0), and layer t takes step t. Arguments and errors are the
    same.

    Source: that one head of linear self-attention can take one step of gradient descent: von Oswald et al. 2023
    (arXiv 2212.07677) [mem].

    >>> from tasks import GradientDescent, SparseRegression
    >>> prompts = SparseRegression(d=4, sparsity=2, n_context=20).sample(3, seed=0)
    >>> model = gradient_descent_transformer(d=4, n_ctx=21, steps=5, step_size=0.1)
    >>> expected = GradientDescent(steps=5, step_size=0.1)(prompts)
    >>> torch.allclose(model(prompts.inputs).squeeze(-1).double(), expected, atol=1e-5)
    True
    """
    _check(d, steps, step_size, dtype)
    model = _without_weights(steps, 1, d + 2, d, n_ctx, n_queries, dtype)
    x, error, prediction = slice(0, d), d, d + 1
    with torch.no_grad():
        _wire_ends(model, d, x, error, prediction)
        for block in model.blocks:
            _write_step(block.attn, x, error, prediction, step_size)
    return model


def _check(d: int, steps: int, step_size: float, dtype: torch.dtype) -> None:
    check_whole("d", d, 1)
    check_whole("steps", steps, 1)
    check_real("step_size", step_size)
    if not dtype.is_floating_point:
        raise InputError(f"dtype = {dtype} holds no real numbers: choose torch.float32 or torch.float64")


def _without_weights(
    n_layers: int, n_heads: int, d_model: int, d: int, n_ctx: int, n_queries: int, dtype: torch.dtype
) -> HookedTransformer:
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_ctx=n_ctx,
        n_heads=n_heads,
        d_head=d,
        d_in=d + 1,
        d_out=1,
        attn_only=True,
        attn_fn="linear",
        attention_dir="query_masked",
        n_queries=n_queries,
        positional_embedding_type="none",
        use_biases=False,
        seed=None,
    )
    return HookedTransformer(cfg).to(dtype)  # before weights are written, so that they are rounded once


def _wire_ends(model: HookedTransformer, d: int, x: slice, error: int, prediction: int) -> None:
    """Read x, and y as the error of predicting 0; give out the prediction."""
    model.W_E[:d, x] = _identity(d, model.W_E)
    model.W_E[d, error] = 1
    model.W_U[prediction, 0] = 1


def _write_step(attn: Attention, features: slice, error: int, prediction: int, step_size: float) -> None:
    """Make head 0 one step of gradient descent on the features."""
    d = attn.W_Q.shape[-1]
    attn.W_Q[0, features] = math.sqrt(d) * _identity(d, attn.W_Q)
    attn.W_K[0, features] = _identity(d, attn.W_K)
    attn.W_V[0, error, 0] = 1
    attn.W_O[0, 0, error] = -step_size
    attn.W_O[0, 0, prediction] = step_size


def _identity(d: int, like: Tensor) -> Float[Tensor, "d d"]:
    return torch.eye(d, dtype=like.dtype, device=like.device)

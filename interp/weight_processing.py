"""Other weights for the same function, in which products of bare matrices mean more."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError


def fold_ln(model: HookedTransformer) -> HookedTransformer:
    """A new model with the same outputs whose LayerNorms only centre and scale (``normalization_type="LNPre"``).

    A matrix W [d_model, …] that reads LayerNorm's output x ⊙ w + b becomes w ⊙ W, its bias grows by b W, and, as x is
    centred, each column of W loses its mean. So what a readout such as W_E W_V W_O W_U leaves out is each position's
    scale alone. The new model has biases; no parameter of it is frozen, and its ``cfg.seed`` is None.

    Raises:
        InputError: the model has no LayerNorm, or a linear feed-forward part, which has no bias to take the shift.

    Source: TransformerLens' fold_layer_norm, which gives the same weights [code].

    >>> cfg = HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, normalization_type="LN")
    >>> model, tokens = HookedTransformer(cfg), torch.tensor([[0, 1, 2]])
    >>> torch.allclose(fold_ln(model)(tokens), model(tokens), atol=1e-5)
    True
    """
    cfg = model.cfg
    if cfg.normalization_type is None:
        raise InputError("normalization_type is None: the model has no LayerNorm to fold")
    if cfg.mlp_type == "linear" and any(cfg.has_mlp(layer) for layer in range(cfg.n_layers)):
        raise InputError("mlp_type = 'linear' has no bias to take LayerNorm's shift: this model cannot be folded")
    folded = _same_function(model, normalization_type="LNPre", use_biases=True, identity_queries=False)
    old, new = dict(model.named_parameters()), dict(folded.named_parameters())
    with torch.no_grad():
        for layer in range(cfg.n_layers):
            block = f"blocks.{layer}"
            for letter in "QKV":
                _fold(f"{block}.ln1", f"{block}.attn.W_{letter}", f"{block}.attn.b_{letter}", old, new)
            if cfg.has_mlp(layer):
                _fold(f"{block}.ln2", f"{block}.mlp.W_in", f"{block}.mlp.b_in", old, new)
        _fold("ln_final", "unembed.W_U", "unembed.b_U", old, new)
    return folded


def center_writing_weights(model: HookedTransformer) -> HookedTransformer:
    """A new model with the same outputs whose every write to the residual stream has mean zero over d_model.

    LayerNorm subtracts that mean wherever the stream is read, so that nothing is lost.

    Raises:
        InputError: the model has no LayerNorm, so that the mean counts.

    Source: TransformerLens' center_writing_weights [code].
    """
    if model.cfg.normalization_type is None:
        raise InputError("normalization_type is None: without LayerNorm the mean of the residual stream counts")
    return _centred(model, ("W_E", "b_E", "W_pos", "W_O", "b_O", "W_out", "b_out", "W_F"))


def center_unembed(model: HookedTransformer) -> HookedTransformer:
    """A new model whose logits have mean zero over the vocabulary; their log-softmax is unchanged.

    A contribution to a logit then says how much more it favours that token than the average one.

    Raises:
        InputError: the outputs are real numbers, whose mean counts.

    Source: TransformerLens' center_unembed [code].

    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5))
    >>> bool((center_unembed(model)(torch.tensor([[0, 1, 2]])).mean(dim=-1).abs() < 1e-6).all())
    True
    """
    if model.cfg.d_out is not None:
        raise InputError(f"d_out = {model.cfg.d_out}: the model gives real numbers and no logits, so their mean counts")
    return _centred(model, ("W_U", "b_U"))


def _fold(norm: str, reader: str, bias: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Put a LayerNorm's gain and shift into a matrix [*head, d_model, d_out] that reads it, and its bias."""
    matrix = old[reader]
    gain, shift = old.get(f"{norm}.w"), old.get(f"{norm}.b")
    if bias in old:
        new[bias].copy_(old[bias])
    if shift is not None:
        new[bias].add_(_applied(shift, matrix))
    scaled = matrix if gain is None else matrix * gain[:, None]
    new[reader].copy_(scaled - scaled.mean(dim=-2, keepdim=True))


def _applied(
    shift: Float[Tensor, "d_model"], matrix: Float[Tensor, "*head d_model d_out"]
) -> Float[Tensor, "*head d_out"]:
    return (shift[:, None] * matrix).sum(dim=-2)


def _centred(model: HookedTransformer, kinds: tuple[str, ...]) -> HookedTransformer:
    centred = _same_function(model)
    with torch.no_grad():
        for name, weight in centred.named_parameters():
            if name.rpartition(".")[2] in kinds:
                weight.sub_(weight.mean(dim=-1, keepdim=True))
    return centred


def _same_function(model: HookedTransformer, **changes: object) -> HookedTransformer:
    """A copy that no seed draws and nothing freezes; parameters that only it has are zero."""
    cfg: HookedTransformerConfig = replace(model.cfg, frozen=(), seed=None, **changes)  # pyright: ignore
    copy = HookedTransformer(cfg).to(device=model.unembed.W_U.device, dtype=model.unembed.W_U.dtype)
    old = model.state_dict()
    copy.load_state_dict({name: old.get(name, weight) for name, weight in copy.state_dict().items()})
    return copy

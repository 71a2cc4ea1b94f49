"""HookedTransformer to and from the classes of TransformerLens, weights and all."""

import importlib
import math
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError

# Fields that mean the same in both configs.
_SHARED = (
    *("n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "act_fn", "attn_only"),
    *("parallel_attn_mlp", "normalization_type", "eps", "positional_embedding_type", "attention_dir"),
)
# What TransformerLens can do and HookedTransformer cannot: each field must have the value that switches it off.
_SWITCHED_OFF = {
    "positional_embedding_type": "standard",
    "use_attn_scale": True,
    "scale_attn_by_inverse_layer_idx": False,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "use_local_attn": False,
    "use_qk_norm": False,
    "clip_qkv": None,
    "use_logn_attn": False,
    "use_attention_sinks": False,
    "gated_mlp": False,
    "num_experts": None,
    "final_rms": False,
    "post_embedding_ln": False,
    "use_normalization_before_and_after": False,
    "load_in_4bit": False,
}
# Fields of ours that say how weights are made or trained, not what they compute.
_NOT_COMPUTATION = {"use_biases", "identity_queries", "init_mode", "frozen", "seed"}
_BUFFERS = ("mask", "IGNORE")
_TOLERANCE = 1e-3  # of logits, relative to the largest: rounding stays far below, another architecture far above


def from_transformer_lens(model: nn.Module) -> HookedTransformer:
    """The HookedTransformer that computes what a model of TransformerLens computes, with a copy of its weights.

    Takes TransformerLens 3's HookedTransformer, and TransformerLens 4's TransformerBridge (attributes
    ``tl_parameters`` and ``cfg``). All of HookedTransformer's parameters exist on TransformerLens' class and have its
    names and shapes, so that the weights are equal bit for bit. The result's ``cfg.seed`` is None: its weights were
    not drawn here.

    Raises:
        InputError: the model has what HookedTransformer has not (rotary positions, grouped queries, RMS
            normalisation, soft caps …), by name; or, whatever the reason, the two give different logits.
    """
    theirs = getattr(model, "cfg", None)
    if theirs is None or not hasattr(theirs, "d_model"):
        raise InputError(f"{type(model).__name__} is no model of TransformerLens: it has no cfg")
    _refuse_other_architectures(theirs)
    known = {field.name for field in fields(HookedTransformerConfig)}
    config = {name: getattr(theirs, name) for name in _SHARED if name in known}
    if theirs.attn_only:
        config |= {"act_fn": "relu", "parallel_attn_mlp": False}  # without an MLP neither means anything
    source: Any = model
    tensors = source.tl_parameters() if hasattr(source, "tl_parameters") else source.state_dict()
    own = HookedTransformer(HookedTransformerConfig(**config, seed=None))
    weights = {name: tensors[name] for name in own.state_dict() if name in tensors}
    some = next(iter(weights.values()))
    own.to(device=some.device, dtype=some.dtype).load_state_dict(weights)
    _refuse_other_logits(model, own)
    return own


def to_transformer_lens(model: HookedTransformer) -> Any:
    """TransformerLens 3's HookedTransformer with a copy of the weights; absent biases are zeros there.

    ``from_transformer_lens`` takes it back to the same weights, bit for bit.

    Raises:
        InputError: TransformerLens 4 is installed, which has no such class; or the model has what TransformerLens'
            class has not (a linear feed-forward part, layers without one, no positions), by name.
    """
    installed = version("transformer-lens")
    if int(installed.partition(".")[0]) >= 4:
        raise InputError(
            f"transformer-lens {installed} has no HookedTransformer: install transformer-lens 3.9 to convert to it"
        )
    if model.cfg.attention_dir == "query_masked":
        raise InputError("attention_dir = 'query_masked' does not exist in TransformerLens: convert no such model")
    defaults = HookedTransformerConfig(n_layers=1, d_model=1, n_ctx=1, d_vocab=1)
    for field in fields(HookedTransformerConfig):
        if field.name in _NOT_COMPUTATION or (field.name in _SHARED and field.name not in _SWITCHED_OFF):
            continue
        value, plain = getattr(model.cfg, field.name), getattr(defaults, field.name)
        if value != plain:
            raise InputError(
                f"{field.name} = {value!r} does not exist in TransformerLens: it would have to be {plain!r}"
            )
    transformer_lens: Any = importlib.import_module("transformer_lens")
    some = model.unembed.W_U
    config = {name: getattr(model.cfg, name) for name in _SHARED}
    config |= {"device": str(some.device), "dtype": some.dtype, "init_weights": False}
    theirs = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**config))
    own = model.state_dict()
    theirs.load_state_dict(
        {
            name: tensor if name.rpartition(".")[2] in _BUFFERS else own.get(name, torch.zeros_like(tensor))
            for name, tensor in theirs.state_dict().items()
        }
    )
    return theirs


def _refuse_other_architectures(cfg: Any) -> None:
    for name, plain in _SWITCHED_OFF.items():
        value = getattr(cfg, name, plain)
        if value != plain:
            raise InputError(f"HookedTransformer has no {name} = {value!r}: it would have to be {plain!r}")
    if getattr(cfg, "n_key_value_heads", None) not in (None, cfg.n_heads):
        raise InputError(
            f"HookedTransformer has no n_key_value_heads = {cfg.n_key_value_heads} (grouped-query attention): "
            f"every one of the {cfg.n_heads} heads has its own keys and values"
        )
    scale = getattr(cfg, "attn_scale", -1.0)
    if scale != -1.0 and not math.isclose(scale, math.sqrt(cfg.d_head)):
        raise InputError(f"HookedTransformer has no attn_scale = {scale}: scores are divided by √d_head")


def _refuse_other_logits(theirs: nn.Module, own: HookedTransformer) -> None:
    """The architectures of TransformerLens are too many to name: what counts is that the numbers agree."""
    cfg = own.cfg
    tokens = torch.randint(cfg.d_vocab or 0, (2, min(cfg.n_ctx, 16)), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(own.unembed.W_U.device)
    was_training = theirs.training
    with torch.no_grad():
        expected: Tensor = theirs.eval()(tokens)
        theirs.train(was_training)
        apart = float((own(tokens) - expected).abs().max())
    if not apart <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"the converted model's logits differ by up to {apart:.2g}: {type(theirs).__name__} computes something "
            "that HookedTransformer does not, analyse it as it is"
        )

"""Initial weights from a seed, and which parameters are never trained."""

import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError

_EMBEDDINGS = ("W_E", "W_pos")


def initialise(model: nn.Module, cfg: HookedTransformerConfig) -> None:
    """Draw every parameter anew from ``cfg.seed`` (None: all zero); the global generators are left alone."""
    generator = torch.Generator().manual_seed(cfg.seed or 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "w":
                weight.fill_(1.0)
            elif kind == "W_Q" and cfg.identity_queries:
                weight.copy_(torch.eye(cfg.d_model))
            elif kind.startswith("b") or cfg.seed is None:
                weight.zero_()
            else:
                weight.copy_(_drawn(weight, kind, cfg, generator))


def _drawn(weight: Tensor, kind: str, cfg: HookedTransformerConfig, generator: torch.Generator) -> Tensor:
    if cfg.init_mode == "gpt2":
        return torch.randn(weight.shape, generator=generator) * (0.8 / math.sqrt(cfg.d_model))
    if kind in _EMBEDDINGS and not (kind == "W_E" and cfg.d_in is not None):
        return torch.randn(weight.shape, generator=generator)
    fan_in = weight.shape[-2] * (weight.shape[0] if kind == "W_O" else 1)  # W_O sums over heads and d_head
    return (2 * torch.rand(weight.shape, generator=generator) - 1) / math.sqrt(fan_in)


def freeze(model: nn.Module, cfg: HookedTransformerConfig) -> None:
    """Take the parameters that ``cfg.frozen`` names out of training, and W_Q if it is fixed to the identity."""
    for name in matching_parameters(model, cfg.frozen):
        model.get_parameter(name).requires_grad_(False)
    if cfg.identity_queries:
        for name, weight in model.named_parameters():
            if name.endswith("W_Q"):
                weight.requires_grad_(False)


def matching_parameters(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """The parameters that the patterns stand for (``*`` matches anything); a pattern never matches nothing.

    Raises:
        InputError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    matched: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise InputError(f"{pattern!r} matches no parameter: the model has {', '.join(names)}")
        matched += hits
    return matched

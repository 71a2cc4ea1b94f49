"""What a probe should read out: facts about prompts by name, functions of prompts, or tensors of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tasks.errors import InputError
from tasks.prompts import CLEAN_TARGET, Prompts
from tasks.regression_layout import regression_pairs

TargetLike = str | Callable[[Prompts], Tensor] | tuple[Tensor, Tensor]
"""A name (a label or latent of the prompts, or "answer", "correlation", "preprocessed"); a function of the prompts, a
reference predictor say; or two tensors, for the fitting and for the test prompts.

Values stand at positions, [batch, pos] or [batch, pos, k]; a fact about the whole prompt is [batch, 1, k].
"""
Kind = Literal["real", "binary", "class"]


@dataclass(frozen=True, eq=False)
class ProbeTarget:
    """A target where the probe reads: one row per position read, of the fitting and of the test prompts."""

    name: str
    kind: Kind
    fit: Shaped[Tensor, "fit_row k"]
    test: Shaped[Tensor, "test_row k"]


def probe_target(
    name: str,
    target: TargetLike,
    prompts: tuple[Prompts, Prompts],
    at: tuple[Bool[Tensor, "fit_batch fit_pos"], Bool[Tensor, "test_batch test_pos"]],
) -> ProbeTarget:
    """The target's values at the positions read. Real numbers stay so, booleans are "binary", integers "class".

    Raises:
        InputError: nothing has that name, values of a shape or kind that cannot be read, not finite, or all alike.

    >>> prompts = Prompts.from_tensors(torch.tensor([[3, 1], [2, 4]]))
    >>> probe_target("answer", "answer", (prompts, prompts), (prompts.scored, prompts.scored)).fit
    tensor([[1],
            [4]])
    """
    if isinstance(target, tuple):
        both = list(target)
    elif isinstance(target, str):
        both = [_named(target, part) for part in prompts]
    elif callable(target):
        both = [target(part) for part in prompts]
    else:
        raise InputError(
            f"target {name!r} is {type(target).__name__}: give a name, a function of prompts, or two tensors, "
            "for the fitting and for the test prompts"
        )
    if len(both) != 2:
        raise InputError(f"target {name!r} holds {len(both)} tensors: give two, for the fitting and the test prompts")
    fit, test = (_rows(name, values, part, where) for values, part, where in zip(both, prompts, at, strict=True))
    if fit.shape[1] != test.shape[1]:
        raise InputError(
            f"target {name!r} has {fit.shape[1]} numbers per position on the fitting prompts and {test.shape[1]} on "
            "the test prompts: probe prompts of one task"
        )
    kind = _kind(name, fit)
    if kind == "class" and (fit.shape[1] != 1 or int(torch.minimum(fit.min(), test.min())) < 0):
        raise InputError(f"target {name!r} holds integers: classes are one non-negative integer per position")
    if bool((test == test[:1]).all()):
        raise InputError(f"target {name!r} is the same at every position of the test prompts: nothing is to be read")
    return ProbeTarget(name, kind, fit, test)


def _kind(name: str, values: Tensor) -> Kind:
    if values.dtype == torch.bool:
        return "binary"
    if not values.is_floating_point():
        return "class"
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"target {name!r} holds NaN or infinity: probe only where it is known, with at=")
    return "real"


def _rows(
    name: str, values: object, prompts: Prompts, at: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "row k"] | Int[Tensor, "row k"] | Bool[Tensor, "row k"]:
    shape = tuple(prompts.targets.shape)
    if not isinstance(values, Tensor):
        raise InputError(f"target {name!r} is {type(values).__name__}: give a Tensor")
    if tuple(values.shape) == shape:
        values = values[..., None]
    if values.ndim != 3 or values.shape[0] != shape[0] or values.shape[1] not in (1, shape[1]):
        raise InputError(
            f"target {name!r} is {list(values.shape)} for {shape[0]} prompts of {shape[1]} positions: give "
            "[batch, pos] or [batch, pos, k], or for a fact about the whole prompt [batch, 1, k]"
        )
    values = values.detach().expand(-1, shape[1], -1)
    rows = values[at.to(values.device)].cpu()
    return rows.double() if rows.is_floating_point() else rows


def _named(name: str, prompts: Prompts) -> Tensor:
    if name in prompts.labels:
        return prompts.labels[name]
    if name in prompts.latents:
        return prompts.latents[name].flatten(start_dim=1)[:, None]
    if name not in _DERIVED:
        known = [*prompts.labels, *prompts.latents, *_DERIVED]
        raise InputError(f"target = {name!r} is unknown: these prompts have {', '.join(known)}; or give a function")
    return _DERIVED[name](prompts)


def answer_of(prompts: Prompts) -> Tensor:
    """The target without its noise where that is known."""
    return prompts.labels.get(CLEAN_TARGET, prompts.targets)


def _correlation(prompts: Prompts) -> Float[Tensor, "batch pos d"]:
    """r_j = (1/n) Σ_i x_ij y_i over the n pairs that a prediction at the position may learn from; 0 for none."""
    x, y, _ = regression_pairs(prompts)
    x, y = x.double(), y.double()
    products = (x[:, : y.shape[1]] * y[..., None]).cumsum(dim=1)
    sums = torch.cat([torch.zeros_like(products[:, :1]), products], dim=1)  # over the first 0, 1, … n pairs
    n = prompts.labels["n_context"]
    return sums.gather(1, n[..., None].expand(-1, -1, x.shape[-1])) / n.clamp(min=1)[..., None]


def _preprocessed(prompts: Prompts) -> Float[Tensor, "batch pos d"]:
    """R x = r ∘ x at positions that hold an x, what Chen et al.'s first layer is to compute."""
    return _correlation(prompts) * prompts.inputs[..., :-1]


_DERIVED: dict[str, Callable[[Prompts], Tensor]] = {
    "answer": answer_of,
    "correlation": _correlation,
    "preprocessed": _preprocessed,
}

"""What an intervention writes: zeros, given values, or something made of the activation itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError

Activation = Float[Tensor, "batch pos *rest"]

Edit = Callable[[Activation], Activation]
"""What is written in place of an activation at a site: a tensor of the same shape, dtype and device.

At a site of a head the activation is [batch, pos, d], at its ``scores`` and ``pattern`` [batch, dest, src]. Any
function is an edit; the classes of this file are the usual ones.
"""


@dataclass(frozen=True)
class Zero:
    """Write zeros."""

    def __call__(self, activation: Activation) -> Activation:
        return torch.zeros_like(activation)


@dataclass(frozen=True, eq=False)
class Replace:
    """Write given values: one vector [d], one per position [pos, d], or one per prompt and position [batch, pos, d]."""

    values: Float[Tensor, "*shape"]

    def __call__(self, activation: Activation) -> Activation:
        _refuse_misfit("the replacement", self.values, activation, kinds=False)
        return self.values.expand(activation.shape)


@dataclass(frozen=True, eq=False)
class Add:
    """Add given values, shaped as for ``Replace``: a steering vector, say.

    >>> Add(torch.tensor([1.0, -1.0]))(torch.zeros(1, 1, 2))
    tensor([[[ 1., -1.]]])
    """

    values: Float[Tensor, "*shape"]

    def __call__(self, activation: Activation) -> Activation:
        _refuse_misfit("what is added", self.values, activation)
        return activation + self.values


@dataclass(frozen=True)
class Scale:
    """Multiply by a number; 0 writes zeros, 1 changes nothing.

    Raises:
        InputError: the number is not finite.
    """

    factor: float

    def __post_init__(self) -> None:
        if not abs(self.factor) < float("inf"):
            raise InputError(f"factor = {self.factor} is not finite: give a number")

    def __call__(self, activation: Activation) -> Activation:
        return activation * self.factor


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Take a direction u [d] away: x − ⟨x, u⟩ u / ⟨u, u⟩, so that nothing along u is left.

    Raises:
        InputError: the direction is no vector, or it is zero or not finite.

    >>> ProjectOut(torch.tensor([0.0, 2.0]))(torch.tensor([[[3.0, 4.0]]]))
    tensor([[[3., 0.]]])
    """

    direction: Float[Tensor, "d"]

    def __post_init__(self) -> None:
        if self.direction.ndim != 1:
            raise InputError(f"direction has shape {list(self.direction.shape)}: give one vector, [d]")
        norm = float(self.direction.norm())
        if not 0 < norm < float("inf"):
            raise InputError(f"direction has the norm {norm}: give a vector that is finite and not zero")

    def __call__(self, activation: Activation) -> Activation:
        _refuse_misfit("the direction", self.direction, activation)
        unit = self.direction / self.direction.norm()
        return activation - (activation @ unit).unsqueeze(-1) * unit


@dataclass(frozen=True)
class Clamp:
    """Keep every number between two bounds, either of which may be missing.

    Raises:
        InputError: there is no bound, one is not a number, or low exceeds high.

    >>> Clamp(low=0.0)(torch.tensor([[[-1.0, 2.0]]]))
    tensor([[[0., 2.]]])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise InputError("Clamp() bounds nothing: give low=, high= or both")
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and bound != bound:
                raise InputError(f"{name} = {bound} is not a number: give one, or leave it out")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"low = {self.low} exceeds high = {self.high}: no number lies between them")

    def __call__(self, activation: Activation) -> Activation:
        return activation.clamp(self.low, self.high)


def _refuse_misfit(what: str, values: Tensor, activation: Activation, *, kinds: bool = True) -> None:
    """Refuse values of another shape (even if they broadcast) and, with ``kinds``, of another dtype or device."""
    if not 1 <= values.ndim <= activation.ndim or values.shape != activation.shape[activation.ndim - values.ndim :]:
        raise InputError(
            f"{what} has shape {list(values.shape)}, the activation {list(activation.shape)}: "
            "give [d], [pos, d] or [batch, pos, d]"
        )
    if kinds and (values.dtype, values.device) != (activation.dtype, activation.device):
        raise InputError(
            f"{what} is {values.dtype} on {values.device}, the activation {activation.dtype} on {activation.device}: "
            "use .to(activation)"
        )

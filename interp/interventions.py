"""Edits of activations with proof that they happened."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from interp.model_adapter import HookedModel, hooked
from interp.sites import Site
from tasks.errors import InputError

Activation = Float[Tensor, "batch pos *rest"]


Edit = Callable[[Activation], Activation]
"""What is written in place of an activation at a site: a tensor of the same shape, dtype and device."""


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
        if self.values.shape != activation.shape[activation.ndim - self.values.ndim :]:
            raise InputError(
                f"the replacement has shape {list(self.values.shape)}, the activation {list(activation.shape)}: "
                "give [d], [pos, d] or [batch, pos, d]"
            )
        return self.values.expand(activation.shape)


@dataclass(frozen=True)
class Intervention:
    """An edit at a site."""

    site: Site
    edit: Edit


@dataclass
class Receipt:
    """Proof of an intervention: how often it fired, how many numbers it wrote, and how far it moved them."""

    site: Site
    fired: int = 0
    n_values: int = 0
    total_change: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def mean_abs_change(self) -> float:
        """Mean absolute change per number written; 0.0 says that the edit changed nothing."""
        return float(self.total_change) / self.n_values if self.n_values else 0.0

    def record(self, before: Activation, after: Activation) -> None:
        """Add one firing; stays on the device, so that nothing waits for it."""
        self.fired += 1
        self.n_values += before.numel()
        self.total_change = self.total_change.to(before.device) + (after - before).detach().abs().sum()

    def add(self, other: "Receipt") -> None:
        """Take over the firings of a receipt for the same site."""
        self.fired += other.fired
        self.n_values += other.n_values
        self.total_change = self.total_change.to(other.total_change.device) + other.total_change


@contextmanager
def intervene(model: HookedModel, interventions: Sequence[Intervention], *, passes: int = 1) -> Iterator[list[Receipt]]:
    """Hold the interventions in place for a with-block of exactly ``passes`` forward passes.

    Works on every model that ``interp.model_adapter`` knows. The hooks are removed whatever happens in the block.

    Raises:
        InputError: a site the model does not have, an edit of another shape, or an intervention that did not
            fire exactly ``passes`` times.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> with intervene(model, [Intervention(Site.parse("L0H0"), Zero())]) as receipts:
    ...     logits = model(torch.tensor([[0, 1, 2]]))
    >>> receipts[0].fired, receipts[0].n_values, receipts[0].mean_abs_change > 0
    (1, 12, True)
    """
    receipts = [Receipt(one.site) for one in interventions]
    by_point: dict[str, list[tuple[Intervention, Receipt]]] = {}
    for one, receipt in zip(interventions, receipts, strict=True):
        one.site.check(model.cfg.n_layers, model.cfg.n_heads)
        by_point.setdefault(one.site.hook_name, []).append((one, receipt))
    with hooked(model, [(point, _Editor(planned)) for point, planned in by_point.items()]):
        yield receipts
    for receipt in receipts:
        if receipt.fired != passes:
            raise InputError(
                f"the intervention at {receipt.site} fired {receipt.fired} times where {passes} were planned: "
                "run the model that often inside the block, or say passes="
            )


class _Editor:
    """All edits at one hook point, made on one copy of the activation."""

    def __init__(self, planned: Sequence[tuple[Intervention, Receipt]]):
        self.planned = planned

    def __call__(self, activation: Activation, hook: HookPoint) -> Activation:  # noqa: ARG002 — TransformerLens' call
        edited = activation.clone()
        for one, receipt in self.planned:
            where = one.site.index(edited)
            before = edited[where]
            after = self._checked(one, before)
            receipt.record(before, after)
            edited[where] = after
        return edited

    @staticmethod
    def _checked(one: Intervention, before: Activation) -> Activation:
        after: Any = one.edit(before.clone())  # a clone, so that an edit in place is an edit all the same
        if not isinstance(after, Tensor):
            raise InputError(f"the edit at {one.site} returned {type(after).__name__}: return the edited Tensor")
        for what in ("shape", "dtype", "device"):
            was, now = getattr(before, what), getattr(after, what)
            if was != now:
                raise InputError(f"the edit at {one.site} returned {what} {now} in place of {was}: keep the {what}")
        return after

"""Edits of activations with proof that they happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from interp.edits import Activation, Edit, Replace, Zero
from interp.model_adapter import HookedModel, hooked
from interp.sites import Site
from tasks.errors import InputError

__all__ = ["Activation", "Edit", "Intervention", "Receipt", "Replace", "Zero", "edited", "intervene"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """An edit at a site; with a ``mask`` only at the positions of each prompt where it holds (see ``mask_of``).

    Raises:
        InputError: the mask holds nowhere, or the site names positions as well.
    """

    site: Site
    edit: Edit
    mask: Bool[Tensor, "batch pos"] | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.site.positions is not None:
            raise InputError(f"site {self.site} names positions and has a mask: give one of the two")
        if not self.mask.any():
            raise InputError(f"the mask of {self.site} holds nowhere: the edit would write nothing")


@dataclass
class Receipt:
    """Proof of an intervention: how often it fired, how many numbers it wrote, and how far it moved them."""

    site: Site
    fired: int = 0
    n_values: int = 0
    total_change: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    n_not_finite: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """How many of the numbers written are NaN or infinite; at ``scores``, −∞ (looking away) is not counted."""
    n_unmasked: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """At ``scores``: how many entries that the attention mask hides were given a number."""

    @property
    def mean_abs_change(self) -> float:
        """Mean absolute change per number written; 0.0 says that the edit changed nothing.

        A score set to −∞ has changed infinitely.
        """
        return float(self.total_change) / self.n_values if self.n_values else 0.0

    def record(self, before: Activation, after: Activation, mask: Bool[Tensor, "batch pos"] | None = None) -> None:
        """Add one firing, of the numbers where the mask holds; stays on the device, so that nothing waits for it."""
        if mask is not None:
            before, after = before[mask], after[mask]
        before, after = before.detach(), after.detach()
        self.fired += 1
        self.n_values += before.numel()
        change = torch.where(after == before, 0.0, after - before)  # −∞ less −∞ is no change
        self.total_change = self.total_change.to(before.device) + change.abs().sum()
        wrong = ~after.isfinite()
        if self.site.component == "scores":
            hidden = after == -torch.inf
            wrong &= ~hidden
            self.n_unmasked = self.n_unmasked.to(before.device) + ((before == -torch.inf) & ~hidden).sum()
        self.n_not_finite = self.n_not_finite.to(before.device) + wrong.sum()

    def add(self, other: "Receipt") -> None:
        """Take over the firings of a receipt for the same site."""
        self.fired += other.fired
        self.n_values += other.n_values
        for name in ("total_change", "n_not_finite", "n_unmasked"):
            theirs: Tensor = getattr(other, name)
            setattr(self, name, getattr(self, name).to(theirs.device) + theirs)


@contextmanager
def intervene(model: HookedModel, interventions: Sequence[Intervention], *, passes: int = 1) -> Iterator[list[Receipt]]:
    """Hold the interventions in place for a with-block of exactly ``passes`` forward passes.

    Gives one receipt for each. Works on every model that ``interp.model_adapter`` knows; blocks may be nested, and
    the inner one then edits what the outer one has written. The hooks are removed whatever happens in the block.

    Raises:
        InputError: a site the model does not have; a mask of another shape or device; an edit of another shape, dtype
            or device, one that writes NaN or infinity, or one that gives a score to a position that the attention
            mask hides; or an intervention that did not fire exactly ``passes`` times.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> with intervene(model, [Intervention(Site.parse("L0H0"), Zero())]) as receipts:
    ...     logits = model(torch.tensor([[0, 1, 2]]))
    >>> receipts[0].fired, receipts[0].n_values, receipts[0].mean_abs_change > 0
    (1, 12, True)
    """
    receipts = [Receipt(one.site) for one in interventions]
    with held(model, interventions, receipts):
        yield receipts
    for receipt in receipts:
        refuse_wrong(receipt, passes)


@contextmanager
def held(model: HookedModel, interventions: Sequence[Intervention], receipts: Sequence[Receipt]) -> Iterator[None]:
    """``intervene`` for a block of any length: what the edits do is added to the receipts given, for a later look.

    Nothing waits for the device; ``refuse_wrong`` looks.
    """
    by_point: dict[str, list[tuple[Intervention, Receipt]]] = {}
    for one, receipt in zip(interventions, receipts, strict=True):
        one.site.check(model.cfg.n_layers, model.cfg.n_heads)
        by_point.setdefault(one.site.hook_name, []).append((one, receipt))
    with hooked(model, [(point, _Editor(planned)) for point, planned in by_point.items()]):
        yield


def edited(activation: Activation, interventions: Sequence[Intervention]) -> tuple[Activation, list[Receipt]]:
    """The activation at one hook point with the interventions made, one after the other, and a receipt for each.

    What ``intervene`` does within a pass, on an activation in hand.

    Raises:
        InputError: as for ``intervene``.

    >>> z, (receipt,) = edited(torch.ones(1, 2, 3, 4), [Intervention(Site.parse("L0H1"), Zero())])
    >>> z.sum(), receipt.fired
    (tensor(16.), 1)
    """
    receipts = [Receipt(one.site) for one in interventions]
    changed = _Editor(list(zip(interventions, receipts, strict=True)))(activation)
    for receipt in receipts:
        refuse_wrong(receipt, passes=1)
    return changed, receipts


def refuse_wrong(receipt: Receipt, passes: int) -> None:
    """Raise InputError unless the receipt is of so many passes and of sound values; on a GPU it waits for them."""
    if receipt.fired != passes:
        raise InputError(
            f"the intervention at {receipt.site} fired {receipt.fired} times where {passes} were planned: "
            "run the model that often inside the block, or say passes="
        )
    if n_wrong := int(receipt.n_not_finite):
        raise InputError(
            f"the edit at {receipt.site} wrote {n_wrong} values that are NaN or infinite: "
            "see what it divides by, and what the model gives there without it"
        )
    if n_unmasked := int(receipt.n_unmasked):
        raise InputError(
            f"the edit at {receipt.site} gave a score to {n_unmasked} pairs of positions that the attention mask "
            "hides: keep −inf where it was"
        )


class _Editor:
    """All edits at one hook point, made on one copy of the activation."""

    def __init__(self, planned: Sequence[tuple[Intervention, Receipt]]):
        self.planned = planned

    def __call__(self, activation: Activation, hook: HookPoint | None = None) -> Activation:  # noqa: ARG002 — TransformerLens' call
        written = activation.clone()
        for one, receipt in self.planned:
            where = one.site.index(written)
            before = written[where]
            _refuse_misfit(one, before)
            after = _checked(one, before)
            receipt.record(before, after, one.mask)
            if one.mask is not None:
                after = torch.where(one.mask.unsqueeze(-1), after, before)
            written[where] = after
        return written


def _refuse_misfit(one: Intervention, before: Activation) -> None:
    if one.mask is None:
        return
    if one.mask.shape != before.shape[:2]:
        raise InputError(
            f"the mask of {one.site} is {list(one.mask.shape)} where the prompts are {list(before.shape[:2])}: "
            "give one truth per prompt and position"
        )
    if one.mask.device != before.device:
        raise InputError(f"the mask of {one.site} is on {one.mask.device}, the activation on {before.device}: move it")


def _checked(one: Intervention, before: Activation) -> Activation:
    after: Any = one.edit(before.clone())  # a clone, so that an edit in place is an edit all the same
    if not isinstance(after, Tensor):
        raise InputError(f"the edit at {one.site} returned {type(after).__name__}: return the edited Tensor")
    for what in ("shape", "dtype", "device"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            raise InputError(f"the edit at {one.site} returned {what} {now} in place of {was}: keep the {what}")
    return after

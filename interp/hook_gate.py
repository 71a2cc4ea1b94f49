"""The one gate every hook passes: names that exist, edits that are edits, hooks that fire."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tasks.errors import InputError

Name = str | Callable[[str], bool]
HookFunction = Callable[..., Any]


@dataclass
class GuardedHook:
    """A hook function that refuses what would otherwise go unnoticed, and counts how often it fired.

    It passes TransformerLens' meaning on: None is an observer. It raises InputError if an observer changed its
    tensor in place, or if an edit has another shape, dtype or device than what it replaces.
    """

    point: str
    function: HookFunction
    direction: Literal["fwd", "bwd"] = "fwd"
    fired: int = 0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"the hook on {self.point} is {self.function!r}: give a function (tensor, hook)")

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor | None:
        self.fired += 1
        before = tensor.clone() if tensor.is_inference() else tensor._version
        edited = self.function(tensor, hook=hook)
        if edited is None:
            self._refuse_edit_in_place(tensor, before)
            return None
        if self.direction == "bwd" and isinstance(edited, tuple) and len(edited) == 1:
            edited = edited[0]
        if not isinstance(edited, Tensor):
            raise InputError(f"the hook on {self.point} returned {type(edited).__name__}: return a Tensor, or None")
        for what in ("shape", "dtype", "device"):
            was, now = getattr(tensor, what), getattr(edited, what)
            if was != now:
                was, now = (list(was), list(now)) if what == "shape" else (was, now)
                raise InputError(
                    f"the hook on {self.point} returned {what} {now} in place of {was}: return a tensor like its input"
                )
        return edited

    def _refuse_edit_in_place(self, tensor: Tensor, before: Tensor | int) -> None:
        # Tensors made under inference_mode keep no version counter, so those are compared by value.
        changed = not torch.equal(tensor, before) if isinstance(before, Tensor) else tensor._version != before
        if changed:
            raise InputError(
                f"the hook on {self.point} changed its tensor in place and returned None: "
                "edit a clone and return it, or return the tensor"
            )


def matching_points(points: Iterable[str], name: Name) -> list[str]:
    """The hook points that a name, or a filter on names, stands for; never none.

    Raises:
        InputError: no point has that name (the message lists the nearest), or the filter matches nothing.
    """
    points = list(points)
    if isinstance(name, str):
        if name in points:
            return [name]
        near = difflib.get_close_matches(name, points, n=3, cutoff=0.6)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see model.hook_dict for the names"
        raise InputError(f"the model has no hook point {name!r}: {remedy}")
    if not callable(name):
        raise InputError(f"a hook point is named by a string or a filter on names, not by {name!r}")
    matched = [point for point in points if name(point)]
    if not matched:
        raise InputError(f"the filter matches none of the model's {len(points)} hook points: see model.hook_dict")
    return matched


def refuse_unfired(hooks: Iterable[GuardedHook]) -> None:
    """Raise InputError if a hook never fired: an intervention or observation that did nothing."""
    for hook in hooks:
        if not hook.fired:
            why = (
                "no forward pass reached it (start_at_layer or stop_at_layer may have cut it off)"
                if hook.direction == "fwd"
                else "no gradient reached it (call backward inside the with-block, and see that it requires grad)"
            )
            raise InputError(f"the hook on {hook.point} never fired: {why}")

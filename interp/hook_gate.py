"""The one gate every hook passes: names that exist, edits that are edits, hooks that fire."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tasks.errors import InputError

Name = str | Callable[[str], bool]
HookFunction = Callable[..., Any]

_KNOWN = ("interp", "analyses", "transformer_lens")
"""Packages whose observers are known to observe."""


@dataclass
class GuardedHook:
    """A hook function that refuses what would otherwise go unnoticed, and counts how often it fired.

    It passes TransformerLens' meaning on: None is an observer. It raises InputError if an observer changed its
    tensor in place, or if an edit has another shape, dtype or device than what it replaces.

    Changes in place count as such however they were made: a tensor's version counter misses what is written through
    ``.data`` or numpy, and under inference_mode there is none, so a copy is compared, value by value. Functions of
    this project and of TransformerLens, which write nothing that way, are spared the copy.
    """

    point: str
    function: HookFunction
    direction: Literal["fwd", "bwd"] = "fwd"
    fired: int = 0
    why_read_only: str | None = None
    """Why an edit at this point would not do what its name says, where that is so; observers are welcome."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"the hook on {self.point} is {self.function!r}: give a function (tensor, hook)")

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor | None:
        self.fired += 1
        version = None if tensor.is_inference() else tensor._version
        # Of backward hooks TransformerLens may wrap the gradient in what is no tensor.
        copied = isinstance(tensor, Tensor) and (version is None or not self._is_known)
        before = tensor.detach().clone() if copied else None
        edited = self.function(tensor, hook=hook)
        if edited is None:
            if (version is not None and tensor._version != version) or (before is not None and _differ(tensor, before)):
                raise InputError(
                    f"the hook on {self.point} changed its tensor in place and returned None: "
                    "edit a clone and return it, or return the tensor"
                )
            return None
        if self.direction == "bwd" and isinstance(edited, tuple) and len(edited) == 1:
            edited = edited[0]
        if self.why_read_only is not None:
            raise InputError(f"{self.point} can only be read in this model: {self.why_read_only}")
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

    @property
    def _is_known(self) -> bool:
        inner = self.function
        while isinstance(inner, partial):  # as TransformerLens' own observers come
            inner = inner.func
        module = getattr(inner, "__module__", None) or ""
        return module.partition(".")[0] in _KNOWN


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


def _differ(tensor: Tensor, before: Tensor) -> bool:
    """Whether a value has changed; NaN is like NaN."""
    alike = (tensor == before) | ((tensor != tensor) & (before != before))
    return not bool(alike.all())

"""How many prompts at a time fit into memory that a user allows, measured on two of them."""

import ctypes
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.errors import InputError

MemoryBudget = int | float | str
"""Bytes, or a number with a unit: "2GB", "500 MB", "1.5GiB"."""
PROBED = 2
"""Prompts that memory is measured on: the fewest that every method of ablation takes."""
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)?", re.IGNORECASE)
_ALLOCATOR = 1.3  # what the allocator keeps of memory that was given back, and what kernels use inside
_FOR_INTERVALS = 130_000_000  # resamples of 2,000 quantities with their weights, sorted: see interp.statistics


def batch_size_within(
    budget: MemoryBudget, batch_size: int, n_prompts: int, probe: Callable[[], object], *, kept_per_prompt: float = 0.0
) -> int:
    """The largest number of prompts, up to ``batch_size``, with which a pass stays within the budget.

    ``probe`` does the work on ``PROBED`` prompts; tensors that it makes are counted while it runs. The budget is for
    what comes on top of the model, the prompts and the libraries: activations, outputs, what metrics make of them, what
    is kept of all prompts (``kept_per_prompt`` bytes of each) and the resamples of intervals.

    Raises:
        InputError: the budget is no amount of memory, or not even one prompt fits.
    """
    allowed = in_bytes(budget)
    per_prompt = _ALLOCATOR * peak_bytes(probe) / PROBED
    fixed = _FOR_INTERVALS + kept_per_prompt * n_prompts
    fitting = int((allowed - fixed) / per_prompt)
    if fitting < 1:
        needed = fixed + per_prompt
        raise InputError(
            f"memory_budget = {budget!r} does not hold one prompt: {per_prompt / 1e6:.0f} MB for each at a time and "
            f"{fixed / 1e6:.0f} MB for all are needed, give at least {needed / 1e6 + 1:.0f}MB"
        )
    return min(batch_size, fitting)


def in_bytes(budget: MemoryBudget) -> float:
    """A budget in bytes.

    Raises:
        InputError: it is no amount of memory.

    >>> in_bytes("1.5GB"), in_bytes("2 MiB"), in_bytes(1000)
    (1500000000.0, 2097152.0, 1000.0)
    """
    found = _WRITTEN.fullmatch(budget.strip()) if isinstance(budget, str) else None
    number = float(found[1]) * _UNITS[(found[2] or "").upper()] if found else budget
    if isinstance(number, (str, bool)) or not 0 < number < float("inf"):
        raise InputError(
            f"memory_budget = {budget!r} is no amount of memory: write '2GB', '500MB' or a number of bytes"
        )
    return float(number)


def peak_bytes(run: Callable[[], object]) -> int:
    """How many bytes of tensors that did not exist before are alive at once while ``run`` runs, at most."""
    with _Counting() as counting:
        run()
    return counting.peak


def return_freed_memory() -> None:
    """Give memory that tensors have freed back to the system, where the C library can (glibc); elsewhere nothing.

    Passes of many sizes one after another leave gaps between what lives, which glibc keeps: the resident memory of a
    long sweep was measured to grow by half.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _Counting(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return found

    def _freed(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)

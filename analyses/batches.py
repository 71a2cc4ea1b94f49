"""Prompts in batches that fit in memory; no analysis depends on their size."""

from collections.abc import Iterator
from numbers import Integral

from tasks.errors import InputError
from tasks.prompts import Prompts


def batches(prompts: Prompts, batch_size: int) -> Iterator[slice]:
    """The rows of each batch, in order.

    Raises:
        InputError: ``batch_size`` is no whole number, or less than 1.

    >>> import torch
    >>> prompts = Prompts.from_tensors(torch.zeros(5, 2, dtype=torch.int64))
    >>> list(batches(prompts, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size = {batch_size!r} is no number of prompts: give at least 1")
    for start in range(0, len(prompts), batch_size):
        yield slice(start, min(start + batch_size, len(prompts)))

"""Checks that a field of a task or predictor is in its range, each with one line that says what is expected."""

import math
from collections.abc import Sequence

from tasks.errors import InputError

LARGEST_WHOLE = 10**12
"""No size or count is larger; numbers far beyond it would fail inside of numpy or PyTorch."""


def check_whole(name: str, value: int | None, least: int, most: int | None = None, *, optional: bool = False) -> None:
    """Refuse a value that is no whole number between ``least`` and ``most``; None passes if ``optional``.

    >>> check_whole("sparsity", 9, 1, 8)
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: sparsity = 9 must be a whole number, between 1 and 8
    """
    if value is None and optional:
        return
    largest = LARGEST_WHOLE if most is None else most
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        too_large = isinstance(value, int) and value > LARGEST_WHOLE
        expected = f"at least {least}" if most is None and not too_large else f"between {least} and {largest}"
        raise InputError(f"{name} = {value!r} must be a whole number, {expected}")


def check_real(name: str, value: float, *, zero_allowed: bool = False) -> None:
    """Refuse a value that is no finite number above 0 (or at least 0).

    >>> check_real("noise", 0.0, zero_allowed=True)
    >>> check_real("lam", 0.0)
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: lam = 0.0 must be a finite number, above 0
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero_allowed):
        raise InputError(f"{name} = {value!r} must be a finite number, {'at least' if zero_allowed else 'above'} 0")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    >>> check_choice("layout", "rows", ("query", "interleaved"))
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: layout = 'rows' is unknown: choose 'query' or 'interleaved'
    """
    if value not in choices:
        raise InputError(f"{name} = {value!r} is unknown: choose {' or '.join(map(repr, choices))}")

"""Dataclasses whose fields are checked when they are made, and whose complaints fit on one line."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from tasks.errors import InputError

T = TypeVar("T")
LONGEST_VALUE = 60
"""Characters of a wrong value that a message repeats."""
MOST_NAMES = 16
"""Names that a message lists where none is near to what was meant."""
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@dataclass_transform(frozen_default=True)
def validated(cls: type[T]) -> type[T]:
    """A frozen dataclass that checks its fields: a wrong or unknown one raises InputError, in one line.

    A class that users do not meet by its name says in ``described_as`` what they know it as, "config.json" say.

    >>> @validated
    ... class Point:
    ...     x: int = 0
    >>> Point(x=[])
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: x = [] is no Point.x: input should be a valid integer
    """
    checked = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", protected_namespaces=()))(cls)
    build = checked.__init__
    names = [field.name for field in fields(checked)]

    @functools.wraps(build)
    def __init__(self, *args, **kwargs) -> None:
        try:
            build(self, *args, **kwargs)
        except ValidationError as error:
            raise InputError(one_line(checked, error)) from None
        object.__setattr__(self, "_given", (*names[: len(args)], *kwargs))

    checked.__init__ = __init__
    return cast("type[T]", checked)


def given_fields(config: Any) -> dict[str, Any]:
    """What the caller of a validated class set, as opposed to what its defaults filled in.

    >>> @validated
    ... class Point:
    ...     x: int = 0
    ...     y: int = 0
    >>> given_fields(Point(y=0))
    {'y': 0}
    """
    return {name: getattr(config, name) for name in config._given}


def one_line(cls: type, error: ValidationError) -> str:
    """The first of pydantic's complaints, as one line that names the field, the value and the remedy."""
    # a misspelled key shows up as a missing one too: the unknown key is the better hint
    first = min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    where = ".".join(str(part) for part in first["loc"])
    described: str | None = getattr(cls, "described_as", None)
    if first["type"] in _UNKNOWN:
        return unknown_key(where, described or cls.__name__, [field.name for field in fields(cls)])
    if first["type"] == "missing":
        return f"{where} is missing in {described}: restore it" if described else f"{cls.__name__}.{where} is missing"
    wrong = f"is wrong in {described}" if described else f"is no {cls.__name__}.{where}"
    return f"{where} = {shortened(first['input'])} {wrong}: {message[0].lower()}{message[1:]}"


def shortened(value: object) -> str:
    """How a value is written, if need be cut to what fits into a line.

    >>> shortened("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…"
    """
    written = repr(value)
    return written if len(written) <= LONGEST_VALUE else written[:LONGEST_VALUE] + "…"


def unknown_key(key: str, owner: str, known: Iterable[str]) -> str:
    """One line for a key that does not exist, with the nearest that do.

    >>> unknown_key("n_head", "HookedTransformerConfig", ["n_heads", "n_layers"])
    "HookedTransformerConfig has no 'n_head': did you mean n_heads?"
    """
    known = list(known)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    else:
        more = f" … ({len(known)} in all)" if len(known) > MOST_NAMES else ""
        remedy = f"choose from {', '.join(known[:MOST_NAMES])}{more}"
    return f"{owner} has no {shortened(key)}: {remedy}"


def path_of(value: Any, name: str) -> Path:
    """The path that an argument gives.

    Raises:
        InputError: it is neither text nor a path, or is empty, or no path could be so.
    """
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise InputError(f"{name} = {shortened(value)}: give the path of a folder")
    return Path(value)

"""The command line's ``--set key=value``: any field of the task, the model or the training, by name."""

import ast
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from interp.validated import unknown_key
from tasks.errors import InputError


def parse_settings(settings: Sequence[str], sections: Mapping[str, Collection[str]]) -> dict[str, dict[str, Any]]:
    """Each section's fields that ``key=value`` settings set; ``sections`` names the fields there are.

    A key is ``section.field``, or the field alone where only one section has it. A value is what JSON or Python
    would read there (``0.1``, ``true``, ``None``, ``[0.9, 0.99]``), and otherwise the text itself.

    Raises:
        InputError: no ``=``, an unknown or ambiguous key, or a field that is set twice.

    >>> parse_settings(["lr=0.1", "task.seed=3"], {"task": ["seed"], "train": ["lr", "seed"]})
    {'task': {'seed': 3}, 'train': {'lr': 0.1}}
    """
    pairs = []
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise InputError(f"--set {setting} has no value: write --set {setting}=VALUE")
        pairs.append((key.strip(), _parse_value(text.strip())))
    return assign_settings(pairs, sections, said_as="--set ")


def assign_settings(
    pairs: Iterable[tuple[str, Any]], sections: Mapping[str, Collection[str]], said_as: str = ""
) -> dict[str, dict[str, Any]]:
    """Each section's fields that these keys set; keys as for ``parse_settings``, lists become tuples.

    Raises:
        InputError: an unknown or ambiguous key, or a field that is set twice; ``said_as`` stands before the key.

    >>> assign_settings([("lr", 0.1), ("betas", [0.9, 0.99])], {"train": ["lr", "betas"]})
    {'train': {'lr': 0.1, 'betas': (0.9, 0.99)}}
    """
    found: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for key, value in pairs:
        section, field = _find(key, sections, said_as)
        if field in found[section]:
            raise InputError(f"{section}.{field} is set twice: set it once")
        found[section][field] = _with_tuples(value)
    return found


def _find(key: str, sections: Mapping[str, Collection[str]], said_as: str) -> tuple[str, str]:
    full_names = {f"{section}.{field}": (section, field) for section, fields in sections.items() for field in fields}
    if key in full_names:
        return full_names[key]
    candidates = [name for name, (_, field) in full_names.items() if field == key]
    if len(candidates) > 1:
        raise InputError(f"{said_as}{key} is ambiguous: write {' or '.join(candidates)}")
    if not candidates:
        # Whoever writes a bare name should be answered in bare names.
        known = full_names if "." in key else dict.fromkeys(field for _, field in full_names.values())
        raise InputError(f"{said_as}{key}: {unknown_key(key, 'a run', known)}")
    return full_names[candidates[0]]


def _parse_value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval raises
            continue
    return text


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: the configs and tasks are frozen."""
    if isinstance(value, list):
        return tuple(_with_tuples(part) for part in value)
    return value

"""The task a command line names: one of ours, or the user's own class in a file of theirs."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tasks import TASKS, BigramStatistics
from tasks.errors import InputError
from tasks.protocol import Task

CORPUS_FIELD = "stats"
"""The field of a task that holds corpus statistics: --text and --counts fill it, --set cannot."""


def find_task_class(name: str) -> type[Any]:
    """The class behind ``bigram``, another name in ``tasks.TASKS``, or ``file.py:Class``.

    Raises:
        InputError: an unknown name; a file that is missing or fails; a class that is missing or is no task.
    """
    if name in TASKS:
        return TASKS[name]
    path, separator, class_name = name.rpartition(":")
    if not separator:
        raise InputError(
            f"there is no task {name!r}: choose from {', '.join(TASKS)}, or give your own as file.py:Class"
        )
    found = getattr(_module_in(Path(path)), class_name, None)
    if not isinstance(found, type):
        raise InputError(f"{path} has no class {class_name!r}: name the task's class, as file.py:Class")
    missing = [part for part in ("name", "n_ctx", "d_vocab", "d_in", *_METHODS) if not hasattr(found, part)]
    if missing or not is_dataclass(found):
        lack = f"lacks {missing[0]}" if missing else "is no dataclass"
        raise InputError(f"{class_name} in {path} is no task: it {lack}, see tasks.protocol.Task")
    return found


def settable_fields(task_class: type[Any]) -> list[str]:
    """The fields of a task that --set reaches."""
    return [item.name for item in fields(task_class) if item.init and item.name != CORPUS_FIELD]


def make_task(
    task_class: type[Any], values: Mapping[str, Any], text: Path | None = None, counts: Path | None = None
) -> Task:
    """The task with these fields, on the corpus of a text file or a table of pair counts if one is given.

    Raises:
        InputError: two corpora, a corpus for a task that has none, a missing field, or a value the task refuses.
    """
    corpus: dict[str, Any] = {}
    if text is not None and counts is not None:
        raise InputError(f"--text {text} and --counts {counts} are two corpora: give one of them")
    if text is not None or counts is not None:
        if CORPUS_FIELD not in [item.name for item in fields(task_class)]:
            raise InputError(f"the task {task_class.name!r} reads no corpus: leave --text and --counts out")
        stats = BigramStatistics.from_file(text) if text is not None else BigramStatistics.from_counts(counts or "")
        corpus = {CORPUS_FIELD: stats}
    try:
        return task_class(**corpus, **values)
    except TypeError as error:
        raise InputError(f"the task {task_class.name!r} cannot be made ({error}): set what it asks for") from None


_METHODS = ("at_step", "sample", "counterfactual", "config", "files", "from_config")


def _module_in(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist: give your task as file.py:Class")
    name = f"task_in_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: give your task as file.py:Class")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be loaded ({type(error).__name__}: {error}): correct it") from error
    return module

"""A run's config.json: what was trained on what, how, and with which versions; and the task's own files beside it."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from interp.atomic_files import is_unfinished, make_folder, write_atomically
from interp.folder_lock import LOCK_FILE
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.train_config import TrainConfig
from interp.training_interventions import InterventionRecord
from interp.validated import validated
from tasks.errors import InputError
from tasks.protocol import Task

RECORD_FILE = "config.json"
TASK_FOLDER = "task"
_PACKAGES = {"interp": "icl-interp", "torch": "torch", "transformer-lens": "transformer-lens", "numpy": "numpy"}


@validated
class TaskRecord:
    """A task as config.json holds it: its name in ``tasks.TASKS``, its fields, and its files with their sha256."""

    described_as: ClassVar[str] = "the record of the task"

    name: str
    config: dict[str, Any]
    files: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.files:
            if name in (".", "..") or "/" in name or "\\" in name:
                raise InputError(f"the task file {name!r} is no plain file name: it must lie in the run's own folder")


@validated
class RunRecord:
    """What config.json holds. Two records that agree, versions aside, describe the same training."""

    described_as: ClassVar[str] = "the record of a run"

    task: TaskRecord
    model: HookedTransformerConfig
    train: TrainConfig
    readouts: tuple[str, ...]
    versions: dict[str, str]
    interventions: tuple[InterventionRecord, ...] = ()
    initial_sha256: str | None = None  # of the weights that training started from, where init_seed did not draw them
    format: Literal[1] = 1  # of the run folder as a whole

    @classmethod
    def of(
        cls,
        task: Task,
        model: HookedTransformerConfig,
        train: TrainConfig,
        readouts: tuple[str, ...] = (),
        initial: Mapping[str, Tensor] | None = None,
        interventions: tuple[InterventionRecord, ...] = (),
    ) -> "RunRecord":
        """The record of a training that is about to start."""
        return cls(
            task=record_task(task),
            model=model,
            train=train,
            readouts=readouts,
            versions=versions(),
            interventions=interventions,
            initial_sha256=None if initial is None else _digest_of_weights(initial),
        )

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record of a run folder.

        Raises:
            InputError: there is no config.json, or it is not JSON, or has an unknown or missing key or a bad value.
        """
        path = folder / RECORD_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            inside = sorted(folder.glob(f"*/{RECORD_FILE}")) or sorted(folder.glob(f"trials/*/run/{RECORD_FILE}"))
            such_as = f", {inside[0].parent} say" if inside else ""
            raise InputError(f"{path} does not exist: give the folder of a run{such_as}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): give a readable run folder") from None
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): restore it, or train again in another folder") from None
        if not isinstance(fields, dict):
            raise InputError(f"{path} holds no JSON object: restore it, or train again in another folder")
        fields.pop("digest", None)
        parts = {"task": TaskRecord, "model": HookedTransformerConfig, "train": TrainConfig}
        try:
            return cls(
                **{
                    key: parts[key](**value) if key in parts and isinstance(value, dict) else value
                    for key, value in fields.items()
                }
            )
        except InputError as error:
            raise InputError(f"{path}: {error}{_other_version(fields.get('versions'))}") from None

    def refuse_edited(self, folder: Path) -> None:
        """Raise InputError if config.json is not as it was written; asked last, when nothing more telling is wrong.

        What counts is the text of the file and not the fields of today, of which an older run may lack some.
        """
        path = folder / RECORD_FILE
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("digest", None) != _digest(content):
            raise InputError(f"{path} was changed since the run was made (its digest differs): restore it")

    def refuse_misplaced(self, folder: Path) -> bool:
        """Whether the folder holds this very run already; nothing is written.

        Raises:
            InputError: the folder holds another run (the message names the first key that differs), or
                something that is no run.
        """
        if (folder / RECORD_FILE).exists():
            self._refuse_difference(folder)
            return True
        _refuse_foreign(folder)
        return False

    def claim(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Make the folder this run's, or see that it already is; nothing in it is written over.

        Raises:
            InputError: as for ``refuse_misplaced``, or the folder cannot be written.
        """
        if not self.refuse_misplaced(folder):
            make_folder(folder)
            content = asdict(self)
            content |= {"digest": _digest(content)}
            write_atomically(folder / RECORD_FILE, json.dumps(content, indent=2).encode())
        for name, content in files.items():
            path = folder / TASK_FOLDER / name
            if not path.exists():
                make_folder(path.parent)
                write_atomically(path, content)

    def _refuse_difference(self, folder: Path) -> None:
        there = dict(_leaves(asdict(RunRecord.read(folder))))
        here = dict(_leaves(asdict(self)))
        for key in [*here, *(key for key in there if key not in here)]:
            if not key.startswith("versions.") and here.get(key) != there.get(key):
                raise InputError(
                    f"{folder} holds another run: {key} = {there.get(key)!r} there and {here.get(key)!r} here: "
                    "choose another folder, or set it back to continue that run"
                )
        RunRecord.read(folder).refuse_edited(folder)

    def restore_task(self, folder: Path, task_class: type[Any] | None = None) -> Task:
        """The task, from its class (by default the one that ``tasks.TASKS`` has under its name) and the run's files.

        Raises:
            InputError: the task has an unknown name, or the class another; a file of it is missing or was changed.
        """
        from tasks import TASKS

        files, name = self._read_task_files(folder), self.task.name
        if task_class is None and name not in TASKS:
            raise InputError(
                f"{folder / RECORD_FILE}: the task {name!r} is none of {', '.join(TASKS)}: pass your own, as "
                "Run.load(path, task=…), or --task file.py:Class on the command line"
            )
        task_class = TASKS[name] if task_class is None else task_class
        if task_class.name != name:
            raise InputError(
                f"{folder} was trained on the task {name!r} and not on {task_class.name!r} ({task_class.__name__}): "
                "pass the class of the task it was trained on"
            )
        try:
            return task_class.from_config(self.task.config, files)
        except InputError as error:
            raise InputError(f"{folder / RECORD_FILE}: {error}") from None

    def refuse_other_task(self, task: Task, folder: Path) -> None:
        """Raise InputError if ``task`` is not the one that this record describes; its files must be intact too."""
        self._read_task_files(folder)
        there, here = dict(_leaves(asdict(self.task))), dict(_leaves(asdict(record_task(task))))
        for key in [*here, *(key for key in there if key not in here)]:
            if here.get(key) != there.get(key):
                raise InputError(
                    f"{folder} was trained on another task: {key} = {there.get(key)!r} there and {here.get(key)!r} in "
                    "the one given: pass the task it was trained on"
                )

    def _read_task_files(self, folder: Path) -> dict[str, bytes]:
        contents = {}
        for name, digest in self.task.files.items():
            path = folder / TASK_FOLDER / name
            try:
                contents[name] = path.read_bytes()
            except OSError:
                raise InputError(f"{path} is missing: restore it, or train again in another folder") from None
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                raise InputError(
                    f"{path} is not the file that the run was trained with (its sha256 differs): restore it"
                )
        return contents


def _digest(content: Mapping[str, Any]) -> str:
    """The sha256 of everything recorded, kept in the file so that an edit by hand is noticed."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_task(task: Task) -> TaskRecord:
    """A task's name, fields and file hashes, as they go into config.json.

    Raises:
        InputError: the task's ``config()`` holds something that JSON does not have.
    """
    try:
        fields = json.loads(json.dumps(task.config(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"config() of the task {task.name!r} is no JSON ({error}): move it to files()") from None
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in task.files().items()}
    return TaskRecord(name=task.name, config=fields, files=hashes)


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts under dotted keys; tuples as lists, as JSON has them."""
    if isinstance(tree, dict) and (tree or not key):
        for name, branch in tree.items():
            yield from _leaves(branch, f"{key}.{name}" if key else name)
    else:
        yield key, json.loads(json.dumps(tree))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the run")
    if folder.exists() and any(path.name != LOCK_FILE and not is_unfinished(path) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run: choose another folder")


def versions() -> dict[str, str]:
    """Of everything that decides a run's numbers."""
    found = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[name] = "not installed"
    return found


def differing_versions(there: Mapping[str, str]) -> str:
    """What was of another version when ``there`` was written, in words; empty if nothing was.

    >>> differing_versions({"torch": "1.0"}).startswith("torch 1.0 then and ")
    True
    """
    here = versions()
    return ", ".join(
        f"{name} {there[name]} then and {here[name]} now" for name in here if there.get(name, here[name]) != here[name]
    )


def _other_version(there: Any) -> str:
    """A hint for whoever reads a record that this version does not understand."""
    if not isinstance(there, dict):
        return ""
    differing = differing_versions({"interp": str(there.get("interp"))})
    return f" ({differing})" if differing else ""

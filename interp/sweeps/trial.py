"""One training of a sweep: what it is, where it lies, and how it ended."""

import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from interp.atomic_files import make_folder, write_atomically
from interp.folder_lock import LockedError, folder_lock
from interp.training_setup import TrainingSetup, set_up_training
from tasks.errors import InputError

OUTCOME_FILE = "outcome.json"
TRACEBACK_FILE = "traceback.txt"
TRIALS_FOLDER = "trials"
RUN_FOLDER = "run"
_KEY_LETTERS = 12
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Trial:
    """A training to do.

    Attributes:
        task, preset, seed, text, counts: as on the command line.
        chosen: the fields that are set, by section.
        varied: the settings, as the file names them, in which this trial differs from others.
        cpus, gpus: what it takes; the threads it computes with are its CPUs.
    """

    task: str
    preset: str | None
    chosen: Mapping[str, Mapping[str, Any]]
    seed: int
    varied: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    counts: str | None = None
    cpus: int = 1
    gpus: float = 0.0

    @cached_property
    def key(self) -> str:
        """Names the trial by all that decides its outcome, files' contents included; so its folder is found again."""
        files = {path: _digest(Path(path)) for path in (self.text, self.counts, _file_of(self.task)) if path}
        what = [self.task.rpartition(":")[2], self.preset, self.chosen, self.seed, sorted(files.values()), self.cpus]
        content = json.dumps(what, sort_keys=True, default=str).encode()
        return hashlib.sha256(content).hexdigest()[:_KEY_LETTERS]

    @property
    def label(self) -> str:
        """What tells it apart, in words."""
        return ", ".join(f"{name} = {value}" for name, value in [*self.varied.items(), ("seed", self.seed)])

    def set_up(self) -> TrainingSetup:
        """What to train.

        Raises:
            InputError: values that a task or config refuses.
        """
        text, counts = (None if path is None else Path(path) for path in (self.text, self.counts))
        return set_up_training(
            self.task, self.chosen, preset_name=self.preset, seed=self.seed, text=text, counts=counts
        )

    def folder(self, out: Path) -> Path:
        """Where it lies in the folder of a sweep."""
        return out / TRIALS_FOLDER / self.key


@dataclass(frozen=True)
class Outcome:
    """How a trial ended ("open": not yet); ``figures`` are what was measured, free of time and place."""

    status: Literal["done", "failed", "open"]
    figures: Mapping[str, float | int] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    host: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """The outcome of the trial in a folder; None if it has not ended.

        Raises:
            InputError: the file is damaged, or another trial's.
        """
        path = folder / OUTCOME_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            trial = content.pop("trial", folder.name)
            outcome = cls(**content)
            numbers = all(isinstance(value, int | float) for value in outcome.figures.values())
            if outcome.status not in ("done", "failed") or not numbers:
                raise ValueError("a status or a figure that is none")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}): delete it, and the trial is run again") from None
        if trial != folder.name:
            raise InputError(
                f"{path} is the outcome of the trial {trial}: put the trials' folders back in their places"
            )
        return outcome

    def write(self, folder: Path) -> None:
        """Write it down: from then on the trial has ended."""
        content = vars(self) | {"trial": folder.name}  # so that folders that change places are noticed
        write_atomically(folder / OUTCOME_FILE, json.dumps(content, indent=2).encode())


TrainTrial = Callable[[Trial, Path], Mapping[str, float | int]]
"""Trains a trial in a folder, or goes on with it, and returns the figures that the table shows."""


def do_trial(trial: Trial, out: Path, train_trial: TrainTrial) -> None:
    """Do a trial to its end and write down how it ended, in the worker's process.

    If another process is at it, wait; if it has ended meanwhile, do nothing. What the trial raises is its outcome;
    only an interruption leaves it open.
    """
    folder = trial.folder(out)
    make_folder(folder)
    with _only_here(folder):
        if Outcome.read(folder) is not None:
            return
        torch.set_num_threads(trial.cpus)
        start = time.perf_counter()
        figures, error = _attempt(lambda: train_trial(trial, folder / RUN_FOLDER), folder)
        Outcome(
            status="failed" if error else "done",
            figures=figures,
            error=error.replace(str(folder.parent), TRIALS_FOLDER),  # the same wherever the sweep lies
            seconds=time.perf_counter() - start,
            host=f"{platform.node()}, process {os.getpid()}",
        ).write(folder)


def _attempt(training: Callable[[], Mapping[str, float | int]], folder: Path) -> tuple[dict[str, float | int], str]:
    """The figures of a training, or what it failed of in one line."""
    try:
        return dict(training()), ""
    except InputError as error:
        return {}, _one_line(error)
    except Exception as error:  # a trial's failure is a fact of the sweep, whatever its kind
        write_atomically(folder / TRACEBACK_FILE, traceback.format_exc().encode())
        return {}, f"{type(error).__name__}: {_one_line(error)}"


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Hold the trial's folder; a worker of a sweep that was killed a moment ago may not be gone yet."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(folder_lock(folder))
                break
            except LockedError:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _file_of(task: str) -> str:
    """The file of a task of one's own; empty for a built-in one."""
    return task.rpartition(":")[0]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a file that is there") from None

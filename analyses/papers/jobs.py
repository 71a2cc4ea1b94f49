"""What a claim needs computed: trainings, and calculations that train nothing. Each is done once and found again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from interp.atomic_files import write_atomically
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.run import Run
from interp.run_record import RunRecord, record_task
from interp.train_config import TrainConfig
from interp.training import Readout, train
from tasks.errors import InputError
from tasks.protocol import Task

ROWS_FILE = "rows.csv"
Arm = tuple["Job", ...]
"""One setting, a job for each seed."""
Arms = Mapping[str, Arm]


@runtime_checkable
class Job(Protocol):
    """A piece of work that depends on nothing but its own description.

    Jobs cross into worker processes, so that their functions must be importable by name. Two jobs of one key are one.
    """

    @property
    def label(self) -> str:
        """What it is, for a person who waits, and in the table of runs."""
        ...

    @property
    def seed(self) -> int:
        """The seed whose value it gives."""
        ...

    @property
    def cost(self) -> float:
        """About how long it takes, in units that all jobs share (thousand prompts times positions times layers)."""
        ...

    @property
    def key(self) -> str:
        """A digest of everything that decides the outcome: the name of its folder."""
        ...

    def do(self, folder: Path) -> None:
        """Do it, or what an interruption has left of it; at once if it is done."""
        ...

    def is_done(self, folder: Path) -> bool: ...

    def outcome(self, folder: Path) -> Any:
        """What it gave: a Run, or a table."""
        ...


@dataclass(frozen=True, eq=False)
class Training:
    """One model, trained on a task from one seed.

    Attributes:
        label: the setting in a few words; no part of the key.
        train_config: everything set: no preset stands behind it.
        readouts: makes the figures that the history gets beside its own, from the task; a function of a module.
    """

    label: str
    seed: int
    task: Task
    model: HookedTransformerConfig
    train_config: TrainConfig
    readouts: Callable[[Any], Mapping[str, Readout]] | None = None

    @property
    def cost(self) -> float:
        """Positions seen in training times layers, in thousands."""
        how = self.train_config
        return how.steps * how.batch_size * self.task.n_ctx * self.model.n_layers / 1000

    @property
    def key(self) -> str:
        """Digest of task, architecture, training and readouts."""
        described = asdict(RunRecord.of(self.task, self.model, self.train_config))
        del described["versions"]
        named = "" if self.readouts is None else f"{self.readouts.__module__}.{self.readouts.__qualname__}"
        return _digest(described | {"readouts": named})

    def do(self, folder: Path) -> None:
        readouts = {} if self.readouts is None else self.readouts(self.task)
        train(self.task, self.model, self.train_config, out=folder, readouts=readouts, progress=False)

    def is_done(self, folder: Path) -> bool:
        try:
            return Run.load(folder, task=self.task).steps[-1:] == [self.train_config.steps]
        except InputError:
            return False

    def outcome(self, folder: Path) -> Run:
        return Run.load(folder, task=self.task)


@dataclass(frozen=True, eq=False)
class Calculation:
    """A table computed by a function of a module from arguments that JSON can hold, one of them ``seed``.

    Change ``version`` with the function, so that a folder of the older one is not taken for the newer's.
    """

    label: str
    seed: int
    function: Callable[..., pd.DataFrame]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0
    version: int = 1

    @property
    def key(self) -> str:
        """Digest of the function's name and arguments."""
        named = f"{self.function.__module__}.{self.function.__qualname__}"
        return _digest({"function": named, "version": self.version, "seed": self.seed, **self.arguments})

    def do(self, folder: Path) -> None:
        if self.is_done(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.function(seed=self.seed, **self.arguments)
        write_atomically(folder / ROWS_FILE, rows.to_csv(index=False).encode())

    def is_done(self, folder: Path) -> bool:
        return (folder / ROWS_FILE).is_file()

    def outcome(self, folder: Path) -> pd.DataFrame:
        return pd.read_csv(folder / ROWS_FILE)


def describe(job: Job) -> dict[str, Any]:
    """A row of the table of runs."""
    row: dict[str, Any] = {"folder": job.key, "setting": job.label, "seed": job.seed}
    if isinstance(job, Training):
        how = job.train_config
        row |= {"task": json.dumps(record_task(job.task).config), "layers": job.model.n_layers}
        row |= {"width": job.model.d_model, "steps": how.steps, "batch_size": how.batch_size, "lr": how.lr}
    return row


def _digest(described: Mapping[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

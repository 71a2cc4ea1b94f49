"""A run folder, read back: the model at every checkpoint, how it came to be, and what was measured on the way."""

from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from interp.checkpoints import checkpoint_steps, load_weights, verdicts
from interp.history import read_history
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.run_record import RECORD_FILE, RunRecord
from interp.train_config import TrainConfig
from interp.training_interventions import RECEIPT_COLUMNS, read_receipts
from interp.validated import path_of
from tasks.errors import InputError
from tasks.protocol import Task


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its provenance. Make one with ``train`` or read one with ``Run.load``.

    Attributes:
        path: the folder.
        task: what the model was trained on.
        record: all that config.json holds, the versions of the packages included.
    """

    path: Path
    task: Task = field(repr=False)
    record: RunRecord = field(repr=False)

    @classmethod
    def load(cls, path: str | Path, task: Task | type[Any] | None = None) -> "Run":
        """Read a run folder; nothing in it is ever imported or unpickled.

        ``task`` is needed only for a task of one's own, whose name is not in ``tasks.TASKS``: the one that the run was
        trained on, or its class, from which the run's own record of it makes it again.

        Raises:
            InputError: the folder is no run, config.json or a task file is damaged, or the task is another.
        """
        folder = path_of(path, "path")
        record = RunRecord.read(folder)
        if task is None or isinstance(task, type):
            task = record.restore_task(folder, task)
        else:
            record.refuse_other_task(task, folder)
        record.refuse_edited(folder)
        return cls(folder, task, record)

    @classmethod
    def shipped(cls, name: str) -> "Run":
        """A run that comes with the package: "sparse-regression-small", or "chen2024/chen-8-linear-0" of a group.

        Raises:
            InputError: there is none of that name; the message lists those that exist.
        """
        folder = Path(str(resources.files("interp") / "shipped"))
        names = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob(RECORD_FILE))
        if name not in names:
            available = f"choose from {', '.join(names)}" if names else "this version ships none, train one instead"
            raise InputError(f"there is no shipped run {name!r}: {available}")
        return cls.load(folder / name)

    @property
    def config(self) -> HookedTransformerConfig:
        """The model's architecture."""
        return self.record.model

    @property
    def train_config(self) -> TrainConfig:
        """How it was trained."""
        return self.record.train

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; 0 is the untrained model."""
        return checkpoint_steps(self.path)

    @property
    def history(self) -> pd.DataFrame:
        """One row per logged step; ``train`` describes the columns.

        Raises:
            InputError: history.csv is missing or damaged.
        """
        return read_history(self.path)

    @property
    def receipts(self) -> pd.DataFrame:
        """What the interventions of training did: one row for each that acted between two rows of the history.

        Columns: step, the later row's; site; edit; first_step and last_step of its span; fired, once per step;
        n_values, the numbers written; mean_abs_change of them. Empty for a run without interventions.

        Raises:
            InputError: receipts.csv is missing or damaged.
        """
        rows = read_receipts(self.path) if self.record.interventions else []
        return pd.DataFrame(rows, columns=list(RECEIPT_COLUMNS))

    def verify(self) -> pd.DataFrame:
        """Whether the checkpoints' files are those that were written: columns file and verdict.

        "intact", "changed" and "missing" compare with the checksums of checkpoints/manifest.json; "no checksum" is a
        file of a run that kept none, as the first version did. ``Run.load`` has compared config.json and the task's
        files already.

        Raises:
            InputError: the manifest is damaged.
        """
        return pd.DataFrame(list(verdicts(self.path).items()), columns=["file", "verdict"])

    @cached_property
    def model(self) -> HookedTransformer:
        """The model of the last checkpoint, on the CPU; the same object at every access."""
        steps = self.steps
        if not steps:
            raise InputError(f"{self.path} has no complete checkpoint: run the training again to make one")
        return self.at(steps[-1])

    def at(self, step: int) -> HookedTransformer:
        """The model as it was after ``step`` updates, on the CPU; a new object at every call.

        Raises:
            InputError: there is no checkpoint of that step, or it is damaged.
        """
        if step not in self.steps:
            raise InputError(f"{self.path} has no checkpoint of step {step}: it has {', '.join(map(str, self.steps))}")
        model = HookedTransformer(self.config)
        load_weights(self.path, step, model)
        return model

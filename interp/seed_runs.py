"""Runs that differ in nothing but their seed, as one object."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from interp.atomic_files import write_atomically
from interp.hooked_transformer import HookedTransformer
from interp.run import Run
from interp.run_record import RECORD_FILE
from interp.train_config import TrainConfig
from tasks.errors import InputError
from tasks.protocol import Task

SEEDS_FILE = "seeds.json"
SEED_FIELDS = ("init_seed", "train_seed", "eval_seed")
HOW_FILE = "how.json"


@dataclass(frozen=True, eq=False)
class SeedRuns:
    """One training, many seeds. Make it with ``train_many`` or read it with ``SeedRuns.load``.

    ``runs[3]`` is the run of seed 3, a folder of its own that ``Run.load`` reads as well; iterating gives the runs in
    the order of their seeds.

    Attributes:
        path: the folder that holds the runs' folders, ``seed-000`` and so on.
        missing: the seeds that were asked for and have not begun.
    """

    path: Path
    _runs: Mapping[int, Run]
    missing: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: str | Path, task: Task | type[Any] | None = None) -> "SeedRuns":
        """Read what ``train_many`` has left, whether or not every seed is through.

        ``task`` is needed only for a task of one's own: the task or its class, as in ``Run.load``.

        Raises:
            InputError: the folder holds no such runs, a run's folder is damaged, or is that of another seed.
        """
        folder = Path(path)
        seeds = read_seeds(folder)
        if seeds is None:
            raise InputError(f"{folder} holds no runs of many seeds (no {SEEDS_FILE}): give the folder of train_many")
        begun = [seed for seed in seeds if (seed_folder(folder, seed) / RECORD_FILE).exists()]
        if not begun:
            raise InputError(f"{folder} has no run yet: run the training again")
        runs = {seed: Run.load(seed_folder(folder, seed), task) for seed in begun}
        _refuse_moved(runs)
        return cls(folder, runs, tuple(seed for seed in seeds if seed not in runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a run, ascending."""
        return sorted(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return (self._runs[seed] for seed in self.seeds)

    def __getitem__(self, seed: int) -> Run:
        if seed not in self._runs:
            raise InputError(f"there is no run of seed {seed!r}: choose from {', '.join(map(str, self.seeds))}")
        return self._runs[seed]

    @property
    def task(self) -> Task:
        """What all of them were trained on."""
        return self._runs[self.seeds[0]].task

    @property
    def steps(self) -> list[int]:
        """The steps of which every run has a checkpoint, ascending."""
        return sorted(set.intersection(*(set(run.steps) for run in self)))

    @property
    def unfinished(self) -> list[int]:
        """The seeds whose run is not at its last step: stopped, or diverged."""
        return [seed for seed in self.seeds if self[seed].train_config.steps not in self[seed].steps]

    @property
    def history(self) -> pd.DataFrame:
        """The histories of all runs, with the seed in front."""
        return pd.concat(
            [self[seed].history.assign(seed=seed).pipe(_seed_first) for seed in self.seeds], ignore_index=True
        )

    @property
    def how(self) -> pd.DataFrame:
        """How each run was trained: a row per stretch, from ``from_step`` on, "stacked" with other seeds or "alone".

        ``why`` gives the reason; where it was a measurement, alone_seconds and stacked_seconds are those per seed and
        step. A run that was copied here from elsewhere may have no row.
        """
        columns = ["seed", "from_step", "way", "n_stacked", "why", "alone_seconds", "stacked_seconds"]
        rows = [{"seed": seed} | part for seed in self.seeds for part in read_how(seed_folder(self.path, seed))]
        return pd.DataFrame(rows, columns=columns)

    def map(self, analysis: Callable[[HookedTransformer], Any], steps: Sequence[int] | None = None) -> pd.DataFrame:
        """Any analysis of every seed at every checkpoint, in one tidy table with ``seed`` and ``step`` in front.

        An analysis gives a result with a ``frame``, a table, or named figures, which make the columns readout and
        value. Without ``steps``: all that every seed has a checkpoint of.

        Raises:
            InputError: no checkpoint was written at one of the steps, or there are no steps.
        """
        steps = self.steps if steps is None else list(steps)
        if not steps:
            raise InputError("there is no step to analyse: name at least one that every seed has a checkpoint of")
        tables = []
        for seed in self.seeds:
            for step in steps:
                table = measured_table(analysis(self[seed].at(step)))
                table.insert(0, "step", step)
                table.insert(0, "seed", seed)
                tables.append(table)
        return pd.concat(tables, ignore_index=True)


def _refuse_moved(runs: Mapping[int, Run]) -> None:
    """Raise InputError if a folder holds the run of another seed; a seed field that was set is the same for all."""
    for name in SEED_FIELDS:
        found = {seed: getattr(run.train_config, name) for seed, run in runs.items()}
        for seed, value in found.items():
            own = getattr(TrainConfig.from_seed(seed), name)
            if value != own and len(set(found.values())) > 1:
                raise InputError(f"{runs[seed].path} is not the run of seed {seed} ({name} = {value}): restore it")


def measured_table(measured: Any) -> pd.DataFrame:
    """What an analysis found as a table of its own: a result's frame, a table, or a row per named figure.

    >>> measured_table({"norm": 2.0})
      readout  value
    0    norm    2.0
    """
    if isinstance(measured, Mapping):
        values = [float(value.detach() if isinstance(value, Tensor) else value) for value in measured.values()]
        return pd.DataFrame({"readout": list(measured), "value": values})
    frame = measured if isinstance(measured, pd.DataFrame) else getattr(measured, "frame", None)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"the analysis gave {type(measured).__name__}: return a result, a table or named figures")
    return frame.copy()


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the run of a seed is kept.

    >>> seed_folder(Path("runs"), 7).name
    'seed-007'
    """
    return folder / f"seed-{seed:03d}"


def read_seeds(folder: Path) -> list[int] | None:
    """The seeds that a folder is for, ascending; None if it is no such folder.

    Raises:
        InputError: the file that says so is damaged.
    """
    path = folder / SEEDS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seeds = sorted({int(seed) for seed in content["seeds"]})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): restore it") from None
    if not seeds or content.get("format") != 1:
        raise InputError(f"{path} is damaged (it names no seeds in format 1): restore it")
    return seeds


def write_seeds(folder: Path, seeds: Sequence[int]) -> None:
    """Say which seeds a folder is for."""
    write_atomically(folder / SEEDS_FILE, json.dumps({"format": 1, "seeds": sorted(seeds)}).encode())


def read_how(run_folder: Path) -> list[dict[str, Any]]:
    """How a run was trained, stretch by stretch; empty if nothing says so.

    Raises:
        InputError: the file is damaged.
    """
    path = run_folder / HOW_FILE
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        return [{"from_step": int(part["from_step"]), **part} for part in parts]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): restore it, or delete it") from None


def add_how(run_folder: Path, part: Mapping[str, Any]) -> None:
    """Note how a stretch of a run is about to be trained."""
    parts = [*read_how(run_folder), dict(part)]
    write_atomically(run_folder / HOW_FILE, json.dumps({"parts": parts}, indent=2).encode())


def _seed_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["seed", *(column for column in frame.columns if column != "seed")]]

"""The TOML file of a sweep: what all trials share, and what they differ in."""

import itertools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from interp.settings import assign_settings
from interp.sweeps.trial import Trial
from interp.training_setup import SECTIONS, settable_sections
from interp.validated import unknown_key, validated
from tasks.errors import InputError

MOST_TRIALS = 100_000
"""More than this is a slip of the pen in a grid rather than a sweep."""


@validated
class Resources:
    """What a trial takes: whole CPU cores, which are its threads too, and GPUs or a fraction of one."""

    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise InputError(f"cpus = {self.cpus}: a trial needs at least 1")
        if not math.isfinite(self.gpus) or self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise InputError(f"gpus = {self.gpus}: expected 0, a fraction of one GPU, or a whole number of them")


@validated
class SweepFile:
    """All that the file says.

    Attributes:
        task: as on the command line: bigram, sparse-regression, or one's own as file.py:Class.
        preset: architecture and training to start from; by default the task's.
        seeds: a number of seeds from 0, or a list of them; every combination is trained from each.
        text, counts: a corpus of one's own, seen from the file's folder.
        settings: fields of the task, the model or the training that all trials share.
        grid: lists of values; every combination of them is tried.
        trial: a list of combinations; beside a grid, each of them is tried with each of the grid's.
        resources: what a trial takes.
    """

    task: str
    preset: str | None = None
    seeds: int | tuple[int, ...] = 1
    text: str | None = None
    counts: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    trial: tuple[dict[str, Any], ...] = ()
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise InputError(f"seeds = {self.seeds}: give how many, at least 1, or a list")
        if not isinstance(self.seeds, int) and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise InputError(f"seeds = {list(self.seeds)}: give at least one, and each once")
        for key, values in self.grid.items():
            if not values:
                raise InputError(f"grid.{key} is empty: give at least one value")

    def combinations(self) -> list[dict[str, Any]]:
        """What the trials differ in, seeds aside, in the file's order."""
        n_seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        if math.prod(map(len, self.grid.values())) * max(1, len(self.trial)) * n_seeds > MOST_TRIALS:
            raise InputError(f"there are more than {MOST_TRIALS} combinations and seeds: leave some out")
        grid = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        for listed in self.trial:
            for key in listed.keys() & self.grid.keys():
                raise InputError(f"{key} stands both in [grid] and in [[trial]]: leave it in one of them")
        return [listed | combination for listed in (self.trial or ({},)) for combination in grid]


def read_sweep(path: Path) -> list[Trial]:
    """The trials that a file describes, in its order, seeds varying fastest.

    Raises:
        InputError: no such file, no TOML, a key, field or value that cannot be; or no single combination of which a
            training can be made. One that cannot among others that can becomes a trial, and fails.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a TOML file of a sweep") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file: {error}") from None
    try:
        trials = _trials(_parsed(table), path.resolve().parent)
        _refuse_if_none_can_be(trials)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return trials


def _parsed(table: Mapping[str, Any]) -> SweepFile:
    known = [one.name for one in fields(SweepFile)]
    for key in table:
        if key not in known:
            raise InputError(unknown_key(key, "the file", known))
    if isinstance(table.get("trial"), dict):
        raise InputError("[trial] is one table: write [[trial]], so that there can be several")
    seeds = table.get("seeds", 1)
    if any(
        isinstance(one, bool) or not isinstance(one, int) for one in (seeds if isinstance(seeds, list) else [seeds])
    ):
        raise InputError(f"seeds = {seeds!r}: give how many, or a list of whole numbers")
    for key in ("grid", "resources"):
        if not isinstance(table.get(key, {}), dict):
            raise InputError(f"{key} = {table[key]!r} is no table: write [{key}]")
    if not isinstance(table.get("settings", {}), dict) or not isinstance(table.get("trial", []), list):
        raise InputError("settings and trial are tables: write [settings] and [[trial]]")
    table = {
        **table,
        "settings": _flat(table.get("settings", {})),
        "grid": _flat(table.get("grid", {})),
        "trial": [_flat(one) if isinstance(one, dict) else one for one in table.get("trial", [])],
    }
    for key, values in table["grid"].items():
        if not isinstance(values, list):
            raise InputError(f"grid.{key} = {values!r} is no list: write [{values!r}], or move it to [settings]")
    return SweepFile(**{**table, "resources": Resources(**table.get("resources", {}))})


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """A dotted key without quotes is a table in TOML's eyes; a field's own table stays one.

    >>> _flat({"task": {"n_queries": 4}, "freeze_until": {"embed.*": 3}})
    {'task.n_queries': 4, 'freeze_until': {'embed.*': 3}}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if key in SECTIONS and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _trials(sweep: SweepFile, folder: Path) -> list[Trial]:
    task = _seen_from(folder, sweep.task)
    sections = settable_sections(task)
    corpus = {name: str(folder / path) for name in ("text", "counts") if (path := getattr(sweep, name)) is not None}
    trials: dict[str, Trial] = {}
    for combination in sweep.combinations():
        chosen = assign_settings([*sweep.settings.items(), *combination.items()], sections)
        for seed in range(sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds:
            trial = Trial(
                task=task,
                preset=sweep.preset,
                chosen=chosen,
                seed=seed,
                varied=combination,
                cpus=sweep.resources.cpus,
                gpus=sweep.resources.gpus,
                **corpus,
            )
            if trial.key in trials:
                raise InputError(f"the trial {trial.label} is there twice: leave one out")
            trials[trial.key] = trial
    return list(trials.values())


def _seen_from(folder: Path, task: str) -> str:
    """A task of one's own lies beside the file that names it."""
    path, separator, class_name = task.rpartition(":")
    return f"{folder / path}:{class_name}" if separator else task


def _refuse_if_none_can_be(trials: list[Trial]) -> None:
    first: InputError | None = None
    for trial in trials:
        try:
            trial.set_up()
        except InputError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first

"""Train one model from many seeds: stacked where that is faster, one by one where it is not."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from interp.atomic_files import is_unfinished, make_folder
from interp.checkpoints import checkpoint_steps
from interp.folder_lock import LOCK_FILE, folder_lock
from interp.history import Row
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.interrupts import Interrupted, deferred_interrupt
from interp.progress import say_line, training_progress
from interp.run_record import RunRecord
from interp.seed_runs import SEED_FIELDS, SeedRuns, add_how, read_how, read_seeds, seed_folder, write_seeds
from interp.stacked_training import StackedTrainees
from interp.train_config import TrainConfig
from interp.trainee import Trainee, TrainingDivergedError
from interp.training import Readout, RunInProgress, resolved_configs, train
from interp.validated import given_fields
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

How = Literal["measured", "stacked", "alone"]

MOST_SEEDS = 10_000
"""More than this is a slip of the pen rather than a study."""
TRIAL_SHARE = 0.02
"""A trial may take so much of the steps to come, warming up included; where that is too few, there is none."""
MOST_TIMED = 5
CLEARLY_FASTER = 1.05
"""How much faster stacked steps must have been in the trial to be chosen: clocks are not exact."""
MOST_NUMBERS_AT_ONCE = 250_000_000
"""Activations of a stack, 1 GB in single precision (with their gradients about twice that); more make two stacks."""


def train_many(
    task: Task,
    config: str | HookedTransformerConfig,
    train_config: TrainConfig | None = None,
    *,
    seeds: Sequence[int],
    out: str | Path,
    how: How = "measured",
    readouts: Mapping[str, Readout] | None = None,
    progress: bool = True,
) -> SeedRuns:
    """Train the same model from many seeds; called again, it goes on where it stopped, and takes further seeds.

    Each seed derives its own ``init_seed``, ``train_seed`` and ``eval_seed`` (``TrainConfig.from_seed``), and its run
    is, up to rounding, what ``train`` makes of that config alone. A seed that ``train_config`` sets itself is the
    same for all: ``TrainConfig(eval_seed=9)`` measures all histories on the same prompts.

    With how="stacked" the models of all seeds take their steps together, in one pass through stacked weights
    (``torch.func``); with "alone" one is trained after the other. "measured" times some steps of both on throw-away
    models and takes the faster; a training that goes on, goes on as it began. Either way each seed leaves an ordinary
    run in ``out``/seed-000 and so on, with the same files; ``SeedRuns.how`` gives the way and the measurement. A run
    that is interrupted and continued the same way ends with the same weights, bit for bit, on the same CPU; continued
    the other way, with the same up to rounding.

    A seed whose training diverges stops nothing: the others are trained to their end before it is reported.

    Args:
        task, config, train_config, readouts, progress: as for ``train``.
        seeds: whole numbers from 0; those that are trained already are left as they are.
        out: the folder that the runs' folders are made in.

    Raises:
        InputError: as for ``train``; seeds that are none, named twice, or more than 10,000; a folder that holds
            something else.
        TrainingDivergedError: seeds diverged; the message names them.
    """
    seeds = _checked_seeds(seeds)
    if how not in ("measured", "stacked", "alone"):
        raise InputError(f"how = {how!r} is unknown: choose 'measured', 'stacked' or 'alone'")
    folder = Path(out)
    many = _Many(task, _seed_configs(task, config, train_config), seeds, folder, dict(readouts or {}), progress)
    many.refuse_misplaced()
    many.rehearse(how)
    make_folder(folder)
    with folder_lock(folder):
        write_seeds(folder, [*(read_seeds(folder) or []), *seeds])
        diverged = many.train(how)
    if diverged:
        said = "; ".join(f"seed {seed}: {error}" for seed, error in diverged.items())
        raise TrainingDivergedError(f"{len(diverged)} of {len(seeds)} seeds diverged, the others are done: {said}")
    return SeedRuns.load(folder, task=task)


@dataclass(frozen=True)
class Trial:
    """Both ways of training, timed: seconds per seed and step, the fastest of ``n_steps`` of each, in turn."""

    alone_seconds: float
    stacked_seconds: float
    n_steps: int
    n_stacked: int
    n_threads: int

    @property
    def stacked_wins(self) -> bool:
        """Whether stacked training is clearly faster."""
        return self.alone_seconds > CLEARLY_FASTER * self.stacked_seconds


@dataclass(frozen=True)
class _Many:
    """What all seeds share, and how each is trained."""

    task: Task
    configs_of: Callable[[int], tuple[HookedTransformerConfig, TrainConfig]]
    seeds: tuple[int, ...]
    folder: Path
    readouts: Mapping[str, Readout]
    progress: bool

    def refuse_misplaced(self) -> None:
        """See, before anything is written, that the folder is new or holds the same training, of whatever seeds."""
        there = read_seeds(self.folder)
        if there is None:
            if self.folder.is_file():
                raise InputError(f"{self.folder} is a file: give a folder for the runs")
            if self.folder.exists() and any(map(_belongs_to_another, self.folder.iterdir())):
                raise InputError(f"{self.folder} is not empty and holds no runs of many seeds: choose another folder")
        for seed in set(there or []) | set(self.seeds):
            self._record(seed).refuse_misplaced(seed_folder(self.folder, seed))

    def rehearse(self, how: How) -> None:
        """See, before anything is written, that a seed can be trained, and in the way that is asked for."""
        if how == "stacked" and (reason := self._why_not_stacked()):
            raise InputError(f"{reason}: set how='alone'")
        if self._groups():
            RunInProgress.prepared(self.task, *self.configs_of(self.seeds[0]), self.readouts)

    def train(self, how: How) -> dict[int, TrainingDivergedError]:
        """Train every seed to its end; those that diverged, with their errors."""
        diverged: dict[int, TrainingDivergedError] = {}
        for group in self._groups():
            way, why, trial = self._choice(group, how)
            self._note(group, way, why, trial)
            diverged |= self._train_stacked(group) if way == "stacked" else self._train_alone(group)
        return diverged

    def _groups(self) -> list[list[int]]:
        """The seeds that are not through, in stacks: those that have begun, then the others."""
        steps = {seed: self._steps(seed) for seed in self.seeds}
        begun = [seed for seed, there in steps.items() if there and there[-1] < self._config.steps]
        fresh = [seed for seed, there in steps.items() if not there]
        most = self._most_at_once()
        return [part[start : start + most] for part in (begun, fresh) for start in range(0, len(part), most)]

    def _most_at_once(self) -> int:
        model_config, train_config = self.configs_of(self.seeds[0])
        n_pos = self.task.n_ctx
        width = model_config.n_heads * n_pos + 8 * model_config.d_model
        per_position = model_config.n_layers * width + model_config.n_outputs
        return max(1, MOST_NUMBERS_AT_ONCE // (train_config.batch_size * n_pos * per_position))

    @property
    def _config(self) -> TrainConfig:
        """The training of the first seed, for what does not depend on the seed."""
        return self.configs_of(self.seeds[0])[1]

    def _choice(self, group: Sequence[int], how: How) -> tuple[str, str, Trial | None]:
        """Which way to take, why, and the measurement that it rests on."""
        if how != "measured":
            return how, "asked for", None
        if len(group) < 2:
            return "alone", "a single seed", None
        before = {part[-1]["way"] for seed in self.seeds if (part := read_how(seed_folder(self.folder, seed)))}
        if len(before) == 1:
            return before.pop(), "as it began", None
        if not timed_steps(len(group), self._config.steps):
            return "alone", "too few steps for a trial", None
        if reason := self._why_not_stacked():
            return "alone", reason, None
        trial = timed_trial(self.task, lambda seed: Trainee.untrained(*self.configs_of(seed)), group)
        return ("stacked" if trial.stacked_wins else "alone"), "measured", trial

    def _why_not_stacked(self) -> str:
        """What stands against stacked training, whatever its speed; empty if nothing does."""
        if self._config.precision != "float32":
            return f"precision = {self._config.precision!r} is for one model at a time"
        kind = type(self.task.at_step(1).sample(1, seed=0))
        if kind is not Prompts:
            return f"the task's prompts are {kind.__name__}, which may have a loss of their own"
        return ""

    def _note(self, group: Sequence[int], way: str, why: str, trial: Trial | None) -> None:
        for seed in group:
            folder = seed_folder(self.folder, seed)
            self._record(seed).claim(folder, self.task.files())
            part: dict[str, Any] = {
                "from_step": self._common_step(group) if way == "stacked" else max(self._steps(seed), default=0),
                "way": way,
                "n_stacked": len(group) if way == "stacked" else 1,
                "why": why,
            }
            if trial is not None:
                part |= {"alone_seconds": trial.alone_seconds, "stacked_seconds": trial.stacked_seconds}
                part |= {"trial_steps": trial.n_steps, "threads": trial.n_threads}
            add_how(folder, part)

    def _train_alone(self, group: Sequence[int]) -> dict[int, TrainingDivergedError]:
        diverged = {}
        for place, seed in enumerate(group, start=1):
            say_line(f"seed {seed}, {place} of {len(group)}", self.progress)
            try:
                folder = seed_folder(self.folder, seed)
                train(self.task, *self.configs_of(seed), out=folder, readouts=self.readouts, progress=self.progress)
            except TrainingDivergedError as error:
                diverged[seed] = error
        return diverged

    def _train_stacked(self, group: Sequence[int]) -> dict[int, TrainingDivergedError]:
        runs = {seed: RunInProgress.prepared(self.task, *self.configs_of(seed), self.readouts) for seed in group}
        with ExitStack() as locks:
            for seed, run in runs.items():
                folder = seed_folder(self.folder, seed)
                locks.enter_context(run.alone_in(folder))
                run.enter(folder, self.task, self._common_step(group))
            return _advance(self.task, runs, self.progress)

    def _common_step(self, group: Sequence[int]) -> int:
        """The last step of which all have a checkpoint: a kill may come when some have saved and others not."""
        return max(set.intersection(*(set(self._steps(seed)) or {0} for seed in group)))

    def _steps(self, seed: int) -> list[int]:
        return checkpoint_steps(seed_folder(self.folder, seed))

    def _record(self, seed: int) -> RunRecord:
        return RunRecord.of(self.task, *self.configs_of(seed), tuple(self.readouts))


def _advance(task: Task, runs: Mapping[int, RunInProgress], progress: bool) -> dict[int, TrainingDivergedError]:
    """Take all runs, together, to their last step; those that diverged on the way, with their errors."""
    stack = StackedTrainees([run.trainee for run in runs.values()])
    config = stack.trainees[0].config
    step = stack.trainees[0].step
    diverged: dict[int, TrainingDivergedError] = {}
    with deferred_interrupt() as interrupted, training_progress(config.steps, step, progress) as show:
        while step < config.steps and len(diverged) < len(runs):
            step = stack.take_step(task)
            asked = interrupted.is_set()
            if asked or config.saves_at(step):
                stack.hand_back()
            rows = []
            for seed, run in runs.items():
                if seed in diverged:
                    continue
                try:
                    rows.append(run.log_step())
                    run.save_step(asked)
                except TrainingDivergedError as error:
                    diverged[seed] = error
            show(step, _mean_row([row for row in rows if row is not None]))
            if asked and step < config.steps:
                message = f"stopped after step {step} of {config.steps}: the same call continues"
                raise Interrupted(message, interrupted.signal_number)
    return diverged


def timed_trial(task: Task, make: Callable[[int], Trainee], seeds: Sequence[int]) -> Trial:
    """Time steps of both ways on throw-away models, in turn, so that a machine whose speed drifts slows both alike.

    The first step of each is for warming up. The fastest counts, since what others do on the machine only slows.
    """
    alone, stack = make(seeds[0]), StackedTrainees([make(seed) for seed in seeds])
    n_steps = max(1, timed_steps(len(seeds), alone.config.steps))
    times: dict[str, list[float]] = {"alone": [], "stacked": []}
    for _ in range(n_steps + 1):
        for way, take_step in (("alone", alone.take_step), ("stacked", stack.take_step)):
            start = time.perf_counter()
            take_step(task)
            _wait_for(alone.config.device)
            times[way].append(time.perf_counter() - start)
    fastest = {way: min(taken[1:]) for way, taken in times.items()}
    return Trial(fastest["alone"], fastest["stacked"] / len(seeds), n_steps, len(seeds), torch.get_num_threads())


def timed_steps(n_seeds: int, steps: int) -> int:
    """How many steps of each way a trial may time; a round of both costs a step of every seed and one more.

    >>> timed_steps(16, 300), timed_steps(2, 100)
    (4, 0)
    """
    rounds = int(TRIAL_SHARE * steps * n_seeds / (n_seeds + 1))
    return max(0, min(MOST_TIMED, rounds - 1))


def _wait_for(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def _seed_configs(
    task: Task, config: str | HookedTransformerConfig, train_config: TrainConfig | None
) -> Callable[[int], tuple[HookedTransformerConfig, TrainConfig]]:
    """How to get from a seed to the two configs of its run, in full."""
    given = {} if train_config is None else given_fields(train_config)
    if all(name in given for name in SEED_FIELDS):
        raise InputError("train_config sets init_seed, train_seed and eval_seed: leave one free, or all runs are alike")

    def configs(seed: int) -> tuple[HookedTransformerConfig, TrainConfig]:
        derived = TrainConfig.from_seed(seed)
        own = {name: getattr(derived, name) for name in SEED_FIELDS}
        return resolved_configs(task, config, TrainConfig(**own | given))

    return configs


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as Python's own integers."""
    if not isinstance(seeds, Iterable):
        raise InputError(f"seeds = {seeds!r}: give the seeds themselves, range(8) or [3, 5] say")
    if isinstance(seeds, Sized) and len(seeds) > MOST_SEEDS:
        raise InputError(f"{len(seeds)} seeds are more than {MOST_SEEDS}: give fewer, in several folders if need be")
    checked: dict[int, None] = {}
    for given in seeds:
        seed = int(given) if isinstance(given, np.integer) else given
        TrainConfig.from_seed(seed)  # refuses what is no seed
        if seed in checked:
            raise InputError(f"seed {seed} is named twice: name it once")
        checked[seed] = None
    if not checked:
        raise InputError("seeds is empty: give at least one, range(8) say")
    return tuple(checked)


def _belongs_to_another(path: Path) -> bool:
    return path.name != LOCK_FILE and not is_unfinished(path)


def _mean_row(rows: Sequence[Row]) -> Row | None:
    """The mean over seeds of what they have just logged, to be shown."""
    if not rows:
        return None
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}

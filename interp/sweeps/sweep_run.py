"""A sweep from its file to its table: every trial once, whatever dies on the way."""

import json
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import pandas as pd
from rich.console import Console

from interp.atomic_files import is_unfinished, make_folder, write_atomically
from interp.folder_lock import LOCK_FILE, folder_lock
from interp.interrupts import Interrupted, InterruptNote, deferred_interrupt
from interp.sweeps.local_pool import LocalPool, n_slots
from interp.sweeps.ray_pool import RayPool, imported_ray
from interp.sweeps.sweep_file import read_sweep
from interp.sweeps.trial import Outcome, TrainTrial, Trial
from tasks.errors import InputError

TABLE_FILE = "trials.csv"
SWEEP_FILE = "sweep.json"
MOST_DEATHS = 3
"""So many workers may die of one trial (of the memory it needs, say) before it counts as failed."""
_SECONDS_BETWEEN_LOOKS = 0.5

Engine = Literal["local", "ray"]


@runtime_checkable
class Pool(Protocol):
    """What does trials, several at a time."""

    n_slots: int

    def submit(self, trial: Trial) -> None:
        """Begin a trial, or queue it."""
        ...

    def wait(self, seconds: float) -> list[tuple[Trial, str | None]]:
        """The trials that workers are through with (None) or died of (how)."""
        ...

    def stop(self) -> None:
        """End all work."""
        ...


def run_sweep(
    path: str | Path,
    train_trial: TrainTrial,
    *,
    out: str | Path,
    engine: Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Do every trial of a sweep's file, and write and return the table of all of them.

    A trial that has ended, done or failed, is never run again; all others are, and go on from their last checkpoint:
    so after any interruption the same call continues, with either engine, and a file that has got further values or
    seeds adds trials. A trial whose worker dies is run again, up to three times.

    ``out``/trials.csv has a row per trial, in the file's order: trial (its folder under ``out``/trials), what was
    varied, seed, status ("done", "failed" or "open"), error, and the last figures of its history. It is written anew
    whenever a trial ends, and holds neither times nor places, so that it does not depend on the engine.

    Args:
        path: a TOML file, see ``interp.sweeps.sweep_file``.
        train_trial: trains one trial in a folder; it must be a module's function, since other processes import it.
        out: a new or empty folder, or one of a sweep.
        engine: "local" uses this machine's cores; "ray" a local Ray, or with ``address`` a cluster.
        workers: trials at a time, on this machine; by default as many as its cores allow.

    Raises:
        InputError: a file, engine or folder that cannot be.
        Interrupted: stopped by Ctrl-C or SIGTERM.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"engine = {engine!r} is unknown: choose 'local' or 'ray'")
    if workers is not None and workers < 1:
        raise InputError(f"workers = {workers}: expected at least 1")
    if address is not None and (engine == "local" or workers is not None):
        raise InputError(f"address = {address!r} is for the engine ray, and without workers: drop one of them")
    trials, folder = read_sweep(Path(path)), Path(out)
    _refuse_foreign(folder)
    if engine == "local":  # before a folder is made
        n_slots(workers, trials[0].cpus, trials[0].gpus)
    else:
        imported_ray()
    make_folder(folder)
    with folder_lock(folder):
        write_atomically(folder / SWEEP_FILE, json.dumps({"format": 1, "file": str(path)}).encode())
        sweep = _SweepInProgress(folder, trials, _Lines(len(trials), enabled=progress))
        table = sweep.write_table()
        if left := sweep.left():
            resources = {"workers": workers, "cpus": left[0].cpus, "gpus": left[0].gpus}
            pool: Pool
            if engine == "local":
                pool = LocalPool(folder, train_trial, **resources)
            else:
                pool = RayPool(folder, train_trial, address=address, **resources)
            try:
                with deferred_interrupt() as interrupted:
                    sweep.do(left, pool, interrupted)
            finally:
                pool.stop()
            table = sweep.write_table()
    return table


class _SweepInProgress:
    """The trials of a sweep, and what is known of those that have ended."""

    def __init__(self, folder: Path, trials: Sequence[Trial], lines: "_Lines"):
        self.folder, self.trials, self.lines = folder, trials, lines
        found = {trial.key: Outcome.read(trial.folder(folder)) for trial in trials}
        self.outcomes = {key: outcome for key, outcome in found.items() if outcome is not None}
        lines.begun(len(self.outcomes))

    def left(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if trial.key not in self.outcomes]

    def do(self, left: Sequence[Trial], pool: Pool, interrupted: InterruptNote) -> None:
        """Do these trials."""
        waiting, n_running, deaths = deque(left), 0, Counter[str]()
        while waiting or n_running:
            while waiting and n_running < pool.n_slots:
                pool.submit(waiting.popleft())
                n_running += 1
            for trial, died_of in pool.wait(_SECONDS_BETWEEN_LOOKS):
                n_running -= 1
                if died_of is not None:
                    deaths[trial.key] += 1
                    self.lines.died(trial, died_of)
                outcome = Outcome.read(trial.folder(self.folder))
                if outcome is None and died_of is not None and deaths[trial.key] < MOST_DEATHS:
                    waiting.appendleft(trial)
                    continue
                self.outcomes[trial.key] = outcome or self._without_outcome(trial, died_of)
                self.lines.ended(trial, self.outcomes[trial.key])
                self.write_table()
            if interrupted.is_set():
                raise Interrupted("stopped: the same command continues", interrupted.signal_number)

    def write_table(self) -> pd.DataFrame:
        """All trials and what is known of them, as trials.csv."""
        rows = []
        for trial in self.trials:
            outcome = self.outcomes.get(trial.key, _OPEN)
            row = {"trial": trial.key, **trial.varied, "seed": trial.seed}
            rows.append(row | {"status": outcome.status, "error": outcome.error} | dict(outcome.figures))
        table = pd.DataFrame(rows)
        varied = dict.fromkeys(name for trial in self.trials for name in trial.varied)
        front = ["trial", *varied, "seed", "status", "error"]
        for name in table.columns.intersection(["step", "tokens"]):
            table[name] = table[name].astype("Int64")  # whole numbers, though trials without figures have none
        table = table[[*front, *(column for column in table.columns if column not in front)]]
        write_atomically(self.folder / TABLE_FILE, table.to_csv(index=False, lineterminator="\n").encode())
        return table

    def _without_outcome(self, trial: Trial, died_of: str | None) -> Outcome:
        """Write down how a trial ended of which its workers could not."""
        if died_of is None:
            raise InputError(
                f"the worker of {trial.label} left nothing in {self.folder}: choose a folder that all machines share"
            )
        outcome = Outcome("failed", error=f"its worker died {MOST_DEATHS} times, at last of {died_of}")
        make_folder(trial.folder(self.folder))
        outcome.write(trial.folder(self.folder))
        return outcome


_OPEN = Outcome("open")


def _refuse_foreign(folder: Path) -> None:
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder for the sweep")
    if not folder.exists() or (folder / SWEEP_FILE).exists():
        return
    if any(path.name != LOCK_FILE and not is_unfinished(path) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no sweep: choose another folder")


class _Lines:
    """A line on standard error for every trial that ends."""

    def __init__(self, total: int, *, enabled: bool):
        self._console = Console(stderr=True, quiet=not enabled)
        self._total, self._ended = total, 0

    def begun(self, ended: int) -> None:
        """Say how many trials there are."""
        self._ended = ended
        self._print(f"{self._total} trials" + (f", {ended} of them ended before" if ended else ""))

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Say how a trial ended."""
        self._ended += 1
        figures = [f"{name} {outcome.figures[name]:.3f}" for name in ("loss", "excess_risk") if name in outcome.figures]
        what = outcome.error if outcome.status == "failed" else ", ".join(figures)
        self._print(f"{self._ended} of {self._total} {outcome.status}: {trial.label}  {what}")

    def died(self, trial: Trial, cause: str) -> None:
        """Say that a worker died."""
        self._print(f"a worker died of {cause} at {trial.label}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

"""Worker processes on the cores of this machine; one that dies takes nothing with it but its trial's last steps."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from interp.sweeps.trial import TrainTrial, Trial, do_trial
from tasks.errors import InputError

_SECONDS_TO_SAVE = 30.0
"""How long a worker that is told to stop may take to end its step and write a checkpoint."""


class LocalPool:
    """Up to ``workers`` trials at a time, each in a process of its own with the trial's number of threads.

    Processes are started as they are needed and take one trial after the other, since importing takes longer than
    many a trial. They end with this process, however it ends.
    """

    n_slots: int

    def __init__(self, out: Path, train_trial: TrainTrial, *, workers: int | None, cpus: int, gpus: float):
        self.n_slots = n_slots(workers, cpus, gpus)
        self._out, self._train_trial = out, train_trial
        self._workers: list[_Worker] = []

    def submit(self, trial: Trial) -> None:
        """Begin a trial; there must be a free slot."""
        self._workers = [worker for worker in self._workers if worker.trial or worker.process.is_alive()]
        free = [worker for worker in self._workers if worker.trial is None]
        if not free:
            free = [_Worker.started(self._out, self._train_trial, trial.cpus)]
            self._workers += free
        free[0].begin(trial)

    def wait(self, seconds: float) -> list[tuple[Trial, str | None]]:
        """The trials that a worker is through with (None) or has died of (how), waiting for one at most so long."""
        busy = [worker for worker in self._workers if worker.trial is not None]
        ready = wait([worker.connection for worker in busy], timeout=seconds)
        ended: list[tuple[Trial, str | None]] = []
        for worker in busy:
            if worker.connection in ready and worker.trial is not None:
                trial, died_of = worker.trial, worker.end()
                ended.append((trial, died_of))
                if died_of is not None:
                    self._workers.remove(worker)
        return ended

    def stop(self) -> None:
        """End every worker; one at work ends its step and writes a checkpoint."""
        for worker in self._workers:
            worker.connection.close()
            if worker.trial is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_SECONDS_TO_SAVE)
            worker.process.kill()
            worker.process.join()
        self._workers.clear()


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    trial: Trial | None = None

    @classmethod
    def started(cls, out: Path, train_trial: TrainTrial, threads: int) -> "_Worker":
        """A new process; it imports while the next one is started."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the process loads its libraries
        try:
            process = context.Process(target=_serve, args=(theirs, out, train_trial), daemon=True)
            with _ctrl_c_blocked():
                process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        return cls(process, ours)

    def begin(self, trial: Trial) -> None:
        self.trial = trial
        with suppress(ConnectionError):  # dead this very moment: waiting for it will tell
            self.connection.send(trial)

    def end(self) -> str | None:
        """Take the worker's word that it is through; what it died of if it has none."""
        self.trial = None
        try:
            self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return _cause_of_death(self.process.exitcode)
        return None


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Keep Ctrl-C waiting for a moment; processes that are started in it never see one.

    A Ctrl-C goes to the workers, too, and one that is still importing would end with a traceback on the terminal.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def n_slots(workers: int | None, cpus: int, gpus: float) -> int:
    """How many trials run at a time.

    Raises:
        InputError: a trial wants more CPUs than this machine has, or a GPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if gpus:
        raise InputError(f"resources.gpus = {gpus}: only the engine ray shares GPUs out: take it, or drop gpus")
    if workers is None and cpus > cores:
        raise InputError(f"resources.cpus = {cpus} but this machine has {cores}: set at most so many")
    return cores // cpus if workers is None else workers


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _serve(connection: Connection, out: Path, train_trial: TrainTrial) -> None:
    """A worker's life: one trial after the other, until nobody asks for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then says what to do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            trial = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            do_trial(trial, out, train_trial)
        except KeyboardInterrupt:  # told to stop: the checkpoint is written
            return
        connection.send(None)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and two of them must not do the same trial."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

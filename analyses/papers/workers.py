"""Jobs done in processes of one thread each, so that their number changes how long it takes and no digit."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from analyses.papers.jobs import Job
from tasks.errors import InputError

SECONDS_BETWEEN_LINES = 30.0
INTERRUPTED = 130  # the shell's convention
Say = Callable[[str], None]


def do_jobs(jobs: Sequence[Job], folder: Path, *, workers: int, progress: bool = True) -> None:
    """Do every job in a folder of its own under ``folder``, named by its key; what is done already is left alone.

    An interruption (Ctrl-C, or a kill) loses at most what a training has done since its last checkpoint.

    Raises:
        InputError: fewer workers than one; whatever a job refuses.
    """
    if workers < 1:
        raise InputError(f"workers = {workers}: expected at least 1")
    unique = {job.key: job for job in jobs}
    # the longest first, so that no process is left alone with one at the end
    left = sorted(unique.values(), key=lambda job: (-job.cost, job.key))
    left = [job for job in left if not job.is_done(folder / job.key)]
    if not left:
        return
    folder.mkdir(parents=True, exist_ok=True)
    estimate = _Estimate(left, n_done=len(unique) - len(left), enabled=progress)
    if workers == 1:
        with one_thread():
            for job in left:
                job.do(folder / job.key)
                estimate.done(job)
        return
    _in_processes(left, folder, workers, estimate)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread within the block: sums over several threads can differ in their last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(left: list[Job], folder: Path, workers: int, estimate: "_Estimate") -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(left)), mp_context=context, initializer=_start_worker)
    waiting, running = list(left), dict[Future[None], Job]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[pool.submit(_do, job, folder / job.key)] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED, timeout=SECONDS_BETWEEN_LINES)
            for future in finished:
                future.result()
                estimate.done(running.pop(future))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _do(job: Job, folder: Path) -> None:
    job.do(folder)


def _start_worker() -> None:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Ctrl-C reaches the whole group; the parent speaks of it, and an idle worker ends without a word.
        signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Estimate:
    """How far the jobs are and about how long they will take, on standard error."""

    def __init__(self, left: Sequence[Job], *, n_done: int, enabled: bool) -> None:
        self._console = Console(stderr=True, quiet=not enabled)
        self._total, self._n_done = len(left) + n_done, n_done
        self._cost_left, self._cost_done = sum(job.cost for job in left), 0.0
        self._start = self._said = time.monotonic()
        found = f", {n_done} found done" if n_done else ""
        self._console.print(f"{self._total} runs{found}", highlight=False)

    def done(self, job: Job) -> None:
        self._n_done += 1
        self._cost_done += job.cost
        self._cost_left -= job.cost
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES and self._n_done < self._total:
            return
        self._said = now
        minutes = (now - self._start) / 60
        left = minutes * self._cost_left / self._cost_done
        line = f"{self._n_done} of {self._total} runs, {minutes:.1f} min, about {left:.1f} min left"
        self._console.print(f"{line} (last: {job.label}, seed {job.seed})", soft_wrap=True, highlight=False)

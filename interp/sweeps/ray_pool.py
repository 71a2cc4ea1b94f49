"""Trials as tasks of Ray: on a local Ray, or on the machines of a cluster that share a folder."""

import importlib
from pathlib import Path
from typing import Any

from interp.sweeps.trial import TrainTrial, Trial, do_trial
from tasks.errors import InputError

NEEDS_RAY = "the engine ray needs Ray, which is not installed: pip install 'icl-interp[cluster]'"


class RayPool:
    """Trials queued in Ray, which begins each as soon as its CPUs and its share of a GPU are free.

    Without an ``address`` a Ray of ``workers`` times the trial's CPUs (by default: all of this machine's) is started
    here and ended by ``stop``. A cluster's machines must all see ``out`` under the same path, and have this package
    installed.

    Raises:
        InputError: Ray is not installed, cannot be reached, or has too few CPUs or GPUs for a single trial.
    """

    n_slots = 1_000_000  # Ray has a queue of its own

    def __init__(
        self, out: Path, train_trial: TrainTrial, *, address: str | None, workers: int | None, cpus: int, gpus: float
    ):
        self._ray = ray = imported_ray()
        options: dict[str, Any] = {"include_dashboard": False}
        if address is not None:
            options = {"address": address}
        elif workers is not None:
            options["num_cpus"] = workers * cpus
        try:
            ray.init(logging_level="error", log_to_driver=False, configure_logging=False, **options)
        except Exception as error:
            where = "a local Ray" if address is None else f"Ray at {address}"
            raise InputError(f"{where} cannot be used ({_first_line(error)}): see that it runs") from None
        there = ray.cluster_resources()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > there.get(name, 0):
                ray.shutdown()
                field = f"resources.{name.lower()}s"
                raise InputError(f"{field} = {wanted} but Ray has {there.get(name, 0):g} in all: set at most so many")
        self._do = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_do_trial)
        self._out, self._train_trial = out.resolve(), train_trial
        self._running: dict[Any, Trial] = {}

    def submit(self, trial: Trial) -> None:
        """Put a trial into Ray's queue."""
        self._running[self._do.remote(trial, str(self._out), self._train_trial)] = trial

    def wait(self, seconds: float) -> list[tuple[Trial, str | None]]:
        """The trials that a worker is through with (None) or has died of (how), waiting for one at most so long."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        ended: list[tuple[Trial, str | None]] = []
        for reference in ready:
            trial = self._running.pop(reference)
            try:
                self._ray.get(reference)
            except Exception as error:  # whatever kind of end Ray has for it
                ended.append((trial, f"{type(error).__name__}: {_first_line(error)}"))
            else:
                ended.append((trial, None))
        return ended

    def stop(self) -> None:
        """Leave Ray; trials at work are ended and go on from their last checkpoint another time."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _do_trial(trial: Trial, out: str, train_trial: TrainTrial) -> None:
    if not Path(out).is_dir():
        raise FileNotFoundError(f"{out} is not to be seen on this machine: choose a folder that all share")
    do_trial(trial, Path(out), train_trial)


def imported_ray() -> Any:
    """Ray.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError(NEEDS_RAY) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

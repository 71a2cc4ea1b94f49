"""What logging and checkpointing cost a training, at the demo's settings: train() beside a bare loop of steps.

    python benchmarks/bench_step_loop.py [--steps 100] [--repeats 3]

Both sides take the same steps in turn, so that a machine whose speed drifts slows both alike: one steps a Trainee and
does nothing else, the other also logs, saves and shows progress where the demo does. Evaluating the model on the
evaluation prompts is a reading of it, whose price log_every and eval_prompts set, and is given apart. What is left
(history, checkpoints, checksums, progress) is timed by itself as well, since as a difference of two long times it
drowns in noise. Printed are medians over the repeats, in CPU time and, with the disk's waiting, in wall-clock time.
Exits with 1 if the two sides end with different weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from interp.evaluation import evaluate
from interp.presets import preset
from interp.progress import training_progress
from interp.training import RunInProgress, resolved_configs
from tasks import BigramICL, BigramStatistics


class Clock:
    """CPU and wall-clock seconds, summed over the pieces of one side."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._began[0]
        self.wall += time.perf_counter() - self._began[1]


class Side(NamedTuple):
    """Where the time of a comparison went."""

    bare: Clock
    steps: Clock
    keeping: Clock
    """Logging (evaluation included), saving and showing."""
    reading: Clock
    """The same evaluations once more, by themselves."""


def compare(steps: int) -> Side:
    """A training of so many steps, and its bare twin."""
    task = BigramICL(BigramStatistics.default(), scored="all")
    model, training = preset("bietti-simplified-ff", task, {"d_model": 256})
    model, training = resolved_configs(task, model, replace(training, steps=steps, batch_size=32))
    bare = RunInProgress.prepared(task, model, training).trainee
    run = RunInProgress.prepared(task, model, training)
    side = Side(Clock(), Clock(), Clock(), Clock())
    with tempfile.TemporaryDirectory() as folder, run.alone_in(Path(folder)):
        run.enter(Path(folder), task)
        with training_progress(steps, 0) as show:
            while run.trainee.step < steps:
                with side.bare:
                    bare.take_step(task)
                with side.steps:
                    step = run.trainee.take_step(task)
                with side.keeping:
                    row = run.log_step()
                    run.save_step()
                    show(step, row)
                if row is not None:
                    with side.reading:
                        evaluate(run.trainee.model, run.eval_prompts, training.batch_size)
    weights = zip(bare.model.parameters(), run.trainee.model.parameters(), strict=True)
    if not all(torch.equal(one, other) for one, other in weights):
        sys.exit("the two sides ended with different weights")
    return side


def main() -> int:
    """Print the medians over the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [compare(options.steps) for _ in range(options.repeats)]
    for name in ("cpu", "wall"):
        times = [[getattr(clock, name) for clock in side] for side in found]
        shares = {
            "bare step, ms": [1e3 * bare / options.steps for bare, _, _, _ in times],
            "train() over the bare loop, evaluation left out, %": [
                100 * ((own + keeping - reading) / bare - 1) for bare, own, keeping, reading in times
            ],
            "logging, checkpoints and progress by themselves, %": [
                100 * (keeping - reading) / own for _, own, keeping, reading in times
            ],
            "evaluating the evaluation prompts, %": [100 * reading / own for _, own, _, reading in times],
        }
        for what, values in shares.items():
            low, high = min(values), max(values)
            print(f"{name:4} {what:52} {statistics.median(values):8.2f}   ({low:.2f} to {high:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

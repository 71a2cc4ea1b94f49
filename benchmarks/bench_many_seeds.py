"""Many seeds: stacked steps beside one by one, and train_many, which measures and chooses, beside a loop of train.

    python benchmarks/bench_many_seeds.py [--seeds 8] [--repeats 5] [--threads 1] [--steps 200]

The first table times steps in turn, so that a machine whose speed drifts slows both alike, and gives medians over the
repeats of the time of one by one over that of stacked, in CPU and in wall-clock time. The second trains from half of
the seeds for so many steps twice, by train_many with its trial and by train, seed by seed; they take turns in going
first. Exits with 1 if weights differ by more than 1e-3, or if train_many took more than 1 / 0.95 of the CPU time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from interp import HookedTransformerConfig, SeedRuns, TrainConfig, train, train_many
from interp.presets import preset
from interp.stacked_training import StackedTrainees
from interp.trainee import Trainee
from interp.validated import given_fields
from tasks import BigramICL, SparseRegression
from tasks.protocol import Task

SMALLEST_SHARE = 0.95
LARGEST_DIFFERENCE = 1e-3  # single precision, and AdamW, which divides rounding errors by their own size


class Shape(NamedTuple):
    """What is trained."""

    name: str
    task: Task
    config: HookedTransformerConfig
    training: TrainConfig


def shapes() -> Iterator[Shape]:
    """From small models, whose steps are mostly overhead, to the presets' own sizes."""
    short, usual = BigramICL(seq_len=16), BigramICL(seq_len=64)
    small, plain = SparseRegression(d=5, sparsity=2, n_context=8), SparseRegression()
    for name, task, preset_name, model, batch_size in (
        ("bietti-simplified, d 16, T 16, batch 8", short, "bietti-simplified", {"d_model": 16}, 8),
        ("bietti-simplified, d 64, T 64, batch 64", usual, "bietti-simplified", {"d_model": 64}, 64),
        ("bietti-simplified, d 128, T 64, batch 64", usual, "bietti-simplified", {}, 64),
        ("bietti-full, d 32, T 64, batch 16", usual, "bietti-full", {"d_model": 32}, 16),
        ("chen-2-linear, d 16, 9 positions, batch 16", small, "chen-2-linear", {"d_model": 16}, 16),
        ("chen-8-linear, d 64, 33 positions, batch 64", plain, "chen-8-linear", {}, 64),
    ):
        config, training = preset(preset_name, task, model)
        yield Shape(name, task, config, replace(training, batch_size=batch_size))


def trainee(shape: Shape, seed: int) -> Trainee:
    """A model of the shape, from the seed."""
    seeds = TrainConfig.from_seed(seed)
    own = {"init_seed": seeds.init_seed, "train_seed": seeds.train_seed, "eval_seed": seeds.eval_seed}
    training = replace(shape.training, **own)
    return Trainee.untrained(replace(shape.config, seed=training.init_seed), training)


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def steps_in_turn(shape: Shape, seeds: int, repeats: int) -> tuple[float, float, float, float]:
    """Milliseconds of CPU per seed and step one by one, and ratios of CPU and wall clock; the largest difference."""
    alone = [trainee(shape, seed) for seed in range(seeds)]
    stack = StackedTrainees([trainee(shape, seed) for seed in range(seeds)])
    pairs = []
    for _ in range(repeats + 1):
        one_by_one = timed(lambda: [one.take_step(shape.task) for one in alone])
        pairs.append((one_by_one, timed(lambda: stack.take_step(shape.task))))
    counted = pairs[1:]
    cpu = statistics.median(a[0] / b[0] for a, b in counted)
    wall = statistics.median(a[1] / b[1] for a, b in counted)
    per_step = 1000 * statistics.median(a[0] for a, _ in counted) / seeds
    return per_step, cpu, wall, max(difference(*both) for both in zip(alone, stack.trainees, strict=True))


def difference(one: Trainee, other: Trainee) -> float:
    """The largest between two models' weights."""
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((left.detach() - right.detach()).abs().max()) for left, right in pairs)


def whole_trainings(shape: Shape, seeds: int, steps: int, repeats: int) -> tuple[str, float]:
    """The way that train_many took, and the CPU time of train, seed by seed, over that of train_many: the median."""
    fields = given_fields(shape.training) | {"steps": steps, "checkpoint_every": None}
    fields = {name: value for name, value in fields.items() if not name.endswith("_seed")}
    ratios, way = [], ""
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)

            def one_by_one(out: Path = out) -> None:
                for seed in range(seeds):
                    own = TrainConfig.from_seed(seed, **fields)
                    train(shape.task, shape.config, own, out=out / f"{seed}", progress=False)

            def many(out: Path = out) -> None:
                given = TrainConfig(**fields)
                train_many(shape.task, shape.config, given, seeds=range(seeds), out=out / "many", progress=False)

            first, second = (many, one_by_one) if repeat % 2 else (one_by_one, many)
            times = {first: timed(first)[0], second: timed(second)[0]}
            ratios.append(times[one_by_one] / times[many])
            way = str(SeedRuns.load(out / "many").how["way"].iloc[0])
    return way, statistics.median(ratios)


def main() -> int:
    """Print the tables and return 1 if one of the promises is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.seeds} seeds, {options.repeats} repeats")
    print(f"{'':44} {'ms/step':>8} {'CPU':>6} {'wall':>6} {'difference':>11}")
    worst, least = 0.0, float("inf")
    for shape in shapes():
        per_step, cpu, wall, apart = steps_in_turn(shape, options.seeds, options.repeats)
        worst = max(worst, apart)
        print(f"{shape.name:44} {per_step:8.2f} {cpu:5.2f}x {wall:5.2f}x {apart:11.1e}", flush=True)
    seeds = max(2, options.seeds // 2)
    print(f"train_many beside train, {seeds} seeds of {options.steps} steps")
    for shape in shapes():
        if shape.config.d_model < 128 and shape.task.d_in in (None, 6):
            way, ratio = whole_trainings(shape, seeds, options.steps, options.repeats)
            least = min(least, ratio)
            print(f"{shape.name:44} {way:>8} {ratio:5.2f}x", flush=True)
    return 0 if worst < LARGEST_DIFFERENCE and least >= SMALLEST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())

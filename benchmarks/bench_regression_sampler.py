"""CPU time of sampling regression prompts over that of drawing their raw random numbers; the target is below 2.

Run: python benchmarks/bench_regression_sampler.py
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from tasks.sparse_regression import SparseRegression

NUMBERS = 2_300_000
"""Normal numbers per batch: 4096 prompts of the default task."""
REPEATS = 25


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call: unlike the wall clock it does not count what else the machine runs."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print one line per task: the median over calls that take turns, and the throughput of one core."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for task in (
        SparseRegression(),
        SparseRegression(layout="interleaved"),
        SparseRegression(weights="signs"),
        SparseRegression(covariance="power", covariance_exponent=1.0),
        SparseRegression(d=64, n_context=256),
    ):
        n = NUMBERS // ((task.n_context + 1) * (task.d + 1))
        sampling, drawing = [], []
        for _ in range(REPEATS):
            sampling.append(cpu_seconds(lambda task=task, n=n: task.sample(n, seed=0)))
            drawing.append(cpu_seconds(lambda task=task, n=n: draw(rng, task, n)))
        ratio = float(np.median(np.array(sampling) / np.array(drawing)))
        print(
            f"d={task.d} n_context={task.n_context} {task.layout} {task.weights} {task.covariance}: "
            f"{n / np.median(sampling):,.0f} prompts/s, {ratio:.2f} × the raw random numbers"
        )


def draw(rng: np.random.Generator, task: SparseRegression, n: int) -> None:
    """The random numbers of n prompts, and nothing else: x and noise, the support, the weights."""
    rng.standard_normal((n, task.n_context + 1, task.d + 1), dtype=np.float32)
    rng.random((n, task.d))
    rng.standard_normal((n, task.sparsity), dtype=np.float32)


if __name__ == "__main__":
    main()

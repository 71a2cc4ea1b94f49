"""Runs whose history and model are planted, so that a claim's answer is known without training."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyses.papers.bietti2023.setting import readouts
from interp import HookedTransformer, Run, TrainConfig
from interp.history import write_history
from interp.presets import preset
from interp.run_record import RunRecord
from tasks import BigramICL

STEPS = np.arange(0, 201, 10)
Plant = Callable[..., list[Run]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Five runs of a task with these columns of the history (functions of step and seed) and this model."""
    made = 0

    def make(
        task: BigramICL,
        columns: Mapping[str, Callable[[np.ndarray, int], Sequence[float] | np.ndarray]] | None = None,
        model: HookedTransformer | None = None,
        preset_name: str = "bietti-simplified",
    ) -> list[Run]:
        nonlocal made
        runs = []
        for seed in range(5):
            folder = tmp_path / f"planted-{made}"
            folder.mkdir()
            made += 1
            config, training = preset(preset_name, task, {"d_model": 16})
            how = TrainConfig.from_seed(seed, steps=200, eval_prompts=16, batch_size=8).over(training)
            run = Run(folder, task, RunRecord.of(task, config, how))
            values: dict[str, Any] = {name: curve(STEPS, seed) for name, curve in (columns or {}).items()}
            rows = [
                {"step": int(step), **{name: float(each[index]) for name, each in values.items()}}
                for index, step in enumerate(STEPS)
            ]
            write_history(folder, rows)
            run.__dict__["model"] = HookedTransformer(config) if model is None else model
            runs.append(run)
        return runs

    return make


@pytest.fixture
def rise() -> Callable[..., Callable[[np.ndarray, int], np.ndarray]]:
    """A curve from low to high that is halfway at a step, which differs a little between seeds."""

    def make(at: float, low: float = 0.0, high: float = 1.0):
        def curve(steps: np.ndarray, seed: int) -> np.ndarray:
            middle = at * (1 + 0.02 * (seed - 2))
            return low + (high - low) / (1 + np.exp(-(steps - middle) / (0.15 * at)))

        return curve

    return make


@pytest.fixture
def names() -> list[str]:
    """The readouts that a real history has."""
    return list(readouts(BigramICL(seq_len=16)))

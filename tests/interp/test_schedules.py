"""Learning rates against closed forms and against PyTorch's own scheduler."""

import math

import pytest
import torch

from interp import TrainConfig
from interp.schedules import learning_rate


def rates(**fields) -> list[float]:
    config = TrainConfig(lr=0.5, **fields)
    return [learning_rate(config, step) for step in range(1, config.steps + 1)]


def test_constant_stays():
    assert rates(steps=3) == [0.5, 0.5, 0.5]


def test_warmup_rises_linearly_to_the_full_rate():
    assert rates(steps=6, warmup_steps=4) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_linear_falls_in_equal_parts_after_the_warmup():
    assert rates(steps=6, warmup_steps=2, schedule="linear") == [0.25, 0.5, 0.5, 0.375, 0.25, 0.125]


def test_cosine_is_half_way_down_in_the_middle():
    found = rates(steps=4, schedule="cosine")
    assert found == pytest.approx([0.5, 0.25 + 0.25 * math.sqrt(0.5), 0.25, 0.25 - 0.25 * math.sqrt(0.5)])


@pytest.mark.parametrize("steps", [10, 37, 100])
def test_one_cycle_is_pytorchs(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        if len(expected) < steps:
            schedule.step()
    assert rates(steps=steps, schedule="one_cycle") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
def test_no_step_is_without_a_rate(schedule, steps):
    assert all(0 < rate <= 0.5 for rate in rates(steps=steps, schedule=schedule))

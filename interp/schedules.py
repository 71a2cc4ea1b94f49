"""The learning rate of every step."""

import math

from interp.train_config import TrainConfig

# PyTorch's OneCycleLR has the same defaults: 30 % of the steps go up from lr / 25, the rest down to lr / 250,000.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update ``step``, counted from 1 to ``config.steps``.

    With W warmup steps, S steps and p = (step − 1 − W) / (S − W), the share of the way that lies behind:
    lr · step / W while step ≤ W, and then lr ("constant"), lr · (1 − p) ("linear") or lr · (1 + cos πp) / 2
    ("cosine"). "one_cycle": half a cosine from lr / 25 up to lr at 30 % of the steps, half a cosine from there
    down to lr / 250,000 at the last step (PyTorch's OneCycleLR).

    >>> [learning_rate(TrainConfig(steps=4, lr=1.0, schedule="linear"), step) for step in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if config.schedule == "one_cycle":
        return config.lr * _one_cycle(config.steps, step)
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * _half_cosine(1.0, 0.0, progress)
    return config.lr


def _one_cycle(steps: int, step: int) -> float:
    peak = ONE_CYCLE_RISE * steps - 1
    done = step - 1
    if done <= peak:
        return _half_cosine(ONE_CYCLE_START, 1.0, done / peak)
    return _half_cosine(1.0, ONE_CYCLE_END, (done - peak) / (steps - 1 - peak))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

"""How a model is trained: steps, optimiser, schedule, what is frozen until when, what is written down, seeds."""

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal

from interp.validated import given_fields, validated
from tasks.errors import InputError
from tasks.field_checks import LARGEST_WHOLE

LARGEST_SEED = 2**32 - 1
"""Seeds are one word of numpy's SeedSequence, so that (train_seed, step) never equals another seed."""


@validated
class TrainConfig:
    """How a model is trained. Every batch is drawn anew, so a step is a batch and there are no epochs.

    Attributes:
        steps: updates of the weights.
        batch_size: prompts per step; also how many the evaluation takes at a time.
        optimizer: "sgd" (with ``momentum``) or "adamw" (with ``betas``), as PyTorch has them.
        lr: the highest learning rate; ``learning_rate`` gives that of every step.
        weight_decay: added to the gradient by "sgd", decoupled from it by "adamw".
        schedule: how the learning rate goes down after ``warmup_steps`` of linear rise; see ``learning_rate``.
        grad_clip: the gradient's largest norm; None leaves it as it is.
        freeze_until: patterns (``*`` matches anything) of parameters, each with the last step that leaves them as
            they were: neither gradient nor momentum nor weight decay moves them. The later of two steps counts.
        freeze_during: patterns of parameters, each with the first and the last step of a span that leaves them as they
            were, in the same way; momentum gathered before the span is there after it.
        precision: "float32", or "bfloat16": matrix products of the training step in 16 bits (PyTorch's autocast).
            Weights, optimiser, losses and everything that is measured stay in 32 bits.
        checkpoint_every: steps between checkpoints; None for none but the first and the last step, always there.
        checkpoint_log_spaced: checkpoints after 1, 2, 4, 8 … steps as well.
        log_every: steps between rows of the history, which has the first and the last step as well.
        eval_prompts: how many prompts the history's figures are measured on, the same ones every time.
        init_seed: seed of the initial weights.
        train_seed: seed of the training prompts; step s draws its own with (train_seed, s).
        eval_seed: seed of the evaluation prompts.
        device: where to train, as PyTorch names it: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: a value out of its range, or an unknown name.

    >>> TrainConfig(lr=float("nan"))
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: lr = nan: expected a number above 0
    """

    steps: int = 1000
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine", "one_cycle"] = "constant"
    warmup_steps: int = 0
    grad_clip: float | None = None
    freeze_until: dict[str, int] = field(default_factory=dict)
    freeze_during: dict[str, tuple[int, int]] = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int | None = 100
    checkpoint_log_spaced: bool = False
    log_every: int = 50
    eval_prompts: int = 256
    init_seed: int = 0
    train_seed: int = 1
    eval_seed: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every", "eval_prompts"):
            expected = f"a whole number from 1 to {LARGEST_WHOLE}"
            _check(name, getattr(self, name), expected, lambda value: 1 <= value <= LARGEST_WHOLE)
        _check("warmup_steps", self.warmup_steps, "a whole number of at least 0", lambda value: value >= 0)
        for name in ("lr", "grad_clip"):
            _check(name, getattr(self, name), "a number above 0", lambda value: value > 0)
        _check("weight_decay", self.weight_decay, "a number of at least 0", lambda value: value >= 0)
        for name, value in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas)):
            _check(name, value, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)
        for pattern, step in self.freeze_until.items():
            _check(f"freeze_until[{pattern!r}]", step, "a step of at least 1", lambda value: value >= 1)
        for pattern, (first, last) in self.freeze_during.items():
            if not 1 <= first <= last:
                raise InputError(f"freeze_during[{pattern!r}] = {(first, last)}: expected a first step, then a last")
        for name in ("init_seed", "train_seed", "eval_seed"):
            _check(name, getattr(self, name), "a seed from 0 to 2^32 - 1", lambda value: 0 <= value <= LARGEST_SEED)

    @classmethod
    def from_seed(cls, seed: int, **rest: Any) -> "TrainConfig":
        """A config whose three seeds are derived from one, so that no two runs' seeds ever coincide.

        >>> config = TrainConfig.from_seed(7, steps=300)
        >>> config.init_seed, config.train_seed, config.eval_seed
        (21, 22, 23)
        """
        largest = LARGEST_SEED // 3 - 1
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= largest:
            raise InputError(f"seed = {seed!r}: expected a whole number from 0 to {largest}")
        seeds: dict[str, Any] = {"init_seed": 3 * seed, "train_seed": 3 * seed + 1, "eval_seed": 3 * seed + 2}
        return cls(**seeds | rest)

    def over(self, preset: "TrainConfig") -> "TrainConfig":
        """The preset, with what this config's caller set in place of the preset's (``dataclasses.replace`` sets all).

        >>> TrainConfig(steps=300).over(TrainConfig(steps=9, lr=0.2)).lr
        0.2
        """
        return replace(preset, **given_fields(self))

    def refuse_contradictions(self) -> None:
        """Raise InputError if fields do not go together; a config still to be laid over a preset need not.

        >>> TrainConfig(momentum=0.9).refuse_contradictions()
        Traceback (most recent call last):
            ...
        tasks.errors.InputError: momentum = 0.9 has no effect on adamw: set momentum = 0.0, or choose sgd
        """
        ignored, user = ("momentum", "sgd") if self.optimizer == "adamw" else ("betas", "adamw")
        value, default = getattr(self, ignored), getattr(_DEFAULTS, ignored)
        if value != default:
            raise InputError(
                f"{ignored} = {value} has no effect on {self.optimizer}: set {ignored} = {default}, or choose {user}"
            )
        if self.schedule == "one_cycle" and self.warmup_steps:
            raise InputError(f"warmup_steps = {self.warmup_steps}: one_cycle has its own rise, leave warmup_steps 0")
        if self.warmup_steps >= self.steps:
            raise InputError(
                f"warmup_steps = {self.warmup_steps} takes all of the {self.steps} steps: warm up for fewer"
            )
        for pattern, (first, last) in self.freeze_during.items():
            if last > self.steps:
                raise InputError(
                    f"freeze_during[{pattern!r}] = {(first, last)} ends after the last of {self.steps} steps: end it "
                    "before, or train longer"
                )
        if self.train_seed == self.eval_seed:
            raise InputError(f"train_seed and eval_seed are both {self.eval_seed}: give two different seeds")

    def logs_at(self, step: int) -> bool:
        """Whether the history has a row for this step."""
        return step in (0, self.steps) or step % self.log_every == 0

    def saves_at(self, step: int) -> bool:
        """Whether there is a checkpoint of this step.

        >>> config = TrainConfig(steps=10, checkpoint_every=5, checkpoint_log_spaced=True)
        >>> [step for step in range(11) if config.saves_at(step)]
        [0, 1, 2, 4, 5, 8, 10]
        """
        if step in (0, self.steps):
            return True
        is_power_of_two = step & (step - 1) == 0
        every = self.checkpoint_every is not None and step % self.checkpoint_every == 0
        return every or (self.checkpoint_log_spaced and is_power_of_two)


def _check(name: str, value: int | float | None, expected: str, holds: Callable[[int | float], bool]) -> None:
    # A whole number is finite, and math.isfinite cannot take a very large one.
    if value is not None and not ((isinstance(value, int) or math.isfinite(value)) and holds(value)):
        raise InputError(f"{name} = {value}: expected {expected}")


_DEFAULTS = TrainConfig()

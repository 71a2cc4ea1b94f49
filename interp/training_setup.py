"""Task, model and training put together from names and settings, as a command line or a sweep's file gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from interp.hooked_transformer_config import HookedTransformerConfig
from interp.presets import preset
from interp.task_choice import find_task_class, make_task, settable_fields
from interp.train_config import TrainConfig
from interp.validated import given_fields
from tasks.protocol import Task

SECTIONS = ("task", "model", "train")
DEFAULT_PRESETS = {"tokens": "bietti-simplified", "vectors": "chen-8-linear"}


@dataclass(frozen=True)
class TrainingSetup:
    """What ``train`` and ``train_many`` are called with. Seeds that nobody set are not set in ``train_config``."""

    task: Task
    model_config: HookedTransformerConfig
    train_config: TrainConfig


def settable_sections(task_name: str) -> dict[str, list[str]]:
    """Every field that can be set, by its section: "task", "model", "train".

    Raises:
        InputError: there is no such task.

    >>> "seq_len" in settable_sections("bigram")["task"]
    True
    """
    return {
        "task": settable_fields(find_task_class(task_name)),
        "model": [field.name for field in fields(HookedTransformerConfig) if field.name != "seed"],
        "train": [field.name for field in fields(TrainConfig)],
    }


def set_up_training(
    task_name: str,
    chosen: Mapping[str, Mapping[str, Any]],
    *,
    preset_name: str | None = None,
    seed: int | None = None,
    text: Path | None = None,
    counts: Path | None = None,
) -> TrainingSetup:
    """The preset (by default the one for the task's kind of prompts), with the ``chosen`` fields of each section.

    Raises:
        InputError: an unknown task or preset, or values that a task or config refuses.

    >>> setup = set_up_training("bigram", {"task": {"seq_len": 8}, "model": {"d_model": 16}, "train": {"steps": 3}})
    >>> setup.task.n_ctx, setup.model_config.d_model, setup.train_config.steps, setup.train_config.optimizer
    (8, 16, 3, 'sgd')
    """
    task = make_task(find_task_class(task_name), chosen["task"], text, counts)
    preset_name = preset_name or DEFAULT_PRESETS["tokens" if task.d_in is None else "vectors"]
    model_config, preset_training = preset(preset_name, task, chosen["model"])
    training = given_fields(preset_training) | dict(chosen["train"])
    train_config = TrainConfig(**training) if seed is None else TrainConfig.from_seed(seed, **training)
    return TrainingSetup(task, model_config, train_config)

"""The shipped models, as what calculations start from: one calculation for each seed."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analyses.papers.chen2024.setting import ATTENTION, COST_OF_A_SECOND, SEEDS, TASK
from analyses.papers.jobs import Arm, Calculation
from analyses.untrained import untrained_twin
from interp.checkpoints import weights_path
from interp.hooked_transformer import HookedTransformer
from interp.run import Run
from tasks import SparseRegression
from tasks.errors import InputError

Checkpoint = Mapping[str, Any]
"""What JSON can hold of a model: name and sha256 of a shipped checkpoint, and whether its untrained twin is meant."""

_TWINS = 2_000_000  # their seeds begin here: apart from those of runs and from that of the analyses' own twins


def arm_of(
    function: Callable[..., pd.DataFrame],
    what: str,
    *,
    n_heads: int,
    attention: str = ATTENTION,
    untrained: bool = False,
    turn: int = 0,
    cost: float = 1.0,
    **arguments: Any,
) -> Arm:
    """The function on the model of every seed, with that seed's prompts.

    ``turn``: by how many seeds the models are moved on, so that a setting can be compared with itself.
    """
    kind = "untrained" if untrained else attention
    return tuple(
        Calculation(
            label=f"{what}: {n_heads} heads, {kind}",
            seed=seed,
            function=function,
            arguments={
                "checkpoint": checkpoint(n_heads, SEEDS[(place + turn) % len(SEEDS)], attention, untrained=untrained),
                **arguments,
            },
            cost=cost * COST_OF_A_SECOND,
        )
        for place, seed in enumerate(SEEDS)
    )


def checkpoint_name(n_heads: int, seed: int, attention: str = ATTENTION) -> str:
    """The name under which ``Run.shipped`` knows it.

    >>> checkpoint_name(8, 0)
    'chen2024/chen-8-linear-0'
    """
    return f"chen2024/chen-{n_heads}-{attention}-{seed}"


def checkpoint(n_heads: int, seed: int, attention: str = ATTENTION, *, untrained: bool = False) -> Checkpoint:
    """A shipped checkpoint with its checksum, so that what was calculated from other weights is not taken for it."""
    run = Run.shipped(checkpoint_name(n_heads, seed, attention))
    return {"name": checkpoint_name(n_heads, seed, attention), "sha256": digest_of(run), "untrained": untrained}


def load(found: Checkpoint) -> HookedTransformer:
    """The model, or its untrained twin.

    Raises:
        InputError: it is not shipped, or its weights are others.
    """
    run = Run.shipped(found["name"])
    if digest_of(run) != found["sha256"]:
        raise InputError(f"the weights of {found['name']} were changed since this began: choose another folder")
    if not found["untrained"]:
        return run.model
    twin = untrained_twin(run.model, _TWINS + run.train_config.init_seed)
    assert twin is not None
    return twin


def digest_of(run: Run) -> str:
    """Sha256 of the last checkpoint's file."""
    return hashlib.sha256(weights_path(run.path, run.steps[-1]).read_bytes()).hexdigest()


def task_with(n_context: int) -> SparseRegression:
    """The models' task with a fixed number of pairs."""
    return replace(TASK, n_context=n_context, n_context_min=None)

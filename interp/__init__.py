"""Make a model and touch it: HookedTransformer, hooks, interventions, training, runs, statistics."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.hooked_transformer import HookedTransformer
    from interp.hooked_transformer_config import HookedTransformerConfig
    from interp.many_seeds import train_many
    from interp.run import Run
    from interp.seed_runs import SeedRuns
    from interp.train_config import TrainConfig
    from interp.training import train
    from interp.training_interventions import TrainingIntervention
    from tasks.errors import InputError

_HOMES = {
    "HookedTransformer": "interp.hooked_transformer",
    "HookedTransformerConfig": "interp.hooked_transformer_config",
    "InputError": "tasks.errors",
    "Run": "interp.run",
    "SeedRuns": "interp.seed_runs",
    "TrainConfig": "interp.train_config",
    "TrainingIntervention": "interp.training_interventions",
    "train": "interp.training",
    "train_many": "interp.many_seeds",
}

__all__ = [
    "HookedTransformer",
    "HookedTransformerConfig",
    "InputError",
    "Run",
    "SeedRuns",
    "TrainConfig",
    "TrainingIntervention",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import interp`` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

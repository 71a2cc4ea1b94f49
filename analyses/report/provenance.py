"""Where a report's numbers come from: run, task, seeds, versions."""

import platform
from importlib.metadata import version
from typing import Any

from interp.model_adapter import heads_of
from interp.run import Run
from tasks.prompts import Prompts, Seed

_PACKAGES = ("icl-interp", "torch", "transformer-lens", "numpy", "plotly", "circuitsvis")


def facts_of(run: Run, prompts: Prompts) -> tuple[str, ...]:
    """The run in a line."""
    config = run.config
    heads = f"{config.n_layers} layer{_s(config.n_layers)} of {config.n_heads} head{_s(config.n_heads)}"
    absent = config.n_layers * config.n_heads - len(heads_of(run.model))
    if absent:
        heads += f" ({absent} absent)"
    return (
        f"run {run.path.resolve().name}",
        f"{heads}, width {config.d_model}",
        f"{run.steps[-1]:,} training steps",
        f"measured on {len(prompts):,} fresh prompts of {prompts.targets.shape[1]} positions",
    )


def settings_of(run: Run, prompts: Prompts, seed: int) -> dict[str, Any]:
    """Everything needed to measure the report again."""
    seeds: dict[str, Seed] = {
        name: getattr(run.train_config, name) for name in ("init_seed", "train_seed", "eval_seed")
    }
    assert prompts.seed is not None
    return {
        "report": {"seed": seed, "prompts_seed": prompts.seed, "n_prompts": len(prompts), "checkpoint": run.steps[-1]},
        "task": {"name": run.task.name, **run.task.config()},
        "model": {"n_parameters": sum(parameter.numel() for parameter in run.model.parameters())},
        "seeds": seeds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "trained with": dict(run.record.versions),
    }


def _s(n: int) -> str:
    return "" if n == 1 else "s"

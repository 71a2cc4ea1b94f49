"""The report of a task that nobody wrote one for: what each part's removal does, and how the model was learned."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.ablation import ablate_heads, ablate_mlps
from analyses.comparison import compare_predictors
from analyses.figures import component_bars, curves, look
from analyses.report.contents import FigureOf, Section, TableOf
from analyses.report.prompts_view import guesses_of
from interp import HookedTransformer
from tasks.prompts import Prompts

GENERIC_METHOD = (
    (
        "Every number is measured anew on prompts that were neither trained nor evaluated on in training. Intervals "
        "are 95%: a bootstrap over prompts, paired where the model is compared with itself. This task has no "
        "reference predictors here, so nothing is concluded from the numbers."
    ),
)
_PROMPTS_SHOWN = 4


def generic_sections(model: HookedTransformer, prompts: Prompts, history: pd.DataFrame, *, seed: int) -> list[Section]:
    """How good the model is, what goes with each part, and how the loss fell."""
    by = "segment" if "segment" in prompts.labels else None
    metrics: list[Any] = ["loss"] if prompts.targets.is_floating_point() else ["loss", "accuracy"]
    how: dict[str, Any] = {"metric": metrics, "by": by, "seed": seed}
    model_alone = compare_predictors(model, prompts, {}, **how)
    results = {
        "ablation_zero": ("Each head replaced by zeros", ablate_heads(model, prompts, method="zero", **how)),
        "ablation_mean": ("Each head replaced by its mean", ablate_heads(model, prompts, method="mean", **how)),
    }
    if any(model.cfg.has_mlp(layer) for layer in range(model.cfg.n_layers)):
        mlps = ablate_mlps(model, prompts, method="mean", **how)
        results["ablation_mlp"] = ("Each feed-forward part replaced by its mean", mlps)
    unit = "" if prompts.targets.is_floating_point() else " (nats)"
    figures = [
        FigureOf(_rise(result.frame, by, unit), f"{title}: what the loss gains.") for title, result in results.values()
    ]
    tables = [
        TableOf(name, title, result.frame, (), dict(result.settings), result.notes)
        for name, (title, result) in results.items()
    ]
    alone = model_alone.frame[model_alone.frame["metric"] != "distance"]  # from itself
    score = TableOf("model", "How good the model is", alone, (), dict(model_alone.settings))
    loss = [str(name) for name in history if str(name) == "loss" or str(name).startswith("loss_")]
    lines = curves(history["step"].to_numpy(), {name: history[name].to_numpy(dtype=float) for name in loss}, {})
    sections = [
        Section("parts", "Parts", "What goes with each part", figures=figures, tables=[score, *tables]),
        Section(
            "training",
            "Training",
            "How it was learned",
            figures=[FigureOf(lines.update_yaxes(title_text=f"loss{unit}"), "Loss on the evaluation prompts.")],
            tables=[TableOf("history", "Training history", history)],
        ),
    ]
    shown = guesses_of(model, prompts[:_PROMPTS_SHOWN])
    if shown:
        sections.append(Section("prompts", "Prompts", "What the model guessed, token by token", prompts=shown))
    return sections


def _rise(frame: pd.DataFrame, by: str | None, unit: str) -> go.Figure:
    rows = frame.loc[frame["metric"] == "loss"]
    figure = go.Figure(component_bars(rows, value="delta", category=by or "component"))
    figure.update_yaxes(title_text=f"rise of the loss{unit}")
    return figure.update_layout(template=look(), barmode="group", showlegend=by is not None)

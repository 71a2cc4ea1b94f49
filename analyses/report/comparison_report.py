"""The report of two runs side by side: how they learned, how good they are, and which heads they use."""

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from analyses.ablation import ablate_heads
from analyses.comparison import compare_predictors
from analyses.figures import component_bars, component_colour, curves, look, plain, source_points, words
from analyses.report.contents import FigureOf, Report, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.folder import PAGE, refuse_occupied, write_folder
from analyses.report.provenance import facts_of, settings_of
from analyses.report.seeds import REPORT_STREAM, check_n_prompts
from interp.run import Run
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import CLEAN_TARGET, Prompts, Seed

_COLOURS = (component_colour(0, 0), component_colour(1, 0))
_METHOD = (
    (
        "Both models see the same fresh prompts, drawn from the first run's task. Intervals are 95%, a bootstrap over "
        "prompts. The difference of the runs is paired: each prompt's sum in one minus its sum in the other. These are "
        "two runs: a difference between them says nothing about other training seeds."
    ),
)


def write_comparison(first: Run, second: Run, out: str | Path, *, seed: int = 0, n_prompts: int = 512) -> Path:
    """Compare two runs of the same kind of task and write page, tables and JSON; returns the page.

    Raises:
        InputError: the runs' tasks differ in kind, tokens or length, they are one run, or the folder is not empty.
    """
    folder = Path(out)
    refuse_occupied(folder)
    _refuse_incomparable(first, second)
    names = _names(first, second)
    check_n_prompts(n_prompts)
    prompts, differing = _shared_prompts(first, second, n_prompts, (first.train_config.eval_seed, seed, REPORT_STREAM))
    runs = dict(zip(names, (first, second), strict=True))
    sections = [_performance(runs, prompts, seed), _heads(runs, prompts, seed), _training(runs)]
    finding = _difference(runs, prompts, seed, differing)
    facts = [f"{name}: {', '.join(facts_of(run, prompts)[1:3])}" for name, run in runs.items()]
    facts.append(facts_of(first, prompts)[3])
    settings = {name: settings_of(run, prompts, seed) for name, run in runs.items()}
    write_folder(folder, Report(f"{names[0]} beside {names[1]}", facts, (finding,), sections, settings, _METHOD))
    return folder / PAGE


def _refuse_incomparable(first: Run, second: Run) -> None:
    if first.path.resolve() == second.path.resolve():
        raise InputError(f"{first.path} is given twice: name two different runs")
    for what in ("name", "d_vocab", "d_in", "n_ctx"):
        one, other = getattr(first.task, what), getattr(second.task, what)
        if one != other:
            raise InputError(f"the runs' tasks differ in {what} ({one!r} and {other!r}): compare runs of one task")
    one, other = (getattr(prompts, "vocab", None) for prompts in (r.task.sample(2, seed=0) for r in (first, second)))
    if one != other:
        raise InputError("the runs' tasks stand on different vocabularies: compare runs of one corpus")


def _shared_prompts(first: Run, second: Run, n: int, seed: Seed) -> tuple[Prompts, str]:
    """Prompts that are fair to both runs, and a sentence on what their tasks do not share.

    Where both tasks draw the same inputs, only positions that both score are judged: a run is not blamed for what it
    was never trained on.
    """
    prompts, others = first.task.sample(n, seed=seed), second.task.sample(n, seed=seed)
    mine, theirs = first.task.config(), second.task.config()
    keys = [key for key in mine if mine[key] != theirs.get(key)]
    if not keys:
        return prompts, ""
    told = ", ".join(f"{key} ({mine[key]} and {theirs.get(key)})" for key in keys)
    if not torch.equal(prompts.inputs, others.inputs):
        return (
            prompts,
            f" The runs were trained on different tasks, which differ in {told}; these prompts are the first's.",
        )
    shared = prompts.score_only(others.scored)
    if not shared.scored.any():
        raise InputError(
            f"the runs' tasks share no scored position (they differ in {told}): there is nothing to compare"
        )
    return shared, f" The runs' tasks differ in {told}; only positions that both score are judged."


def _names(first: Run, second: Run) -> tuple[str, str]:
    one, other = first.path.resolve(), second.path.resolve()
    if one.name != other.name:
        return one.name, other.name
    return f"{one.parent.name}/{one.name}", f"{other.parent.name}/{other.name}"


def _how(prompts: Prompts) -> dict[str, Any]:
    second = "excess_risk" if CLEAN_TARGET in prompts.labels else "accuracy"
    metrics = ["loss"] if prompts.targets.is_floating_point() and second == "accuracy" else ["loss", second]
    return {"metric": metrics, "by": "segment" if "segment" in prompts.labels else None}


def _performance(runs: dict[str, Run], prompts: Prompts, seed: int) -> Section:
    how = _how(prompts)
    frames = []
    for name, run in runs.items():
        frame = compare_predictors(run.model, prompts, {}, seed=seed, **how).frame
        frames.append(frame.loc[frame["metric"] != "distance"].assign(source=name))
    frame = pd.concat(frames, ignore_index=True)
    metrics = list(frame["metric"].unique())
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=[words(one) for one in metrics], shared_yaxes=True)
    for column, metric in enumerate(metrics, start=1):
        for trace in source_points(frame.loc[frame["metric"] == metric], by=how["by"]):
            figure.add_trace(trace.update(showlegend=how["by"] is not None and column == 1), row=1, col=column)
    figure.update_yaxes(autorange="reversed", col=1).update_layout(template=look())
    table = TableOf("performance", "How good each run is", frame)
    caption = "Each run on the same prompts."
    return Section(
        "performance", "Performance", "How good they are", figures=[FigureOf(figure, caption)], tables=[table]
    )


def _heads(runs: dict[str, Run], prompts: Prompts, seed: int) -> Section:
    how = _how(prompts)
    frames, figures = [], []
    for name, run in runs.items():
        result = ablate_heads(run.model, prompts, method="mean", seed=seed, **how)
        rows = result.frame.loc[result.frame["metric"] == "loss"]
        bars = component_bars(rows, value="delta", category=how["by"] or "component")
        figure = go.Figure(bars).update_yaxes(title_text="rise of the loss")
        figure.update_layout(template=look(), barmode="group", showlegend=how["by"] is not None, title=plain(name))
        figures.append(FigureOf(figure, f"{name}: what the loss gains when a head is replaced by its mean."))
        frames.append(result.frame.assign(run=name))
    text = ("Heads are listed by their index; the same index in two runs need not mean the same function.",)
    table = TableOf("heads", "Each head replaced by its mean", pd.concat(frames, ignore_index=True))
    return Section("heads", "Heads", "Which heads they use", text, figures=figures, tables=[table])


def _training(runs: dict[str, Run]) -> Section:
    histories = {name: run.history for name, run in runs.items()}
    figure = go.Figure()
    for index, (name, history) in enumerate(histories.items()):
        losses = [str(column) for column in history if str(column) == "loss" or str(column).startswith("loss_")]
        series = {f"{name}: {words(column)}": history[column].to_numpy(dtype=float) for column in losses}
        lines = curves(history["step"].to_numpy(), series, dict.fromkeys(series, _COLOURS[index]))
        figure.add_traces(list(lines.data))
    figure.update_xaxes(title_text="training step").update_yaxes(title_text="loss")
    figure.update_layout(template=look(), hovermode="x unified")
    frame = pd.concat([history.assign(run=name) for name, history in histories.items()], ignore_index=True)
    table = TableOf("history", "Training histories", frame)
    caption = "Loss on the evaluation prompts of each run."
    return Section("training", "Training", "How they learned", figures=[FigureOf(figure, caption)], tables=[table])


def _difference(runs: dict[str, Run], prompts: Prompts, seed: int, differing: str) -> Finding:
    """Which run has the lower loss, paired over prompts."""
    (name, first), (other, second) = runs.items()
    with torch.no_grad():
        (sums, counts), (others, _) = (prompts.loss(run.model(prompts.inputs)) for run in (first, second))
    differences = (others.double() - sums.double()).unsqueeze(1).numpy()
    gap = ratio_interval(differences, counts.unsqueeze(1).numpy(), seed=seed)
    estimate, low, high = float(gap.estimate[0]), float(gap.low[0]), float(gap.high[0])
    if low <= 0 <= high:
        interval = f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
        sentence = f"Nothing was found: the loss of {other} minus that of {name} is {interval}."
    else:
        better, worse = (name, other) if estimate > 0 else (other, name)
        ends = sorted((abs(low), abs(high)))
        interval = f"{abs(estimate):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        sentence = f"{better} has the lower loss on these prompts, {interval} less than {worse}."
    numbers = {"loss_of_second_minus_first": estimate, "ci_low": low, "ci_high": high}
    claims = not low <= 0 <= high
    return Finding("performance", claims=claims, sentence=sentence + differing, numbers=numbers)

"""How a regression report is laid out: sections whose headings say what was found, with figures and tables."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.algorithm_distance import AlgorithmDistances
from analyses.figures import INK, MUTED, curves, look, plain, source_points, whiskers
from analyses.report.contents import FigureOf, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.regression_report import (
    AS_TRAINED,
    BAYES,
    LASSO,
    METRIC,
    RIDGE_BOUND,
    ZERO,
    RegressionMeasurements,
)
from analyses.result import Result

REGRESSION_METHOD = (
    (
        "Every number is measured anew on prompts that were neither trained nor evaluated on in training. Brackets are "
        "95% confidence intervals: a bootstrap over prompts, paired where two things are compared on the same prompts. "
        "The excess risk is the mean squared distance from ⟨w*, x⟩, the answer without its noise, in squared units "
        "of y; no predictor can do better than the Bayes posterior mean."
    ),
    (
        "Each reference algorithm's one number (λ, steps) is tuned on separate prompts of the same kind; “ridge, best "
        "λ in hindsight” takes the λ that is best on the very prompts it is judged on, a bound that favours ridge. The "
        "model is said to beat an algorithm if the interval of the paired difference of risks, at 99% divided among "
        "the algorithms (Bonferroni), lies below 0."
    ),
    (
        "A head's share is what zeroing it costs, divided by the sum over its layer; heads that only do harm count as "
        "0. The effective number of heads is 1 / Σ share²: 1 if one head does all, their number if all are alike. "
        "Heads are ranked for pruning, and probes fitted, on prompts of their own."
    ),
    (
        "Distances between algorithms say what can be told: two that lie nearer to each other than the model lies to "
        "either cannot be told apart by it."
    ),
)
_TICKS = [digit * 10.0**decade for decade in range(-6, 6) for digit in (1, 2, 5)]
_PLAIN_TICKS: dict[str, Any] = {"tickvals": _TICKS, "ticktext": [f"{tick:g}" for tick in _TICKS]}
_LINE_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("square-open", "diamond-open", "triangle-up-open", "x-thin-open", "star-open", "cross-open")
_HEADROOM = 1.5
_OFF_SCALE = 5.0
"""Risks so many times smaller than the model's lie outside the figure, as do those far above that of predicting 0."""


def regression_sections(measured: RegressionMeasurements, history: pd.DataFrame) -> list[Section]:
    """The sections in the order in which a reader asks."""
    risk, heads, algorithm = measured.findings
    return [
        _risk(measured, risk),
        _heads(measured, heads),
        _layers(measured),
        _algorithm(measured, algorithm),
        _training(history, risk),
    ]


def _risk(measured: RegressionMeasurements, finding: Finding) -> Section:
    beaten = [name for name in finding.numbers["beaten"] if name != ZERO]
    heading = f"The model beats {_listed(beaten)}" if beaten else "The model beats none of the reference algorithms"
    frame = measured.risks.loc[measured.risks["metric"] == METRIC]
    own = frame.loc[frame["prompts"] == AS_TRAINED]
    figures = [FigureOf(_points(own), "Excess risk on the prompts it was trained for; lower is better.", height=380)]
    if len(measured.lengths) > 1:
        caption = (
            "Excess risk against the number of pairs in the context; every algorithm is tuned for each length. What is "
            "far worse than predicting 0, or far better than the model, lies off the scale; it is in the table."
        )
        figures.append(FigureOf(_against_length(frame, measured), caption, height=380))
    shown = ("prompts", "source", "value", "ci_low", "ci_high")
    tables = [TableOf("risk", "Excess risk of the model and of reference algorithms", frame, shown)]
    if measured.gap is not None:
        columns = ("prompts", "reference", "share", "ci_low", "ci_high", "gap", "model_risk", "bayes_risk")
        tables.append(
            _table("gap_closed", f"How much of the way from each algorithm to {BAYES}", measured.gap, columns)
        )
    return Section(finding.key, "Risk", heading, figures=figures, tables=tables)


def _heads(measured: RegressionMeasurements, finding: Finding) -> Section:
    heading = "No clear order in how many heads the layers use"
    if finding.numbers.get("first_layer_uses_more"):
        heading = "Many heads in the first layer, fewer in later ones"
    elif finding.numbers.get("first_layer_uses_fewer"):
        heading = "Few heads in the first layer, more in later ones"
    elif finding.numbers.get("few_everywhere"):
        heading = "Few heads do the work of every layer"
    figures = [
        FigureOf(
            measured.assessment.plot().update_layout(title=None),
            "Each head's share of what zeroing a head of its layer costs, and the layer's effective number of heads.",
            height=360,
            wide=True,
        ),
    ]
    columns = ("component", "delta", "ci_low", "ci_high", "share", "share_ci_low", "share_ci_high")
    tables = [
        TableOf("effective_heads", "Effective number of heads", measured.assessment.layers),
        _table("head_assessment", "What zeroing each head costs, and its share", measured.assessment, columns),
    ]
    text = []
    if isinstance(measured.pruning, str):
        text.append(f"No pruning: {measured.pruning}.")
    else:
        caption = (
            "Excess risk when every later layer keeps only its k most important heads; beside it k heads at random, "
            "and the first layer pruned instead."
        )
        figure = measured.pruning.plot().update_layout(title=None)
        figures.append(FigureOf(figure, caption, height=360, wide=True))
        shown = (
            "arm",
            "pruned",
            "kept",
            "baseline",
            "ablated",
            "delta",
            "ci_low",
            "ci_high",
            "draws_low",
            "draws_high",
        )
        tables.append(_table("pruning", "The model with few heads", measured.pruning, shown))
    if isinstance(measured.coordinates, str):
        text.append(f"No map of heads and coordinates: {measured.coordinates}.")
    else:
        caption = (
            "What each head of the first layer writes of every preprocessed coordinate, r times x; on the right, how "
            "much more its loss costs if the coordinate is in the support (* p < 0.05, each cell alone)."
        )
        figures.append(FigureOf(measured.coordinates.plot().update_layout(title=None), caption, height=400, wide=True))
        tables.append(_table("coordinate_map", "Heads of the first layer and coordinates", measured.coordinates))
    return Section(finding.key, "Heads", heading, text=text, figures=figures, tables=tables)


def _layers(measured: RegressionMeasurements) -> Section:
    answers = measured.probes.frame.query("target == 'answer' and probe == 'model' and metric == 'squared_error'")
    falls = answers["ci_high"].iloc[-1] < answers["ci_low"].iloc[0]
    heading = "The answer takes shape layer by layer" if falls else "No layer knows the answer better than the first"
    figures = [
        FigureOf(_by_depth(answers), "Squared error of a linear probe for the answer, read at each depth."),
        FigureOf(
            measured.probes.plot().update_layout(title=None),
            "R² of linear probes at each depth; framed is where a target is read best.",
            height=400,
            wide=True,
        ),
    ]
    columns = ("target", "probe", "component", "metric", "value", "ci_low", "ci_high")
    tables = [_table("probes", "Linear probes, with controls", measured.probes, columns)]
    text = []
    if isinstance(measured.preprocessing, str):
        text.append(f"No preprocessing probe: {measured.preprocessing}.")
    else:
        caption = (
            "Gradient descent on the first layer's features and on x, by number of steps; the level line is the target "
            "risk, 1.1 times the lowest that x reaches."
        )
        figures.insert(1, FigureOf(measured.preprocessing.plot().update_layout(title=None), caption))
        needed = measured.preprocessing.steps_needed
        tables.append(TableOf("steps_needed", "Steps of descent that reach the target risk", needed))
        tables.append(_table("preprocessing_probe", "Descent on features, step by step", measured.preprocessing))
    return Section("layers", "Layers", heading, text=text, figures=figures, tables=tables)


def _algorithm(measured: RegressionMeasurements, finding: Finding) -> Section:
    closest = next(one for one in finding.numbers["closest"] if one["prompts"] == AS_TRAINED)
    heading = f"Closest to {closest['algorithm']}" + ("" if finding.claims else ", but not told from its neighbours")
    columns = ("distance", "ci_low", "ci_high", "closest", "resolution", "resolution_from", "not_told_from")
    figures = [
        FigureOf(
            measured.algorithms.plot().update_layout(title=None),
            "Mean squared distance of the model's predictions from each algorithm's, as trained and off the training "
            "distribution; framed is the closest.",
            height=420,
            wide=True,
        ),
        FigureOf(
            measured.layers.plot().update_layout(title=None),
            "The same for each layer's prediction, read by the model's own unembedding and by a linear probe.",
            height=420,
            wide=True,
        ),
    ]
    tables = [
        _table(
            "algorithm_distances",
            "Distance from each algorithm",
            measured.algorithms,
            ("prompts", "source", "algorithm", *columns),
        ),
        _table(
            "layer_distances",
            "Distance of each layer's prediction",
            measured.layers,
            ("component", "reading", "algorithm", *columns),
        ),
    ]
    return Section(finding.key, "Algorithm", heading, figures=figures, tables=tables)


def _training(history: pd.DataFrame, finding: Finding) -> Section:
    steps = history["step"].to_numpy()
    series = {"model": history[METRIC].to_numpy(dtype=float)}
    for name in (RIDGE_BOUND, LASSO):
        series[name] = np.full(len(steps), finding.numbers["predictors"][name]["value"])
    figure = curves(steps, series, {"model": INK})
    figure.update_yaxes(title_text="excess risk", type="log", **_PLAIN_TICKS)
    caption = (
        "The model's excess risk on the evaluation prompts; level lines are algorithms on this report's prompts, whose "
        "risks may lie a little higher or lower: only finding 1 compares them on the same prompts."
    )
    table = TableOf("history", "Training history", history)
    return Section("training", "Training", "How it was learned", figures=[FigureOf(figure, caption)], tables=[table])


def _points(frame: pd.DataFrame) -> go.Figure:
    figure = go.Figure(source_points(frame.sort_values("value", ascending=False)))
    figure.update_traces(cliponaxis=False)
    figure.update_xaxes(title_text="excess risk", rangemode="tozero")
    return figure.update_layout(template=look(), showlegend=False)


def _against_length(frame: pd.DataFrame, measured: RegressionMeasurements) -> go.Figure:
    rows = frame.loc[frame["prompts"].isin(list(measured.lengths)) & (frame["source"] != ZERO)]
    rows = rows.assign(n=rows["prompts"].map(measured.lengths)).sort_values("n")
    of_model = frame.loc[(frame["source"] == "model") & frame["prompts"].isin(list(measured.lengths)), "value"]
    of_zero = frame.loc[(frame["source"] == ZERO) & frame["prompts"].isin(list(measured.lengths)), "value"]
    ends = [float(of_model.min()) / _OFF_SCALE, float(of_zero.max()) * _HEADROOM]
    figure = go.Figure()
    for index, (source, points) in enumerate(rows.groupby("source", sort=False)):
        is_model = source == "model"
        figure.add_trace(
            go.Scatter(
                x=points["n"],
                y=points["value"],
                name=plain(str(source)),
                mode="lines+markers",
                line={
                    "color": INK if is_model else MUTED,
                    "width": 3 if is_model else 1.5,
                    "dash": "solid" if is_model else _LINE_DASHES[index % len(_LINE_DASHES)],
                },
                marker={"symbol": "circle" if is_model else _SYMBOLS[index % len(_SYMBOLS)], "size": 8},
                error_y=whiskers(points, "value"),
            )
        )
    figure.update_xaxes(title_text="pairs in the context")
    figure.update_yaxes(title_text="excess risk", type="log", range=[math.log10(end) for end in ends], **_PLAIN_TICKS)
    return figure.update_layout(template=look())


def _by_depth(answers: pd.DataFrame) -> go.Figure:
    bars = go.Scatter(
        x=[plain(name) for name in answers["component"]],
        y=answers["value"],
        mode="lines+markers",
        line={"color": INK, "width": 2.5},
        marker={"size": 9},
        error_y=whiskers(answers, "value"),
    )
    figure = go.Figure(bars).update_yaxes(title_text="squared error", rangemode="tozero")
    return figure.update_layout(template=look(), showlegend=False)


def _table(name: str, title: str, result: Result | AlgorithmDistances, columns: tuple[str, ...] = ()) -> TableOf:
    settings: dict[str, Any] = dict(result.settings)
    return TableOf(name, title, result.frame, columns, settings, tuple(result.notes))


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

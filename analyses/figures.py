"""How results are drawn: one look, one colour per head everywhere."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette, told apart with any kind of colour vision; black is left to axes and text.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def component_colour(layer: int, head: int | None, n_heads: int = 1) -> str:
    """The colour of a head (or, without one, of a layer's other parts) in every figure.

    >>> component_colour(0, 0), component_colour(1, 0)
    ('#0072B2', '#D55E00')
    """
    return "#999999" if head is None else _PALETTE[(layer * n_heads + head) % len(_PALETTE)]


def effect_figure(frame: pd.DataFrame, *, value: str, title: str, by: str | None = None) -> go.Figure:
    """Bars of ``value`` per component with intervals from ci_low to ci_high, one panel per metric."""
    metrics = list(frame["metric"].unique())
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, horizontal_spacing=0.12)
    n_heads = int(frame["head"].max()) + 1 if frame["head"].notna().any() else 1
    for column, metric in enumerate(metrics, start=1):
        of_metric = frame[frame["metric"] == metric]
        parts = [("", of_metric)] if by is None else list(of_metric.groupby(by, sort=False))
        for part, rows in parts:
            figure.add_trace(_bars(rows, value, str(part), n_heads, split=by is not None), row=1, col=column)
        figure.update_yaxes(title_text=f"{value} ({_unit(metric)})", row=1, col=column)
    figure.update_layout(
        title=title, template="plotly_white", barmode="group", showlegend=by is not None, margin={"t": 70, "b": 40}
    )
    return figure


def _bars(rows: Any, value: str, part: str, n_heads: int, *, split: bool) -> go.Bar:
    colours = [
        component_colour(int(layer), None if pd.isna(head) else int(head), n_heads)
        for layer, head in zip(rows["layer"], rows["head"], strict=True)
    ]
    return go.Bar(
        x=rows["component"],
        y=rows[value],
        name=part,
        marker_color=None if split else colours,
        error_y={
            "type": "data",
            "array": rows["ci_high"] - rows[value],
            "arrayminus": rows[value] - rows["ci_low"],
            "thickness": 1.2,
        },
    )


def _unit(metric: str) -> str:
    return {"loss": "nats", "accuracy": "share", "logit_diff": "logits", "prob": "probability", "kl": "nats"}.get(
        metric, metric
    )


def grouped_bars(frame: pd.DataFrame, *, title: str, by: str | None = None) -> go.Figure:
    """Bars of ``value`` per source with intervals, one panel per metric, one colour per value of ``by``."""
    metrics = list(frame["metric"].unique())
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=metrics, horizontal_spacing=0.12)
    for column, metric in enumerate(metrics, start=1):
        of_metric = frame[frame["metric"] == metric]
        parts = [("", of_metric)] if by is None else list(of_metric.groupby(by, sort=False))
        for index, (part, rows) in enumerate(parts):
            bars = go.Bar(
                x=rows["source"],
                y=rows["value"],
                name=str(part),
                marker_color=_PALETTE[index % len(_PALETTE)],
                legendgroup=str(part),
                showlegend=by is not None and column == 1,
                error_y={
                    "type": "data",
                    "array": rows["ci_high"] - rows["value"],
                    "arrayminus": rows["value"] - rows["ci_low"],
                },
            )
            figure.add_trace(bars, row=1, col=column)
        figure.update_yaxes(title_text=_unit(metric), row=1, col=column)
    return figure.update_layout(title=title, template="plotly_white", barmode="group", margin={"t": 70, "b": 40})

"""How a reproduction is drawn: every seed, and their mean. No head is shown, so that colour means setting."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy import ndarray

from analyses.figures import INK, MUTED, look, plain

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, told apart with any kind of colour vision."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def seed_curves(
    curves: Mapping[str, Sequence[tuple[ndarray, ndarray]]], *, x: str, y: str, share: bool = False
) -> go.Figure:
    """A thin line for each seed of each setting, and a thick one for their mean (where all have the same x)."""
    figure = go.Figure()
    for index, (name, seeds) in enumerate(curves.items()):
        colour, dash = COLOURS[index % len(COLOURS)], _DASHES[index % len(_DASHES)]
        for xs, ys in seeds:
            line = {"color": colour, "width": 1, "dash": dash}
            figure.add_trace(
                go.Scatter(x=xs, y=ys, mode="lines", line=line, opacity=0.35, showlegend=False, hoverinfo="skip")
            )
        if all(np.array_equal(xs, seeds[0][0]) for xs, _ in seeds):
            mean = np.mean([ys for _, ys in seeds], axis=0)
            line = {"color": colour, "width": 3, "dash": dash}
            figure.add_trace(go.Scatter(x=seeds[0][0], y=mean, mode="lines", line=line, name=plain(name)))
    figure.update_xaxes(title_text=plain(x))
    figure.update_yaxes(title_text=plain(y), range=[-0.03, 1.03] if share else None)
    return figure.update_layout(template=look())


def seed_points(
    values: Mapping[str, Sequence[float]], *, y: str, marks: Mapping[str, float] | None = None
) -> go.Figure:
    """A point for each seed of each setting, a bar at their mean, and dashed lines at reference values."""
    figure = go.Figure()
    for index, (name, seeds) in enumerate(values.items()):
        spread = np.linspace(-0.15, 0.15, len(seeds)) if len(seeds) > 1 else np.zeros(1)
        marker = {"size": 9, "color": COLOURS[index % len(COLOURS)], "symbol": "circle-open", "line": {"width": 2}}
        figure.add_trace(
            go.Scatter(
                x=index + spread, y=list(seeds), mode="markers", marker=marker, name=plain(name), showlegend=False
            )
        )
        middle = float(np.mean(seeds))
        line = {"color": INK, "width": 2}
        figure.add_shape(type="line", x0=index - 0.25, x1=index + 0.25, y0=middle, y1=middle, line=line)
    for name, value in (marks or {}).items():
        line = {"color": MUTED, "width": 1.5, "dash": "dash"}
        figure.add_shape(type="line", x0=-0.5, x1=len(values) - 0.5, y0=value, y1=value, line=line)
        figure.add_annotation(
            x=len(values) - 0.5, y=value, text=plain(name), showarrow=False, xanchor="right", yshift=9
        )
    figure.update_xaxes(
        tickvals=list(range(len(values))),
        ticktext=[plain(name) for name in values],
        range=[-0.5, len(values) - 0.5],
        zeroline=False,
    )
    figure.update_yaxes(title_text=plain(y))
    return figure.update_layout(template=look())

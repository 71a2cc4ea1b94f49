"""How results are drawn: one look, one colour per head everywhere, light and dark.

Colour means head. What is no head (a segment of the prompts, a reference predictor) is told apart by symbol, dash and
shade, so that no colour ever says two things.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy import ndarray
from plotly.subplots import make_subplots

INK, INK_ON_DARK = "#30363d", "#d5dae1"
"""Text, whiskers and whatever is no head. A page that turns dark replaces one by the other."""
MUTED = "#868e98"
"""Reference marks; readable on white and on black alike."""
# Okabe and Ito's palette, told apart with any kind of colour vision, and a wine red in the place of its black, which is
# left to axes and text.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#882255")
_SHADES = (0.0, -0.3, 0.45, -0.5)
"""How far a colour goes towards white, or (below 0) black, when the palette's hues are used up."""
_HUES_PER_LAYER = 4
_GRID, _GRID_ON_DARK = "#e6e8eb", "#2c323a"
_SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "x-thin-open", "star-open")
_DASHES = ("solid", "dash", "dot", "dashdot")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
_UNITS = {"accuracy": "share", "logit_diff": "logits", "logit": "logits", "prob": "probability"}
_UNITS |= {"kl": "nats", "excess_risk": "squared units of y"}
_MOST_PANELS = 3
_BAR_WIDTH = 0.4


def component_colour(layer: int, head: int | None) -> str:
    """The colour of a head (or, without one, of a layer's other parts) in every figure, whatever model it is of.

    No two heads of a model share one, up to 8 layers of 4 heads or 3 layers of 8.

    >>> component_colour(0, 0), component_colour(1, 0), component_colour(1, None) == MUTED
    ('#0072b2', '#e69f00', True)
    """
    if head is None:
        return MUTED
    place = _HUES_PER_LAYER * layer + head
    shade = place // len(_PALETTE) + head // _HUES_PER_LAYER
    return _shaded(_PALETTE[place % len(_PALETTE)], _SHADES[shade % len(_SHADES)])


def _shaded(colour: str, towards_white: float) -> str:
    end = 255 if towards_white > 0 else 0
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + abs(towards_white) * (end - part)):02x}" for part in parts)


def look(*, dark: bool = False) -> go.layout.Template:
    """The look that all figures share, for light or for dark surroundings, whose background shines through.

    >>> look(dark=True).layout.font.color == INK_ON_DARK
    True
    """
    ink, grid = (INK_ON_DARK, _GRID_ON_DARK) if dark else (INK, _GRID)
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": MUTED,
        "zerolinewidth": 1,
        "ticks": "",
        "ticklabelstandoff": 6,
    }
    axis |= {"automargin": True, "title": {"font": {"size": 13}, "standoff": 8}}
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 13, "color": ink},
            "title": {"font": {"size": 16}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(_PALETTE),
            "xaxis": axis,
            "yaxis": axis,
            "bargap": 0.35,
            "bargroupgap": 0.08,
            "hoverlabel": {"font": {"family": _FONT}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "margin": {"t": 70, "b": 40, "l": 56, "r": 16},
        }
    )


def plain(text: object) -> str:
    """Text that Plotly shows as it is; it reads labels as HTML otherwise.

    >>> plain("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(str(text), quote=False)


def effect_figure(
    frame: pd.DataFrame, *, value: str, title: str, by: str | None = None, loss_unit: str = ""
) -> go.Figure:
    """Bars of ``value`` per component with intervals from ci_low to ci_high, one panel per metric.

    With ``by``, or with more than three metrics, the bars stand in groups, one bar for each component. ``loss_unit``
    is what the metric "loss" is measured in: see ``metrics.loss_unit``.
    """
    metrics = list(frame["metric"].unique())
    category = by if by is not None else "component"
    panels = [(plain(metric), frame.loc[frame["metric"] == metric]) for metric in metrics]
    if by is None and len(metrics) > _MOST_PANELS:
        panels, category = [("", frame)], "metric"
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=[name for name, _ in panels])
    for column, (_, rows) in enumerate(panels, start=1):
        for trace in component_bars(rows, value=value, category=category):
            figure.add_trace(trace.update(showlegend=category != "component" and column == 1), row=1, col=column)
        unit = _unit(rows["metric"].iloc[0], loss_unit)
        figure.update_yaxes(title_text=f"{value} ({unit})" if unit else value, row=1, col=column)
    return figure.update_layout(title=plain(title), template=look(), barmode="group")


def _unit(metric: str, loss_unit: str) -> str:
    return loss_unit if metric == "loss" else _UNITS.get(metric, "")


def component_bars(frame: pd.DataFrame, *, value: str, category: str) -> list[go.Bar]:
    """One series of bars per component in its colour: a bar for each value of ``category``."""
    bars = []
    for component, rows in frame.groupby("component", sort=False):
        first = rows.iloc[0].to_dict()
        layer, head = (None if pd.isna(first[key]) else int(first[key]) for key in ("layer", "head"))
        colour = MUTED if layer is None else component_colour(layer, head)
        bar = go.Bar(
            x=[words(one) for one in rows[category]],
            y=rows[value].to_numpy(dtype=float),
            name=plain(component),
            legendgroup=str(component),
            marker={"color": colour, "line": {"width": 0}},
            width=_BAR_WIDTH if category == "component" else None,
            error_y=whiskers(rows, value),
        )
        bars.append(bar.update(offset=-_BAR_WIDTH / 2) if category == "component" else bar)
    return bars


def grouped_bars(frame: pd.DataFrame, *, title: str, by: str | None = None, loss_unit: str = "") -> go.Figure:
    """``value`` per source with its interval, one panel per metric, one symbol per value of ``by``."""
    metrics = list(frame["metric"].unique())
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=[plain(one) for one in metrics], shared_yaxes=True)
    for column, metric in enumerate(metrics, start=1):
        rows = frame.loc[frame["metric"] == metric]
        for trace in source_points(rows, by=by):
            figure.add_trace(trace.update(showlegend=by is not None and column == 1), row=1, col=column)
        figure.update_xaxes(title_text=_unit(metric, loss_unit) or plain(metric), row=1, col=column)
    figure.update_yaxes(autorange="reversed", col=1)
    return figure.update_layout(title=plain(title), template=look())


def source_points(frame: pd.DataFrame, *, by: str | None = None) -> list[go.Scatter]:
    """A point with its interval for every source, in one series for each value of ``by``."""
    parts = [("", frame)] if by is None else list(frame.groupby(by, sort=False))
    points = []
    for index, (part, rows) in enumerate(parts):
        colours = [INK if source == "model" else MUTED for source in rows["source"]]
        points.append(
            go.Scatter(
                x=rows["value"].to_numpy(dtype=float),
                y=[plain(source) for source in rows["source"]],
                mode="markers",
                name=words(part),
                legendgroup=str(part),
                marker={"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 10, "color": colours, "line": {"width": 2}},
                error_x=whiskers(rows, "value"),
            )
        )
    return points


def curves(
    steps: Sequence[int] | ndarray, series: Mapping[str, Sequence[float] | ndarray], colours: Mapping[str, str]
) -> go.Figure:
    """Lines against the training step; those of one colour are told apart by their dash."""
    figure = go.Figure()
    drawn: dict[str, int] = {}
    for name, values in series.items():
        colour = colours.get(name, MUTED)
        dash = _DASHES[drawn.get(colour, 0) % len(_DASHES)]
        drawn[colour] = drawn.get(colour, 0) + 1
        line = {"color": colour, "width": 2.5, "dash": dash}
        trace = go.Scatter(x=np.asarray(steps), y=np.asarray(values), name=words(name), line=line, mode="lines")
        figure.add_trace(trace)
    figure.update_xaxes(title_text="training step")
    return figure.update_layout(template=look(), hovermode="x unified")


def words(name: object) -> str:
    """A column's or label's name as a reader would write it.

    >>> words("in_context")
    'in context'
    """
    return plain(str(name).replace("_", " "))


def whiskers(rows: pd.DataFrame, value: str) -> dict[str, Any]:
    """Error bars from ci_low to ci_high."""
    centre = rows[value].to_numpy(dtype=float)
    above, below = rows["ci_high"].to_numpy(dtype=float) - centre, centre - rows["ci_low"].to_numpy(dtype=float)
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.4, "width": 4, "color": INK}

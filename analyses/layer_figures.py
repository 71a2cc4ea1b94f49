"""How results by layer are drawn: lines against depth, and maps of layers and what they are held against."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import INK, MUTED, look, plain, whiskers, words

_DASHES = ("solid", "dash", "dot", "dashdot")
_LINES = ("dash", "solid", "dot", "dashdot", "longdash", "longdashdot")
_BAND = "rgba(134,142,152,0.18)"
_SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "x-thin-open", "star-open")
# Shade alone, from the page's own background on, so that it reads on white and on black; colour would mean a head.
_SHADES = [[0.0, "rgba(134,142,152,0)"], [1.0, "rgba(134,142,152,0.8)"]]
_NAMES = {"r2": "R²", "auc": "area under the ROC curve"}
_MOST_WRITTEN_CELLS = 400
_LEAST_SPREAD = 50  # a ratio of largest to smallest value from which shades are logarithmic
_DARKEST_TO_LIGHTEST = 1000  # so that a distance of 0 up to rounding leaves shades for the others
_APART = 0.08  # of the distance between two categories: so far lie the whiskers of two series from each other


def layer_lines(
    frame: pd.DataFrame, *, series: str, title: str, x: str = "component", panels: str, joined: bool = True
) -> go.Figure:
    """``value`` with its interval against ``x`` in order of appearance: a panel per kind, a line per series.

    The first series is drawn in ink, the others (controls, references) in grey; ``joined=False`` draws points alone,
    where ``x`` has no order.
    """
    kinds, places = list(frame[panels].unique()), list(frame[x].unique())
    names = list(frame[series].unique())
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=[_word(kind) for kind in kinds])
    for column, kind in enumerate(kinds, start=1):
        for index, name in enumerate(names):
            rows = frame.loc[(frame[panels] == kind) & (frame[series] == name)]
            colour = MUTED if index else INK
            shift = _APART * (index - (len(names) - 1) / 2)
            trace = go.Scatter(
                x=np.array([places.index(one) for one in rows[x]]) + shift,
                y=rows["value"].to_numpy(dtype=float),
                error_y=whiskers(rows, "value") | {"color": colour},
                name=words(name),
                legendgroup=str(name),
                showlegend=column == 1 and len(names) > 1,
                mode="lines+markers" if joined else "markers",
                line={"color": colour, "width": 2, "dash": _DASHES[index % len(_DASHES)]},
                marker={"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 9, "color": colour, "line": {"width": 2}},
            )
            figure.add_trace(trace, row=1, col=column)
    ticks = {"tickvals": list(range(len(places))), "ticktext": [_word(one) for one in places]}
    figure.update_xaxes(**ticks, zeroline=False)
    high = {"text": plain(title), "y": 0.98, "yanchor": "top"}
    return figure.update_layout(title=high, template=look(), legend={"y": 1.1}, margin={"t": 110})


def layer_map(
    rows: pd.DataFrame, *, columns: str, value: str, title: str, down: str = "component", framed: pd.Series
) -> go.Figure:
    """``value`` as shades, one row per site (the first on top) and one column per ``columns``.

    ``framed`` says for each row of the table whether its cell is framed.
    """
    table = rows.pivot(index=down, columns=columns, values=value)
    table = table.reindex(index=rows[down].unique(), columns=rows[columns].unique())
    across, along = [_word(one) for one in table.columns], [_word(one) for one in table.index]
    shown = table.to_numpy(dtype=float)
    positive = rows.loc[rows[value] > 0, value]
    shades = shown
    if (rows[value] >= 0).all() and spreads_far(positive):
        shades = np.log10(shown.clip(min=positive.max() / _DARKEST_TO_LIGHTEST))
    figure = go.Figure(
        go.Heatmap(
            x=across,
            y=along,
            z=shades,
            customdata=shown,
            colorscale=_SHADES,
            xgap=2,
            ygap=2,
            showscale=False,
            text=[["" if np.isnan(number) else f"{number:.3g}" for number in line] for line in shown],
            texttemplate="%{text}" if shown.size <= _MOST_WRITTEN_CELLS else None,
            textfont={"color": INK},
            hovertemplate="%{y}, %{x}: %{customdata:.4g}<extra></extra>",
        )
    )
    for key, site in zip(rows.loc[framed, columns], rows.loc[framed, down], strict=True):
        column, row = list(table.columns).index(key), list(table.index).index(site)
        corners = {"x0": column - 0.47, "x1": column + 0.47, "y0": row - 0.47, "y1": row + 0.47}
        figure.add_shape(type="rect", **corners, line={"color": INK, "width": 2})
    figure.update_xaxes(title_text=words(columns), showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    return figure.update_layout(title=plain(title), template=look())


def spreads_far(positive: pd.Series) -> bool:
    """Whether positive values spread so far that only a logarithmic scale shows them all.

    >>> spreads_far(pd.Series([0.01, 1.0])), spreads_far(pd.Series([0.5, 1.0])), spreads_far(pd.Series([]))
    (True, False, False)
    """
    return len(positive) > 0 and bool(positive.max() / positive.min() > _LEAST_SPREAD)


def _word(name: object) -> str:
    """A site or metric as a reader would write it: the residual stream after a layer bears the layer's name."""
    text = str(name)
    if text in _NAMES:
        return _NAMES[text]
    return words(text.replace("L0.resid_pre", "embed").replace(".resid_post", ""))


def step_curves(
    frame: pd.DataFrame, *, series: str, panels: str, title: str, marks: Mapping[str, float], x: str = "steps"
) -> go.Figure:
    """``value`` with its interval as a band against the number of steps: a panel per kind, a line per series.

    The first two series are drawn in ink, the others (controls, references) in grey; ``marks`` are levels with names.
    """
    kinds, names = list(frame[panels].unique()), list(frame[series].unique())
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=[plain(kind) for kind in kinds], shared_yaxes=True)
    for column, kind in enumerate(kinds, start=1):
        for index, name in enumerate(names):
            rows = frame.loc[(frame[panels] == kind) & (frame[series] == name)]
            steps, colour = rows[x].to_numpy(dtype=float), INK if index < 2 else MUTED
            low, high = (rows[end].to_numpy(dtype=float) for end in ("ci_low", "ci_high"))
            band = go.Scatter(
                x=np.concatenate([steps, steps[::-1]]),
                y=np.concatenate([high, low[::-1]]),
                fill="toself",
                fillcolor=_BAND,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=str(name),
            )
            line = {"color": colour, "width": 2.5 if index < 2 else 2, "dash": _LINES[index % len(_LINES)]}
            trace = go.Scatter(
                x=steps,
                y=rows["value"].to_numpy(dtype=float),
                name=plain(name),
                legendgroup=str(name),
                showlegend=column == 1,
                mode="lines",
                line=line,
            )
            figure.add_trace(band, row=1, col=column)
            figure.add_trace(trace, row=1, col=column)
        for name, level in marks.items():
            ends = [frame[x].min(), frame[x].max()]
            mark = {"name": plain(name), "legendgroup": name, "showlegend": column == 1, "mode": "lines"}
            line = {"color": MUTED, "width": 1}
            figure.add_trace(go.Scatter(x=ends, y=[level, level], line=line, **mark), row=1, col=column)
    figure.update_xaxes(title_text=words(x), type="log", dtick=1)
    if (frame["ci_low"] > 0).all():
        # plotly would label 0.5 between the decades by its digit alone
        decades = range(
            math.floor(math.log10(frame["ci_low"].min())), math.ceil(math.log10(frame["ci_high"].max())) + 1
        )
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title_text=words(frame["metric"].iloc[0]), col=1)
    high = {"text": plain(title), "y": 0.98, "yanchor": "top"}
    return figure.update_layout(title=high, template=look(), legend={"y": 1.1}, margin={"t": 110})

"""How effects of patches are drawn: maps of sites and positions, of layers and heads, of senders and receivers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import INK, effect_figure, look, plain, words

# Two directions of change from the page's own background on, so that no effect is no colour, on white and on black.
_DIVERGING = [
    [0.0, "rgba(0,114,178,1)"],
    [0.5, "rgba(0,114,178,0)"],
    [0.5, "rgba(213,94,0,0)"],
    [1.0, "rgba(213,94,0,1)"],
]
SHARE = "effect (share of the way)"  # from one run (0) to the other (1)
_MOST_WRITTEN_CELLS = 120
_CELL, _LEAST_HEIGHT = 26, 320
_EXCLUDES_ZERO, _MEASURED = "*", "·"


def patching_figure(frame: pd.DataFrame, *, title: str, by: str | None = None, loss_unit: str = "") -> go.Figure:
    """Effects of activation patching: site × position if positions differ, else layer × head, else bars."""
    if frame["pos"].nunique() > 1:
        return effect_map(frame, down="component", across="pos", title=title, by=by, of=SHARE)
    layers_by_heads = frame["head"].notna().all() and frame["component"].nunique() == len(
        frame[["layer", "head"]].drop_duplicates()
    )
    if layers_by_heads and frame["component"].nunique() > 1:
        layers, heads = ([f"{letter}{one}" for one in frame[key]] for letter, key in (("L", "layer"), ("H", "head")))
        named = frame.assign(layer=layers, head=heads)
        return effect_map(named, down="layer", across="head", title=title, by=by, of=SHARE)
    value = "effect" if frame["effect"].notna().any() else "delta"
    shown = frame if value == "delta" else frame.assign(ci_low=frame["effect_low"], ci_high=frame["effect_high"])
    figure = effect_figure(shown, value=value, title=title, by=by, loss_unit=loss_unit)
    return figure.update_yaxes(title_text=SHARE, col=1) if value == "effect" else figure


def effect_map(
    frame: pd.DataFrame, *, down: str, across: str, title: str, by: str | None = None, of: str = "effect"
) -> go.Figure:
    """``effect`` as colours, a panel per metric (and per value of ``by``); a star where its interval excludes 0.

    ``of`` names what the colours stand for.

    A small map has its numbers written in, with two decimals (one digit if less than those is clear); in a large one a
    dot says that a cell was measured. Where no row has an effect, because the two runs do not differ, ``delta`` takes
    its place.
    """
    value, low, high = ("effect", "effect_low", "effect_high")
    if frame[value].isna().all():
        value, low, high, of = ("delta", "ci_low", "ci_high", "delta")
    keys = ["metric"] if by is None else ["metric", by]
    panels = list(frame.groupby(keys, sort=False))
    names = [", ".join(words(part) for part in key) for key, _ in panels]
    figure = make_subplots(
        rows=1, cols=len(panels), subplot_titles=names if len(panels) > 1 else None, shared_yaxes=True
    )
    furthest = float(np.nanmax(np.abs(frame[value].to_numpy(dtype=float)), initial=0.0)) or 1.0
    rows_down, columns = frame[down].unique(), frame[across].unique()
    for column, (_, rows) in enumerate(panels, start=1):
        tables = [
            rows.pivot(index=down, columns=across, values=one).reindex(index=rows_down, columns=columns)
            for one in (value, low, high)
        ]
        shown, lows, highs = (table.to_numpy(dtype=float) for table in tables)
        clear = (lows > 0) | (highs < 0)
        few = shown.size <= _MOST_WRITTEN_CELLS
        figure.add_trace(
            go.Heatmap(
                x=[words(one) for one in columns],
                y=[plain(one) for one in rows_down],
                z=shown,
                customdata=np.stack([lows, highs], axis=-1),
                text=[
                    [_written(*cell, few) for cell in zip(*line, strict=True)]
                    for line in zip(shown.tolist(), clear.tolist(), strict=True)
                ],
                texttemplate="%{text}",
                textfont={"color": INK},
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                hovertemplate=f"%{{y}}, {words(across)} %{{x}}: {value} %{{z:.3g}} "
                "(%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(title_text=words(across), showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    figure.update_yaxes(title_text=words(down), col=1)
    bar = {
        "colorscale": _DIVERGING,
        "cmin": -furthest,
        "cmax": furthest,
        "colorbar": {"title": {"text": words(of), "side": "right"}},
    }
    height = max(_LEAST_HEIGHT, 160 + _CELL * len(rows_down))
    return figure.update_layout(title=plain(title), template=look(), coloraxis=bar, height=height)


def _written(number: float, clear: bool, few: bool) -> str:
    if np.isnan(number):
        return ""
    if not few:
        return _EXCLUDES_ZERO if clear else _MEASURED
    rounded = round(number, 2) + 0.0  # no −0
    if not clear:
        return f"{rounded:.2f}"
    # "0.00*" would say in one breath that there is an effect and that there is none
    shown = f"{rounded:.2f}" if rounded else f"{number + 0.0:.1g}".replace("e-0", "e-")
    return shown + _EXCLUDES_ZERO

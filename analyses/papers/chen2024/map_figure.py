"""A map over (d, s, n, σ) as a figure: one panel for each d and σ, n across, s down, the ratio in every cell."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import INK, look

# Orange to blue through the page's own background, so that it reads on white and on black.
_SHADES = [[0.0, "rgba(213,94,0,0.85)"], [0.5, "rgba(134,142,152,0.04)"], [1.0, "rgba(0,114,178,0.85)"]]
_FULL_SHADE = 1.5  # |log2 ratio| from which the shade is full


def map_figure(table: pd.DataFrame) -> go.Figure:
    """From columns d, s, n, noise, ratio, outcome ("undecided" is put in brackets)."""
    dimensions, noises = sorted(table["d"].unique()), sorted(table["noise"].unique())
    titles = [f"d = {d}, σ = {noise:g}" for d in dimensions for noise in noises]
    figure = make_subplots(
        rows=len(dimensions),
        cols=len(noises),
        subplot_titles=titles,
        horizontal_spacing=0.03,
        vertical_spacing=0.15,
    )
    for i, d in enumerate(dimensions):
        for j, noise in enumerate(noises):
            rows = table.loc[(table["d"] == d) & (table["noise"] == noise)]
            figure.add_trace(_panel(rows), row=i + 1, col=j + 1)
            figure.update_xaxes(title_text="n" if i == len(dimensions) - 1 else None, row=i + 1, col=j + 1)
            figure.update_yaxes(
                title_text="s" if j == 0 else None, showticklabels=j == 0, row=i + 1, col=j + 1, autorange="reversed"
            )
    figure.update_xaxes(type="category", showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", showgrid=False, zeroline=False)
    return figure.update_layout(template=look(), margin={"t": 60})


def _panel(rows: pd.DataFrame) -> go.Heatmap:
    ratio = rows.pivot(index="s", columns="n", values="ratio")
    undecided = rows.assign(undecided=rows["outcome"] == "undecided").pivot(index="s", columns="n", values="undecided")
    values = ratio.to_numpy(dtype=float)
    texts = [
        [f"({value:.2f})" if open_ else f"{value:.2f}" for value, open_ in zip(line, opened, strict=True)]
        for line, opened in zip(values, undecided.to_numpy(dtype=bool), strict=True)
    ]
    return go.Heatmap(
        x=[str(n) for n in ratio.columns],
        y=[str(s) for s in ratio.index],
        z=np.log2(values),
        customdata=values,
        zmin=-_FULL_SHADE,
        zmax=_FULL_SHADE,
        colorscale=_SHADES,
        showscale=False,
        xgap=2,
        ygap=2,
        text=texts,
        texttemplate="%{text}",
        textfont={"color": INK, "size": 11},
        hovertemplate="n = %{x}, s = %{y}: %{customdata:.3f}<extra></extra>",
    )

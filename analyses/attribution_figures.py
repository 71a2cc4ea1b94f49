"""How methods of attribution are drawn against each other."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analyses.figures import MUTED, component_colour, look, plain, whiskers
from tasks.errors import InputError


def scatter_of_methods(
    across: pd.DataFrame, up: pd.DataFrame, *, axes: tuple[str, str], keys: Sequence[str]
) -> go.Figure:
    """One point per component (and part) that both tables have, with both intervals.

    Raises:
        InputError: no component is in both.
    """
    shared = across[list(keys)].merge(up[list(keys)])
    if shared.empty:
        raise InputError("the two results have no component in common: attribute the same model's heads in both")
    x, y = (shared.merge(frame, on=list(keys), how="left") for frame in (across, up))
    places = [
        tuple(None if pd.isna(each) else int(each) for each in row) for row in zip(x["layer"], x["head"], strict=True)
    ]
    colours = [MUTED if layer is None else component_colour(layer, head) for layer, head in places]
    points = go.Scatter(
        x=x["attribution"].to_numpy(dtype=float),
        y=y["attribution"].to_numpy(dtype=float),
        error_x=whiskers(x, "attribution"),
        error_y=whiskers(y, "attribution"),
        text=[plain(" ".join(map(str, names))) for names in shared.itertuples(index=False)],
        mode="markers+text",
        textposition="top center",
        marker={"color": colours, "size": 9},
    )
    figure = go.Figure(points).update_xaxes(title_text=plain(axes[0])).update_yaxes(title_text=plain(axes[1]))
    return figure.update_layout(template=look(), title=f"{plain(axes[1])} against {plain(axes[0])}")

"""How well numbers per edge tell the true edges of a circuit from the others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.stats import rankdata

from analyses.circuit import Circuit, EdgeLike, places
from analyses.circuit_result import CircuitResult
from analyses.circuit_scores import scores_by_edge
from analyses.edge_attribution import EdgeAttributionResult
from analyses.figures import INK, MUTED, look, plain
from analyses.result import Result
from interp.model_adapter import HookedModel
from interp.statistics import percentile_ends, resampled_ratios
from tasks.errors import InputError


@dataclass(frozen=True, eq=False)
class EdgeRoc(Result):
    """The curve of true against false positives, as the threshold on a score falls.

    Columns: threshold (edges with at least this score are called true), n_edges (so called), true_positive_rate,
    false_positive_rate.

    Attributes:
        area: under the curve: the chance that a true edge scores above another one, ties counting half.
        area_low, area_high: its interval over prompts, for scores that were measured prompt by prompt
            (``discover_circuit``'s, not "greedy"); NaN for others.
        threshold: where true_positive_rate − false_positive_rate is largest; of several such, the highest.
    """

    area: float = np.nan
    area_low: float = np.nan
    area_high: float = np.nan
    threshold: float = np.nan

    value_column = "true_positive_rate"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "edge_roc"

    def plot(self) -> go.Figure:
        """The curve, with the threshold's point on it."""
        x, y = (self.frame[key].to_numpy(dtype=float) for key in ("false_positive_rate", "true_positive_rate"))
        at = int(np.argmax(y - x))
        figure = go.Figure()
        chance = {"color": MUTED, "width": 1, "dash": "dash"}
        figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=chance, name="chance"))
        figure.add_trace(go.Scatter(x=[0, *x], y=[0, *y], mode="lines", line={"color": INK, "width": 2}, name="edges"))
        mark = {"color": INK, "size": 10}
        name = f"score ≥ {self.threshold:.3g}"
        figure.add_trace(go.Scatter(x=[x[at]], y=[y[at]], mode="markers", marker=mark, name=name))
        figure.update_xaxes(title_text="share of other edges called true")
        figure.update_yaxes(title_text="share of true edges found")
        return figure.update_layout(title=plain(self.title), template=look())


def edge_roc(
    model: HookedModel,
    scores: CircuitResult | EdgeAttributionResult | Mapping[Any, float],
    true_edges: Circuit | Iterable[EdgeLike],
    *,
    absolute: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> EdgeRoc:
    """How well do scores tell the true edges from all others, whatever threshold one sets?

    Edges are all that there are, no sample, so that the area is exact for given scores; where these are means over
    prompts that are at hand, its interval says how far the area depends on them.

    Args:
        scores: of all edges, as for ``evaluate_circuit``.
        true_edges: those of the circuit that is known to be there.
        absolute: whether |score| ranks, rather than how far an edge is for the better.

    Raises:
        InputError: no edge is true, or every one; scores that are another model's or miss an edge.

    Source: the area as Mann and Whitney's statistic: Hanley and McNeil (1982) (from memory).

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> scores = {edge: 0.0 for edge in Circuit.full(model)} | {"embed->L0H0.v": 2.0, "L0H0->output": 1.0}
    >>> roc = edge_roc(model, scores, ["embed->L0H0.v", "L0H0->output"])
    >>> roc.area, roc.threshold
    (1.0, 1.0)
    """
    truth = true_edges if isinstance(true_edges, Circuit) else Circuit.of(model, true_edges)
    truth.check_fits(model)
    if not 0 < len(truth) < len(places(truth.anatomy)):
        raise InputError(
            f"{len(truth)} of {len(places(truth.anatomy))} edges are true: a curve needs true edges and others"
        )
    is_true = truth.mask.numpy()
    values = scores_by_edge(scores, truth.anatomy)["score"].to_numpy(dtype=float)
    frame = _curve(np.abs(values) if absolute else values, is_true)
    gain = frame["true_positive_rate"] - frame["false_positive_rate"]
    low = high = np.nan
    if isinstance(scores, CircuitResult) and scores.changes is not None and scores.counts is not None:
        counts = np.repeat(scores.counts[:, None], len(is_true), axis=1)
        resampled = resampled_ratios(scores.changes, counts, seed=seed)
        areas = area_under(np.abs(resampled) if absolute else resampled, is_true)
        low, high = percentile_ends(areas, int((scores.counts > 0).sum()), confidence=confidence)
    area = float(area_under((np.abs(values) if absolute else values)[None], is_true)[0])
    threshold = float(frame["threshold"][int(gain.to_numpy().argmax())])
    title = f"True edges told from others: area {area:.3f}, best at a score of {threshold:.3g}"
    settings = {"absolute": absolute, "n_true": len(truth), "n_edges": len(is_true), "confidence": confidence}
    settings |= {"scores": getattr(scores, "title", "given"), "seed": seed, "area": area, "area_low": float(low)}
    settings |= {"area_high": float(high), "threshold": threshold}
    notes = () if np.isfinite(low) else ("no interval: these scores carry no values prompt by prompt",)
    return EdgeRoc(frame, title, settings, notes, area, float(low), float(high), threshold)


def area_under(values: Float[ndarray, "row edge"], is_true: Bool[ndarray, "edge"]) -> Float[ndarray, "row"]:
    """The chance that a true edge's value lies above another's, ties counting half, in every row.

    >>> area_under(np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), np.array([True, False, True]))
    array([1. , 0.5])
    """
    n_true, n_other = int(is_true.sum()), int((~is_true).sum())
    ranks = rankdata(values, axis=1)[:, is_true].sum(axis=1)
    return (ranks - n_true * (n_true + 1) / 2) / (n_true * n_other)


def _curve(values: Float[ndarray, "edge"], is_true: Bool[ndarray, "edge"]) -> pd.DataFrame:
    thresholds = np.unique(values)[::-1]
    called = values[None] >= thresholds[:, None]
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "n_edges": called.sum(axis=1),
            "true_positive_rate": called[:, is_true].mean(axis=1),
            "false_positive_rate": called[:, ~is_true].mean(axis=1),
        }
    )

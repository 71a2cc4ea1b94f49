"""A number for every edge, from whatever holds some: a result, or one's own."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from analyses.circuit import Edge, as_edge, in_words, places
from analyses.edge_attribution import EdgeAttributionResult
from analyses.edges import Anatomy
from analyses.metrics import Metric, MetricLike
from analyses.result import Result
from tasks.errors import InputError


def scores_by_edge(scores: Any, anatomy: Anatomy) -> pd.DataFrame:
    """score, ci_low and ci_high of every edge there can be, in order, from a result or a number per edge.

    Above 0 is for the worse: an attribution is turned where its metric falls when things get worse.

    Raises:
        InputError: an edge that does not exist or has no score, several rows per edge, or what holds no scores.
    """
    if isinstance(scores, Result):
        if "sender" not in scores.frame or "score" not in scores.frame:
            raise InputError(f"scores is {scores.name}, which scores no edges: give attribute_edges' result")
        columns = ["sender", "receiver", "receiver_input"]
        if scores.frame.duplicated(columns).any():
            raise InputError(f"scores has several rows per edge: measure without by={scores.settings.get('by')!r}")
        table = scores.frame[[*columns, "score", "ci_low", "ci_high"]]
        if isinstance(scores, EdgeAttributionResult) and _falls(scores.settings["metric"]):
            table = table.assign(score=-table["score"], ci_low=-table["ci_high"], ci_high=-table["ci_low"])
        rows = {Edge(*row[:3]): row[3:] for row in table.to_numpy()}
    elif isinstance(scores, Mapping):
        rows = {as_edge(edge): (score, np.nan, np.nan) for edge, score in scores.items()}
    else:
        raise InputError(f"scores is {type(scores).__name__}: give a method's name, a result, or a number per edge")
    every = places(anatomy)
    for edge in rows:
        if edge not in every:
            raise InputError(f"scores has the edge {edge}, which {in_words(anatomy)} has not: they are another model's")
    if missing := [edge for edge in every if edge not in rows]:
        raise InputError(f"scores lacks {len(missing)} of the {len(every)} edges, {missing[0]} say: score them all")
    table = pd.DataFrame([rows[edge] for edge in every], columns=["score", "ci_low", "ci_high"]).astype(float)
    if not np.isfinite(table["score"]).all():
        raise InputError("scores holds NaN or infinity: an edge without a score has no rank")
    return table


def _falls(metric: str) -> bool:
    try:
        return Metric.of(cast(MetricLike, metric)).worse < 0
    except InputError:  # one's own, taken to rise
        return False

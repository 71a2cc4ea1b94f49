"""Are the true edges found? Circuits from ACDC, growth and brute force, and rankings by scores."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy import ndarray
from sklearn.metrics import roc_auc_score, roc_curve

from analyses.circuit_discovery import discover_circuit
from analyses.circuit_methods import MOST_EDGES, MOST_NODES
from analyses.oracles.limits import UNRECOVERED
from analyses.oracles.readings import edges_by, names_of_edges
from interp.constructions.known_circuit import KnownCircuit

_NO_SCORE = 1e-6
"""A score below this, in logits, is rounding: it ranks with zero."""
_LEAST_KL = 1e-6
"""An edge stays in ACDC's circuit if its loss costs so many nats."""
_FAITHFULNESS = 0.99


def recover(known: KnownCircuit) -> pd.DataFrame:
    """One row per way of looking for the true edges (or, for brute force on nodes, the components they join).

    Columns: construction, method, of ("edges" or "nodes"), n (how many there are), n_true, n_found, missed, extra,
    auroc (the area under the curve of hits against false alarms, of |score|), threshold (of a ranking the |score| with
    the most hits less false alarms, and what reaches it counts as found; of ACDC nats), verdict, why, n_circuits (how
    many equally small ones brute force found). Greedy growth is told how many edges there are.
    """
    rows = [_ranked(known, method, reference) for method, reference in _RANKINGS]
    for reference in ("zero", "counterfactual"):
        wanted = true_edges(known, reference)
        how: dict[str, Any] = {"reference": reference, "progress": False}
        result = discover_circuit(known.model, known.prompts, method="acdc", threshold=_LEAST_KL, **how)
        found = result.circuit
        row = _row(known, f"acdc, {reference}", "edges", wanted, map(str, found.edges), n=len(found.mask))
        tried = zip(names_of_edges(result.frame), result.frame["score"].astype(float), strict=True)
        rows.append(row | dict(zip(("auroc", "threshold"), (ranking(dict(tried), wanted)[0], _LEAST_KL), strict=True)))
        scores = edges_by("exact", reference)(known)
        told_apart = {edge: score if abs(score) > _NO_SCORE else 0.0 for edge, score in scores.items()}
        found = discover_circuit(
            known.model, known.prompts, method="greedy", scores=told_apart, n_edges=len(wanted), metric="logit_diff",
            **how,
        ).circuit  # fmt: skip
        rows.append(_row(known, f"greedy, {reference}", "edges", wanted, map(str, found.edges), n=len(found.mask)))
    wanted = true_edges(known, "zero")
    how = {"method": "brute_force", "faithfulness": _FAITHFULNESS, "reference": "zero", "metric": "logit_diff"}
    if len(found.mask) <= MOST_EDGES:
        all_of_them = discover_circuit(known.model, known.prompts, progress=False, **how).ties
        edges = set().union(*(set(map(str, each.edges)) for each in all_of_them))
        rows.append(_row(known, "brute force on edges, zero", "edges", wanted, edges, n=len(found.mask)))
    if len(found.components) <= MOST_NODES:
        ties = discover_circuit(known.model, known.prompts, level="nodes", progress=False, **how).ties
        smallest = min((set(each.components) & set(each.nodes) for each in ties), key=sorted)
        joined = {end.split(".")[0] if "H" in end else end for edge in wanted for end in edge.split("->")}
        row = _row(
            known, "brute force on nodes, zero", "nodes", joined & set(found.components), smallest,
            n=len(found.components),
        )  # fmt: skip
        rows.append(row | {"n_circuits": len(ties)})
    return pd.DataFrame(rows).astype({"n_circuits": "Int64"})


_RANKINGS: tuple[tuple[Literal["exact", "eap", "eap_ig_inputs"], str], ...] = (
    ("exact", "zero"),
    ("eap", "zero"),
    ("exact", "counterfactual"),
    ("eap", "counterfactual"),
    ("eap_ig_inputs", "counterfactual"),
)


def true_edges(known: KnownCircuit, reference: str) -> set[str]:
    """The wired edges; of a counterfactual only those that carry what differs there."""
    if reference == "zero":
        return set(known.true_edges)
    effects = known.effects["edges, counterfactual"]
    return {edge for edge in known.true_edges if abs(effects.get(edge, 0.0)) > 1e-5}


def _ranked(known: KnownCircuit, method: str, reference: str) -> dict[str, Any]:
    scores = edges_by(method, reference)(known)
    wanted = true_edges(known, reference)
    area, threshold = ranking(scores, wanted)
    found = {edge for edge, score in scores.items() if abs(score) >= threshold}
    name = f"{method} scores, {reference}"
    return _row(known, name, "edges", wanted, found, n=len(scores)) | {"auroc": area, "threshold": threshold}


def ranking(scores: Mapping[str, float], wanted: Collection[str]) -> tuple[float, float]:
    """The area under the ROC of |score|, and the threshold with the most hits less false alarms (the lowest such).

    >>> ranking({"a": -3.0, "b": 2.0, "c": 1.0, "d": 0.0}, {"a", "c"})
    (0.75, 3.0)
    """
    size: ndarray = np.array([abs(score) if abs(score) > _NO_SCORE else 0.0 for score in scores.values()])
    is_true = np.array([edge in wanted for edge in scores])
    false_alarms, hits, thresholds = roc_curve(is_true, size)
    best = int(np.argmax(np.round(hits - false_alarms, 12)))
    return float(roc_auc_score(is_true, size)), float(thresholds[best])


def _row(known: KnownCircuit, method: str, of: str, wanted: Collection[str], found: Any, *, n: int) -> dict[str, Any]:
    found, wanted = set(found), set(wanted)
    row: dict[str, Any] = {"construction": known.name, "method": method, "of": of, "n": n, "n_true": len(wanted)}
    row |= {"n_found": len(found), "missed": len(wanted - found), "extra": len(found - wanted)}
    why = UNRECOVERED.get((method, known.name), "")
    if found == wanted:
        verdict = "exact"
    elif known.crosstalk:
        verdict, why = "ranked", "components overlap: edges that are not wired have effects too"
    else:
        verdict = "cannot" if why else "WRONG"
    return row | {"auroc": float("nan"), "threshold": float("nan"), "verdict": verdict, "why": why, "n_circuits": None}

"""How faithful circuits of all sizes are together: the areas CPR and CMD."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from analyses.circuit import Circuit, places
from analyses.circuit_methods import edges_at
from analyses.circuit_values import CircuitValues, faithfulness_of, is_apart
from analyses.edges import Anatomy
from interp.statistics import percentile_ends, resampled_ratios

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all edges, how many are kept."""


def area_rows(
    values: CircuitValues, scores: Float[ndarray, "edge"], anatomy: Anatomy, *, confidence: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the two areas, and of the two curves they lie under.

    CPR = ∫ f(k) dk and CMD = ∫ |1 − f(k)| dk over the share k of edges kept, by the trapezoid rule from 0.001 to 1,
    where f is the faithfulness of the circuit of the int(k n) edges with the largest score (CPR) or |score| (CMD), less
    those on no path from an embedding to the output.

    Source: Mueller et al. (2025), MIB: A Mechanistic Interpretability Benchmark; shares, trapezoids, signs and the
    dropping of dead ends as in its code [code]. Its edges start at one input, ours at embed and pos_embed.
    """
    areas, curves = [], []
    for measure, ranking, area in (("CPR", scores, _under), ("CMD", np.abs(scores), _from_one)):
        order = np.argsort(-ranking, kind="stable")
        circuits = [_largest(order[: int(share * len(order))], anatomy) for share in SHARES]
        sums = values(torch.stack([circuit.mask for circuit in circuits]))[:, :, 0]
        model, empty, counts = values.model[:, :1], values.empty[:, :1], values.counts[:, :1]
        found = faithfulness_of(sums[:, :, None], model, empty, counts, confidence=confidence, seed=seed)
        about = {"reference": values.reference, "metric": values.metric.name, "measure": measure}
        n_prompts = int((counts > 0).sum())
        for place, (share, circuit) in enumerate(zip(SHARES, circuits, strict=True)):
            row: dict[str, Any] = about | {"share": share, "n_edges": int(share * len(order))}
            row |= {"n_connected": len(circuit), "faithfulness": found.estimate[place, 0]}
            row |= {"ci_low": found.low[place, 0], "ci_high": found.high[place, 0], "n_prompts": n_prompts}
            curves.append(row)
        columns = np.concatenate([sums.T, model, empty], axis=1)
        ends = [np.full(3, np.nan)]
        if is_apart(model - empty, counts, confidence=confidence, seed=seed)[0]:
            resampled = area(_recovered(resampled_ratios(columns, np.tile(counts, (1, columns.shape[1])), seed=seed)))
            whole = area(_recovered(columns.sum(axis=0, keepdims=True) / counts.sum()))
            ends = [np.concatenate([whole, percentile_ends(resampled, n_prompts, confidence=confidence)])]
        value, low, high = ends[0]
        areas.append(about | {"value": value, "ci_low": low, "ci_high": high, "n_prompts": n_prompts})
    return areas, curves


def _largest(chosen: Sequence[int] | ndarray, anatomy: Anatomy) -> Circuit:
    mask = torch.zeros(len(places(anatomy)), dtype=torch.bool)
    mask[torch.as_tensor(np.asarray(chosen, dtype=int))] = True
    return Circuit(edges_at(anatomy, mask), anatomy).connected()


Area = Callable[[Float[ndarray, "resample point"]], Float[ndarray, "resample"]]


def _under(recovered: Float[ndarray, "resample point"]) -> Float[ndarray, "resample"]:
    return np.trapezoid(recovered, SHARES, axis=1)


def _from_one(recovered: Float[ndarray, "resample point"]) -> Float[ndarray, "resample"]:
    return np.trapezoid(np.abs(1 - recovered), SHARES, axis=1)


def _recovered(values: Float[ndarray, "resample column"]) -> Float[ndarray, "resample point"]:
    """f at every point; the last two columns are the metric of the model and of the reference."""
    points, model, empty = values[:, :-2], values[:, -2:-1], values[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (points - empty) / (model - empty)
    found[~np.isfinite(found)] = np.nan  # a resample that does not tell the two apart
    return found

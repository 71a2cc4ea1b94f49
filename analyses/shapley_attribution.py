"""Shapley values of heads: each one's mean effect over all orders in which the heads can be taken away."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from analyses.contributions import Contributions
from analyses.metrics import Group, Metric
from analyses.references import EditOfRows
from analyses.shapley import (
    MOST_EXACT_PLAYERS,
    contributions_in_orders,
    drawn_orders,
    shapley_values,
    subsets_of_orders,
)
from analyses.sweep import sweep
from interp.model_adapter import HookedModel
from interp.sites import Site
from tasks.prompts import Prompts

_SUBSETS_AT_ONCE = 500  # each sweep keeps 2,000 resamples of every subset: 8 MB


def shapley_contributions(
    model: HookedModel,
    prompts: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edits: Mapping[Site, EditOfRows],
    *,
    n_permutations: int | None,
    confidence: float,
    seed: int,
    batch_size: int,
) -> Contributions:
    """Heads are players; the value of a set of them is the metric's change when that set is ablated.

    Over ``n_permutations`` drawn orders, or over all subsets if it is None.
    """
    players = list(edits)
    components = [(str(site), site.layer, site.head) for site in players]

    def values_of(subsets: Sequence[int]) -> tuple[Float[ndarray, "subset prompt part"], Float[ndarray, "prompt part"]]:
        """The change that ablating each subset makes, and how many positions count."""
        plans = [
            {site: edits[site] for k, site in enumerate(players) if subset >> k & 1} for subset in subsets if subset
        ]
        changes: list[ndarray] = []
        counts = np.empty(0)
        for start in range(0, len(plans), _SUBSETS_AT_ONCE):
            outcome = sweep(
                model, prompts, plans[start : start + _SUBSETS_AT_ONCE], [metric], parts,
                batch_size=batch_size, confidence=confidence, seed=seed,
            )  # fmt: skip
            changes += outcome.differences
            counts = outcome.counts
        return np.stack([np.zeros_like(changes[0]), *changes]), counts

    if n_permutations is None:
        values, counts = values_of(range(1 << len(players)))
        return Contributions(components, shapley_values(values).swapaxes(0, 1), counts)
    orders = drawn_orders(len(players), n_permutations, seed)
    subsets = subsets_of_orders(orders)
    values, counts = values_of(subsets)
    added = contributions_in_orders(values, subsets, orders)  # [permutation, player, prompt, part]
    with np.errstate(invalid="ignore"):
        per_order = added.sum(axis=2) / counts.sum(axis=0)
    error = per_order.std(axis=0, ddof=1) / np.sqrt(len(orders))
    half_width = float(stats.t.ppf((1 + confidence) / 2, len(orders) - 1)) * error
    return Contributions(components, added.mean(axis=0).swapaxes(0, 1), counts, half_width)


def default_permutations(n_players: int) -> int | None:
    """How many permutations are drawn if nobody says how many; None where all subsets are measured instead."""
    return 200 if n_players > MOST_EXACT_PLAYERS else None

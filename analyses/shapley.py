"""Shapley values: how a total is shared among players, by their mean contribution over all orders of arrival."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

MOST_EXACT_PLAYERS = 12
"""4,096 subsets; above it permutations are drawn."""


def shapley_values(values: Float[ndarray, "subset *rest"]) -> Float[ndarray, "player *rest"]:
    """Each player's share of the whole, from the value of every subset.

    φ_i = Σ_{S ∌ i} |S|! (n − |S| − 1)! / n! · (v(S ∪ {i}) − v(S)). ``values[S]`` is the value of the subset that
    holds player i where bit i of S is 1, so that there are 2^n of them.

    Efficiency: Σ_i φ_i = v(all) − v(none). Symmetry: players that add the same to every subset get the same.
    Dummy: a player that adds nothing to any gets nothing.

    Source: Shapley (1953), A Value for n-Person Games [mem].

    >>> shapley_values(np.array([0.0, 1.0, 2.0, 6.0]))  # alone 1 and 2, together 6: the 3 more are shared
    array([2.5, 3.5])
    """
    n = int(values.shape[0]).bit_length() - 1
    subsets = np.arange(1 << n)
    size = np.array([int(subset).bit_count() for subset in subsets])
    weight_of_size = np.array(
        [math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n) for k in range(n)], dtype=float
    )
    shares = []
    for player in range(n):
        without = subsets[(subsets >> player) & 1 == 0]
        added = values[without | (1 << player)] - values[without]
        shares.append(np.tensordot(weight_of_size[size[without]], added, axes=1))
    return np.stack(shares)


def drawn_orders(n_players: int, n_permutations: int, seed: int) -> Int[ndarray, "permutation player"]:
    """Orders of arrival, drawn uniformly and independently."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n_players) for _ in range(n_permutations)])


def subsets_of_orders(orders: Int[ndarray, "permutation player"]) -> list[int]:
    """Every subset that the orders pass through, the empty one first, each once, as bits."""
    met = {0: None}
    for order in orders:
        subset = 0
        for player in order.tolist():
            subset |= 1 << player
            met[subset] = None
    return list(met)


def contributions_in_orders(
    values: Float[ndarray, "subset *rest"], subsets: Sequence[int], orders: Int[ndarray, "permutation player"]
) -> Float[ndarray, "permutation player *rest"]:
    """What each player adds when it arrives; the mean over orders estimates the Shapley value without bias.

    ``values[k]`` is the value of ``subsets[k]``. In every order the contributions sum to v(all) − v(none), so the
    efficiency holds exactly for any number of orders.

    Source: Castro, Gómez and Tejada (2009), Polynomial calculation of the Shapley value based on sampling [mem].
    """
    place = {subset: k for k, subset in enumerate(subsets)}
    added = np.empty((*orders.shape, *values.shape[1:]))
    for row, order in enumerate(orders):
        subset = 0
        for player in order.tolist():
            grown = subset | (1 << player)
            added[row, player] = values[place[grown]] - values[place[subset]]
            subset = grown
    return added

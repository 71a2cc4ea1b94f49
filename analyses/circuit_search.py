"""The ways to look for a circuit: edge by edge from the output, by scores, or through all that there are."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.edges import Edges

Sums = Callable[[Bool[Tensor, "circuit edge"]], Float[ndarray, "circuit prompt"]]
"""The metric's sums of circuits, prompt by prompt."""
_AT_ONCE = 256  # subsets measured together


class Pruned(NamedTuple):
    """What ACDC leaves, and what it saw on its way."""

    mask: Bool[Tensor, "edge"]
    changes: Float[ndarray, "prompt edge"]
    """The metric's sums without the edge minus those with it, at the time; 0 where none was made."""
    step: Int[ndarray, "edge"]
    """When each edge was tried, from 1 on; 0 for those that led nowhere by then."""


def prune(
    edges: Edges,
    within: Bool[Tensor, "edge"],
    sums: Sums,
    is_harmless: Callable[[Float[ndarray, "prompt"]], bool],
    tried: Callable[[int], None],
) -> Pruned:
    """Go through the edges from the output down, and take away each whose loss does no harm beside those gone already.

    The order: receivers from the output to the first layer, and for each its senders from the last to the first. Edges
    into what no longer leads to the output go without a trial.
    """
    mask = within.clone()
    (now,) = sums(mask[None])
    changes, step = np.zeros((len(now), len(within))), np.zeros(len(within), dtype=int)
    leading = {edges.receivers[-1].name}
    for n, place in enumerate(_from_the_output(edges, within), start=1):
        tried(n)
        s, r = edges.pairs[place]
        candidate = mask.clone()
        candidate[place] = False
        if edges.receivers[r].name not in leading:  # all that it could lead to has been decided on by now
            mask = candidate
            continue
        (without,) = sums(candidate[None])
        changes[:, place], step[place] = without - now, n
        if is_harmless(without - now):
            mask, now = candidate, without
        else:
            leading.add(edges.senders[s].name)
    return Pruned(mask, changes, step)


def leading_to_output(edges: Edges, places: Iterable[int]) -> set[str]:
    """The names of the components from which edges at these places lead to the output, itself included."""
    found = {edges.receivers[-1].name}
    for place in sorted(places, reverse=True):  # senders vary slowest, so what one feeds has been seen before it
        s, r = edges.pairs[place]
        if edges.receivers[r].name in found:
            found.add(edges.senders[s].name)
    return found


def grown(edges: Edges, values: Float[ndarray, "edge"], within: Bool[Tensor, "edge"]) -> list[int]:
    """The places of all edges, in the order in which a circuit grows from the output by the largest value at hand.

    At hand are the edges into the output, and into every component from which an edge has been taken.
    """
    into: dict[str, list[int]] = {}
    for place, (_, r) in enumerate(edges.pairs):
        if within[place]:
            into.setdefault(edges.receivers[r].name, []).append(place)
    at_hand = [(-float(values[place]), place) for place in into.pop(edges.receivers[-1].name, [])]
    heapq.heapify(at_hand)
    order = []
    while at_hand:
        _, place = heapq.heappop(at_hand)
        order.append(place)
        for more in into.pop(edges.senders[edges.pairs[place][0]].name, []):
            heapq.heappush(at_hand, (-float(values[more]), more))
    return order


def first_that(
    masks: Sequence[Bool[Tensor, "edge"]],
    sums: Sums,
    holds: Callable[[Float[ndarray, "circuit prompt"]], Bool[ndarray, "circuit"]],
    tried: Callable[[int], None],
) -> int | None:
    """The place of the first of these circuits for which something holds."""
    for start in range(0, len(masks), _AT_ONCE // 16):
        some = masks[start : start + _AT_ONCE // 16]
        found = holds(sums(torch.stack(list(some))))
        tried(start + len(some))
        if found.any():
            return start + int(found.argmax())
    return None


def smallest(
    edges: Edges,
    groups: Sequence[Sequence[int]],
    within: Bool[Tensor, "edge"],
    sums: Sums,
    holds: Callable[[Float[ndarray, "circuit prompt"]], Bool[ndarray, "circuit"]],
    tried: Callable[[int], None],
) -> list[Bool[Tensor, "edge"]]:
    """All circuits of the fewest groups of places for which something holds.

    A circuit keeps what of ``within`` lies in no group. Where groups are single edges, circuits with one that leads
    nowhere are passed over, since without it they do the same.
    """
    n_tried = 0
    grouped = {place for group in groups for place in group}
    fixed = [place for place in within.nonzero()[:, 0].tolist() if place not in grouped]
    for size in range(len(groups) + 1):
        found = []
        for some in _chunks(_of_size(edges, groups, fixed, size)):
            masks = torch.zeros(len(some), len(within), dtype=torch.bool)
            for mask, places in zip(masks, some, strict=True):
                mask[places] = True
            meets = holds(sums(masks))
            found += [mask for mask, met in zip(masks, meets, strict=True) if met]
            n_tried += len(some)
            tried(n_tried)
        if found:
            return found
    return []


def _of_size(edges: Edges, groups: Sequence[Sequence[int]], fixed: Sequence[int], size: int) -> Iterator[list[int]]:
    singles = all(len(group) == 1 for group in groups)
    for chosen in combinations(groups, size):
        places = [*fixed, *(place for group in chosen for place in group)]
        if singles:
            leading = leading_to_output(edges, places)
            if not all(edges.receivers[edges.pairs[place][1]].name in leading for (place,) in chosen):
                continue
        yield places


def _chunks(each: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    some: list[list[int]] = []
    for places in each:
        some.append(places)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _from_the_output(edges: Edges, within: Bool[Tensor, "edge"]) -> list[int]:
    places = [place for place in range(len(edges.pairs)) if within[place]]
    return sorted(places, key=lambda place: (edges.pairs[place][1], edges.pairs[place][0]), reverse=True)

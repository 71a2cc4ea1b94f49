"""Is a circuit all that matters, and does all of it matter? What taking components away does to it and to the model."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from analyses.circuit import Circuit
from analyses.circuit_values import CircuitValues
from interp.statistics import ratio_interval

Nodes = tuple[str, ...]
_MOST_GREEDY = 10


def completeness_rows(
    name: str, circuit: Circuit, full: Circuit, values: CircuitValues, *, n_random: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Circuit and model without the same components K of the circuit: the more alike, the more complete the circuit.

    K is nothing, ``n_random`` random subsets (all, where there are no more), and the set that grows by the component
    that makes the two differ most. That one is chosen on the first half of the prompts and measured on the second.
    """
    nodes = _own_nodes(circuit)
    sets: list[tuple[str, Nodes]] = [("nothing", ())]
    sets += [("random", some) for some in random_subsets(nodes, n_random, seed)]
    half = len(values.prompts) // 2
    first, second = slice(0, half), slice(half, None)
    memory: dict[Nodes, Float[ndarray, "2 prompt"]] = {}

    def without(chosen: Sequence[Nodes]) -> list[Float[ndarray, "2 prompt"]]:
        """The sums of model and circuit without these components."""
        new = [some for some in dict.fromkeys(chosen) if some not in memory]
        if new:
            masks = [one.without(some).mask for some in new for one in (full, circuit)]
            sums = values(torch.stack(masks))[:, :, 0]
            memory.update({some: sums[2 * k : 2 * k + 2] for k, some in enumerate(new)})
        return [memory[some] for some in chosen]

    def apart(some: Float[ndarray, "2 prompt"]) -> float:
        return abs(float((some[1] - some[0])[first].sum()))

    sets.append(("greedy", _most_apart(nodes, without, apart)))
    rows = []
    for (how, some), sums in zip(sets, without([some for _, some in sets]), strict=True):
        of = second if how == "greedy" else slice(None)
        row: dict[str, Any] = {"circuit": name, "reference": values.reference, "metric": values.metric.name}
        row |= {"chosen": how, "without": " ".join(some)}
        rows.append(row | _compared(sums[0][of], sums[1][of], values.counts[of, 0], _PAIR, confidence, seed))
    return rows


def minimality_rows(
    name: str,
    circuit: Circuit,
    values: CircuitValues,
    *,
    by_edges: bool,
    n_random: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """What leaving out each component (or edge) of the circuit changes: where nothing, it does not belong.

    Some components matter only where others are missing, so each is left out beside several sets of others: none, and
    random ones. The set beside which it changes most is chosen on the first half of the prompts and measured on the
    second. Edges are left out alone, and measured on all prompts.
    """
    if by_edges:
        trials = {str(edge): [((), circuit, circuit - Circuit((edge,), circuit.anatomy))] for edge in circuit}
    else:
        nodes = _own_nodes(circuit)
        others = [(), *random_subsets(nodes, n_random, seed)]
        trials = {
            node: [
                (some, circuit.without(some), circuit.without({*some, node}))
                for some in dict.fromkeys(tuple(one for one in each if one != node) for each in others)
            ]
            for node in nodes
        }
    half = len(values.prompts) // 2
    rows = []
    for part, tried in trials.items():
        sums = values(torch.stack([one.mask for _, *both in tried for one in both]))[:, :, 0]
        changes = np.abs((sums[1::2] - sums[::2])[:, :half].sum(axis=1))
        best = int(changes.argmax())
        of = slice(None) if by_edges else slice(half, None)
        row: dict[str, Any] = {"circuit": name, "reference": values.reference, "metric": values.metric.name}
        row |= {"part": part, "beside": " ".join(tried[best][0])}
        both = sums[2 * best][of], sums[2 * best + 1][of]
        rows.append(row | _compared(*both, values.counts[of, 0], _CHANGE, confidence, seed))
    return rows


def random_subsets(nodes: Nodes, n: int, seed: int) -> list[Nodes]:
    """Up to n different subsets with something in them, each component with probability 1/2; all, if they are few.

    >>> random_subsets(("a", "b"), 5, seed=0)
    [('a',), ('b',), ('a', 'b')]
    """
    if 2 ** len(nodes) - 1 <= n:
        return [some for size in range(1, len(nodes) + 1) for some in combinations(nodes, size)]
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        drawn = rng.random(len(nodes)) < 0.5
        found[tuple(node for node, taken in zip(nodes, drawn, strict=True) if taken)] = None
        found.pop((), None)
    return list(found)


_PAIR = ("model_without", "circuit_without", "difference")
_CHANGE = ("value", "without", "change")


def _own_nodes(circuit: Circuit) -> Nodes:
    return tuple(node for node in circuit.components if node in circuit.nodes)


def _most_apart(
    nodes: Nodes,
    without: Callable[[Sequence[Nodes]], list[Float[ndarray, "2 prompt"]]],
    apart: Callable[[Float[ndarray, "2 prompt"]], float],
) -> Nodes:
    """The most apart of the sets that grow by one component at a time."""
    grown: Nodes = ()
    best, furthest = grown, apart(without([grown])[0])
    for _ in range(min(len(nodes), _MOST_GREEDY)):
        larger = [tuple(node for node in nodes if node in {*grown, one}) for one in nodes if one not in grown]
        distances = [apart(sums) for sums in without(larger)]
        grown = larger[int(np.argmax(distances))]
        if max(distances) > furthest:
            best, furthest = grown, max(distances)
    return best


def _compared(
    before: Float[ndarray, "prompt"],
    after: Float[ndarray, "prompt"],
    counts: Float[ndarray, "prompt"],
    names: tuple[str, str, str],
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Two values of the metric and their difference with its paired interval."""
    found = ratio_interval((after - before)[:, None], counts[:, None], confidence=confidence, seed=seed)
    with np.errstate(invalid="ignore"):
        row = {name: float(sums.sum() / counts.sum()) for name, sums in zip(names, (before, after), strict=False)}
    row |= {names[2]: float(found.estimate[0]), "ci_low": float(found.low[0]), "ci_high": float(found.high[0])}
    return row | {"n_prompts": int((counts > 0).sum())}

"""ACDC, growing by scores, and brute force: each from what a circuit's metric is to the edges it keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from analyses.circuit import Circuit, Edge, places
from analyses.circuit_search import first_that, grown, prune, smallest
from analyses.circuit_values import CircuitValues, is_apart
from analyses.edges import Anatomy, edges_in
from interp.progress import counted_progress
from interp.statistics import Interval, ratio_interval
from tasks.errors import InputError

MOST_EDGES, MOST_NODES = 16, 12
"""What brute force tries all subsets of: 65,536 and 4,096."""
_COLUMNS_AT_ONCE = 2000


@dataclass(frozen=True, eq=False)
class SearchTask:
    """What every method works on."""

    values: CircuitValues
    within: Circuit
    confidence: float
    seed: int
    progress: bool

    @property
    def anatomy(self) -> Anatomy:
        return self.within.anatomy

    def sums(self, masks: Bool[Tensor, "circuit edge"]) -> Float[ndarray, "circuit prompt"]:
        """The metric's sums of circuits."""
        return self.values(masks)[:, :, 0]

    def worse(self, changes: Float[ndarray, "prompt *edge"]) -> Float[ndarray, "*edge"]:
        """How much worse changes of the metric's sums make it."""
        return np.asarray(self.values.metric.worse * changes.sum(axis=0) / self.values.counts.sum())

    def faithful(self, circuits: Float[ndarray, "circuit prompt"]) -> Float[ndarray, "circuit"]:
        """f of circuits, by their sums."""
        model, empty = self.values.model[:, 0].sum(), self.values.empty[:, 0].sum()
        return (circuits.sum(axis=1) - empty) / (model - empty)

    def check_way(self) -> None:
        """Raise InputError if the metric does not tell model and reference apart."""
        way = self.values.model - self.values.empty
        if not is_apart(way, self.values.counts, confidence=self.confidence, seed=self.seed)[0]:
            model, empty = (float(self.values.means(sums)[0]) for sums in (self.values.model, self.values.empty))
            raise InputError(
                f"{self.values.metric.name} is {model:.4g} for the model and {empty:.4g} for the reference, and the "
                "interval of their difference includes 0: there is nothing to be faithful to, so give more prompts or "
                "another metric or reference"
            )


@dataclass(frozen=True, eq=False)
class Found:
    """What a method brings back."""

    masks: Sequence[Bool[Tensor, "edge"]]
    step: Sequence[int]
    """Per edge, from 1 on; 0 where there was none."""
    scores: Interval
    changes: Float[ndarray, "prompt edge"] | None = None
    notes: tuple[str, ...] = ()


def by_acdc(task: SearchTask, threshold: float) -> Found:
    """Take away, from the output down, every edge whose loss makes the metric worse by less than the threshold."""

    def is_harmless(change: Float[ndarray, "prompt"]) -> bool:
        return bool(task.worse(change) < threshold)

    with counted_progress("edges", len(task.within), task.progress) as tried:
        pruned = prune(edges_in(task.anatomy), task.within.mask, task.sums, is_harmless, tried)
    changes = task.values.metric.worse * pruned.changes + 0.0
    notes = []
    idle = Circuit(edges_at(task.anatomy, pruned.mask), task.anatomy)
    if dangling := len(idle) - len(idle.connected()):
        notes.append(
            f"{dangling} of the {len(idle)} edges kept lie on no path from an embedding to the output by now: each "
            "mattered when it was tried, what feeds it went later (circuit.connected() leaves them out)"
        )
    return Found([pruned.mask], pruned.step.tolist(), _interval(changes, task), changes, tuple(notes))


def by_scores(task: SearchTask, ranked: pd.DataFrame, n_edges: int | None, target: float | None) -> Found:
    """Grow from the output by the largest |score|, to so many edges or until as faithful as the target.

    Raises:
        InputError: fewer edges lead to the output, or no circuit on the way is as faithful.
    """
    edges, within = edges_in(task.anatomy), task.within.mask
    order = grown(edges, np.abs(ranked["score"].to_numpy(dtype=float)), within)
    if n_edges is not None:
        if n_edges > len(order):
            raise InputError(f"n_edges = {n_edges}: there are {len(order)} edges that lead to the output")
        n = n_edges
    else:
        assert target is not None
        prefixes = [_mask(order[:k], len(within)) for k in range(len(order) + 1)]
        with counted_progress("circuits", len(prefixes), task.progress) as tried:
            found = first_that(prefixes, task.sums, _as_faithful(task, target), tried)
        if found is None:
            raise InputError(f"no circuit on the way to all {len(order)} edges within has faithfulness {target}")
        n = found
    step = np.zeros(len(within), dtype=int)
    step[order[:n]] = np.arange(1, n + 1)
    columns = (ranked[key].to_numpy(dtype=float) for key in ("score", "ci_low", "ci_high"))
    return Found([_mask(order[:n], len(within))], step.tolist(), Interval(*columns))


def by_brute_force(task: SearchTask, level: str, target: float) -> Found:
    """Try all subsets of edges, or of components, and keep the smallest that are as faithful as the target.

    Raises:
        InputError: there are too many to try, or none is as faithful.
    """
    edges, within = edges_in(task.anatomy), task.within.mask
    if level == "edges":
        if len(task.within) > MOST_EDGES:
            raise InputError(
                f"method = 'brute_force' tries all subsets of at most {MOST_EDGES} edges, these are {len(task.within)}"
                ": give within= a circuit that another method found, or level = 'nodes'"
            )
        wanted = [[place] for place in within.nonzero()[:, 0].tolist()]
        masks = _smallest(task, wanted, target)
    else:
        names = [name for name in task.within.components if name in task.within.nodes]
        if len(names) > MOST_NODES:
            raise InputError(
                f"level = 'nodes' tries all subsets of at most {MOST_NODES} heads and MLPs, these are {len(names)}: "
                "give within= a smaller circuit"
            )
        masks = _smallest_by_nodes(task, names, target)
    if not masks:
        raise InputError(f"no circuit within the {len(task.within)} edges has faithfulness {target}: ask for less")
    distance = np.abs(1 - task.faithful(task.sums(torch.stack(masks))))
    masks = [masks[place] for place in np.argsort(distance, kind="stable")]
    some = within.nonzero()[:, 0].tolist()
    both = [masks[0].clone() for _ in range(2 * len(some))]
    for k, place in enumerate(some):
        both[2 * k][place], both[2 * k + 1][place] = True, False
    sums = task.sums(torch.stack(both))
    changes = np.zeros((sums.shape[1], len(edges.pairs)))
    changes[:, some] = task.values.metric.worse * (sums[1::2] - sums[::2]).T + 0.0
    notes = ()
    if len(masks) > 1:
        notes = (
            f"{len(masks)} circuits are equally small and as faithful as asked: see .ties, the first is nearest 1",
        )
    return Found(masks, [0] * len(edges.pairs), _interval(changes, task), changes, notes)


def _smallest(task: SearchTask, wanted: Sequence[Sequence[int]], target: float) -> list[Bool[Tensor, "edge"]]:
    with counted_progress("subsets", 2 ** len(wanted), task.progress) as tried:
        return smallest(edges_in(task.anatomy), wanted, task.within.mask, task.sums, _as_faithful(task, target), tried)


def _smallest_by_nodes(task: SearchTask, names: Sequence[str], target: float) -> list[Bool[Tensor, "edge"]]:
    """An edge between two components is there where both are, so subsets are of components."""
    holds = _as_faithful(task, target)
    with counted_progress("subsets", 2 ** len(names), task.progress) as tried:
        n_tried = 0
        for size in range(len(names) + 1):
            masks = torch.stack([task.within.without(set(names) - {*kept}).mask for kept in combinations(names, size)])
            meets = holds(task.sums(masks))
            n_tried += len(masks)
            tried(n_tried)
            if meets.any():
                return [mask for mask, met in zip(masks, meets, strict=True) if met]
    return []


def _as_faithful(
    task: SearchTask, target: float
) -> Callable[[Float[ndarray, "circuit prompt"]], Bool[ndarray, "circuit"]]:
    return lambda sums: np.abs(1 - task.faithful(sums)) <= 1 - target


def _interval(changes: Float[ndarray, "prompt edge"], task: SearchTask) -> Interval:
    """Means of changes over scored positions, the same resamples for every edge."""
    found = []
    for start in range(0, changes.shape[1], _COLUMNS_AT_ONCE):
        some = changes[:, start : start + _COLUMNS_AT_ONCE]
        counts = np.repeat(task.values.counts, some.shape[1], axis=1)
        found.append(ratio_interval(some, counts, confidence=task.confidence, seed=task.seed))
    return Interval(*(np.concatenate(each) for each in zip(*((o.estimate, o.low, o.high) for o in found), strict=True)))


def edges_at(anatomy: Anatomy, mask: Bool[Tensor, "edge"]) -> tuple[Edge, ...]:
    """The edges that a mask keeps."""
    return tuple(edge for edge, kept in zip(places(anatomy), mask.tolist(), strict=True) if kept)


def _mask(chosen: Sequence[int], n: int) -> Bool[Tensor, "edge"]:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask

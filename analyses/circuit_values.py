"""What a metric says of circuits, prompt by prompt, and how faithful that makes them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from analyses.batches import batches
from analyses.circuit_runs import CircuitRuns, References
from analyses.edge_attribution import EdgeReference
from analyses.metrics import Group, Metric
from analyses.paired_runs import share_interval
from analyses.sweep import measured
from interp.model_adapter import HookedModel, outputs
from interp.statistics import Interval, ratio_interval
from tasks.prompts import Prompts
from tasks.protocol import Task

_AT_ONCE = 64  # circuits whose outputs are held together


class CircuitValues:
    """A metric on circuits: sums over scored positions of each prompt and part, whose ratio to ``counts`` is the value.

    Attributes:
        counts: scored positions, [prompt, part].
        model: the whole model's sums, [prompt, part].
    """

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        counterfactual: Prompts | Task | None,
        metric: Metric,
        parts: Sequence[Group],
        *,
        reference: EdgeReference = "counterfactual",
        seed: int = 0,
        batch_size: int = 512,
    ):
        self.prompts, self.metric, self.parts, self.batch_size = prompts, metric, parts, batch_size
        self.reference = reference
        self.runs = CircuitRuns(model)
        self.references = References(self.runs, prompts, counterfactual, reference, seed=seed, batch_size=batch_size)
        self.clean: list[Tensor] = []
        sums, counts = [], []
        with torch.no_grad():
            for rows in batches(prompts, batch_size):
                out = outputs(model, prompts.inputs[rows])
                of_batch = measured([metric], self._parts(rows), out, prompts[rows], out)
                self.clean.append(out)
                sums.append(of_batch[0])
                counts.append(of_batch[1])
        self.model, self.counts = np.concatenate(sums), np.concatenate(counts)

    def __call__(self, masks: Bool[Tensor, "circuit edge"]) -> Float[ndarray, "circuit prompt part"]:
        """The metric's sums of every circuit."""
        found = np.zeros((len(masks), *self.model.shape))
        masks = masks.to(self.runs.W_O.device)
        with torch.no_grad():
            for clean, rows in zip(self.clean, batches(self.prompts, self.batch_size), strict=True):
                batch, parts, reference = self.prompts[rows], self._parts(rows), self.references(rows)
                for start in range(0, len(masks), _AT_ONCE):
                    some = slice(start, start + _AT_ONCE)
                    for place, out in enumerate(self.runs.outputs(batch.inputs, masks[some], reference), start):
                        found[place, rows] = measured([self.metric], parts, out, batch, clean)[0]
        return found

    def means(self, sums: Float[ndarray, "*circuit prompt part"]) -> Float[ndarray, "*circuit part"]:
        """The metric of circuits, from their sums."""
        with np.errstate(invalid="ignore"):
            return sums.sum(axis=-2) / self.counts.sum(axis=0)

    @cached_property
    def empty(self) -> Float[ndarray, "prompt part"]:
        """The sums of the circuit without edges: the reference's run."""
        return self(torch.zeros(1, len(self.runs.edges.pairs), dtype=torch.bool))[0]

    def _parts(self, rows: slice) -> list[Group]:
        return [Group(part.value, None if part.mask is None else part.mask[rows]) for part in self.parts]


def faithfulness_of(
    circuits: Float[ndarray, "circuit prompt part"],
    model: Float[ndarray, "prompt part"],
    empty: Float[ndarray, "prompt part"],
    counts: Float[ndarray, "prompt part"],
    *,
    confidence: float,
    seed: int,
) -> Interval:
    """(circuit − empty) / (model − empty), each the metric's value: the share of the way that a circuit recovers.

    Intervals come from the same resamples of prompts above and below. NaN where the interval of what stands below
    includes 0: there is nothing to have recovered a share of.
    """
    n = len(circuits)
    way = model - empty
    gained = np.moveaxis(circuits - empty, 0, 1)
    flat = gained.reshape(len(gained), -1)
    found = share_interval(flat, np.tile(way, (1, n)), np.tile(counts, (1, n)), confidence, seed)
    apart = is_apart(way, counts, confidence=confidence, seed=seed)
    kept = np.tile(apart, n)
    ends = (np.where(kept, part, np.nan).reshape(n, -1) for part in (found.estimate, found.low, found.high))
    return Interval(*ends)


def is_apart(
    differences: Float[ndarray, "prompt part"], counts: Float[ndarray, "prompt part"], *, confidence: float, seed: int
) -> Bool[ndarray, "part"]:
    """Whether the interval of a difference excludes 0."""
    between = ratio_interval(differences, counts, confidence=confidence, seed=seed)
    return (between.low > 0) | (between.high < 0)


def faithfulness_rows(
    values: CircuitValues,
    circuits: Mapping[Any, Bool[Tensor, "edge"]],
    *,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """A row per circuit and part: what the metric is for it, for the model and for the reference, and the share."""
    sums, empty = values(torch.stack(list(circuits.values()))), values.empty
    found = faithfulness_of(sums, values.model, empty, values.counts, confidence=confidence, seed=seed)
    of_model, of_empty, of_circuits = (values.means(each) for each in (values.model, empty, sums))
    n_prompts = (values.counts > 0).sum(axis=0)
    rows = []
    for place, (name, mask) in enumerate(circuits.items()):
        for j, part in enumerate(values.parts):
            row: dict[str, Any] = {"circuit": name, "n_edges": int(mask.sum()), "reference": values.reference}
            row |= {"metric": values.metric.name, "part": part.value, "model": of_model[j], "empty": of_empty[j]}
            row |= {"value": of_circuits[place, j], "faithfulness": found.estimate[place, j]}
            row |= {"ci_low": found.low[place, j], "ci_high": found.high[place, j], "n_prompts": int(n_prompts[j])}
            rows.append(row)
    return rows

"""Which edges does a model need for a task? Circuits found edge by edge, from scores, or by trying all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pandas as pd

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.circuit import Circuit, places
from analyses.circuit_methods import Found, SearchTask, by_acdc, by_brute_force, by_scores, edges_at
from analyses.circuit_result import CircuitResult
from analyses.circuit_scores import scores_by_edge
from analyses.circuit_values import CircuitValues, faithfulness_rows
from analyses.edge_attribution import EdgeAttributionResult, EdgeMethod, EdgeReference, attribute_edges
from analyses.metrics import Metric, MetricLike, groups
from interp.model_adapter import HookedModel, refuse_other
from tasks.errors import InputError
from tasks.field_checks import check_whole
from tasks.prompts import Prompts
from tasks.protocol import Task

DiscoveryMethod = Literal["acdc", "greedy", "brute_force"]
Level = Literal["edges", "nodes"]


def discover_circuit(
    model: HookedModel,
    prompts: Prompts,
    counterfactual: Prompts | Task | None = None,
    *,
    method: DiscoveryMethod = "acdc",
    threshold: float | None = None,
    n_edges: int | None = None,
    faithfulness: float | None = None,
    scores: EdgeMethod | EdgeAttributionResult | Mapping[Any, float] | None = None,
    level: Level = "edges",
    within: Circuit | None = None,
    reference: EdgeReference = "counterfactual",
    metric: MetricLike = "kl",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
    progress: bool = True,
) -> CircuitResult:
    """Which edges suffice for what the model does on these prompts, if all others carry a reference's activations?

    See ``Circuit.as_model`` for how a circuit runs. The methods:

    - "acdc": from the output down, each edge is taken away, and stays away if that makes the metric worse by less than
      ``threshold`` (in its units) beside all that went before. Costs one pass per edge.
    - "greedy": the circuit grows from the output, each time by the edge with the largest |score| into what it already
      has, to ``n_edges`` edges or until it is as faithful as asked.
    - "brute_force": the fewest edges (of at most 16) or components (``level="nodes"``: of at most 12, with all edges
      between them) that are as faithful as asked. Equally small ones are all reported.

    A circuit's faithfulness is f = (m(circuit) − m(reference)) / (m(model) − m(reference)), for the metric m; it is as
    faithful as asked where |1 − f| ≤ 1 − ``faithfulness``. With "kl" (from the model's own outputs) f = 1 −
    KL(circuit) / KL(reference).

    Args:
        scores: what "greedy" ranks by: a method of ``attribute_edges``, its result, or a number per edge.
        within: a circuit to look in; what lies outside is cut throughout.
        reference: as for ``attribute_edges``. A counterfactual shows what carries the difference; "mean" and "zero"
            show also what both runs need, positions say.
        progress: say on standard error how far the search is, where it takes long.

    Raises:
        InputError: a method, metric, level or reference that does not exist; what a method needs is missing or what it
            does not take is given; a circuit of another model; too many edges or components; model and reference that
            the metric cannot tell apart where faithfulness is asked for, or no circuit as faithful as asked; and as for
            ``attribute_edges``.

    Source: Conmy et al. (2023), Towards Automated Circuit Discovery for Mechanistic Interpretability, whose order among
    the senders of a receiver depends on names [code]; growing from the output is that of Hanna, Pezzelle and Belinkov
    (2024), Have Faith in Faithfulness [code]. Brute force and its ties are ours.

    >>> import torch
    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=4, d_vocab=5, attn_only=True)
    >>> here, there = torch.randint(5, (2, 8, 4), generator=torch.Generator().manual_seed(0))
    >>> prompts = Prompts.from_tensors(here, counterfactual=Prompts.from_tensors(there))
    >>> discover_circuit(HookedTransformer(cfg), prompts, threshold=1.0).circuit
    Circuit(0 of 9 edges)
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    search = _Search(method, threshold, n_edges, faithfulness, scores, level)
    search.check()
    whole = Circuit.full(model)
    within = whole if within is None else within
    within.check_fits(model)
    if not len(within):
        raise InputError("within has no edges: there is nothing to look in")
    judged, parts = Metric.of(metric), list(groups(prompts, None))
    values = CircuitValues(
        model, prompts, counterfactual, judged, parts, reference=reference, seed=seed, batch_size=batch_size
    )
    task = SearchTask(values, within, confidence, seed, progress)
    if faithfulness is not None:
        task.check_way()
    if method == "acdc":
        found = by_acdc(task, cast(float, threshold))
    elif method == "greedy":
        if isinstance(scores, str):
            how: dict[str, Any] = {"reference": reference, "metric": metric, "seed": seed, "confidence": confidence}
            scores = attribute_edges(model, prompts, counterfactual, method=scores, batch_size=batch_size, **how)
        ranked = scores_by_edge(scores, whole.anatomy)
        found = by_scores(task, ranked, n_edges, faithfulness)
    else:
        found = by_brute_force(task, level, cast(float, faithfulness))
    return _result(task, found, search, reference)


def _is_between(value: object, most: float) -> bool:
    return isinstance(value, int | float) and 0 < value < most


@dataclass(frozen=True, eq=False)
class _Search:
    """What was asked for."""

    method: str
    threshold: float | None
    n_edges: int | None
    faithfulness: float | None
    scores: Any
    level: str

    def check(self) -> None:
        """Raise InputError if the method lacks something, or was given what it does not take."""
        if self.method not in _TAKES:
            raise InputError(f"method = {self.method!r} is unknown: choose {', '.join(map(repr, _TAKES))}")
        if self.level not in ("edges", "nodes"):
            raise InputError(f"level = {self.level!r} is unknown: choose 'edges' or 'nodes'")
        given = {key: getattr(self, key) for key in ("threshold", "n_edges", "faithfulness", "scores")}
        given["level"] = None if self.level == "edges" else self.level
        for key, value in given.items():
            if value is not None and key not in _TAKES[self.method]:
                owner = next(method for method, keys in _TAKES.items() if key in keys)
                raise InputError(f"method = {self.method!r} takes no {key}: drop it, or choose method = {owner!r}")
        self._check_missing()
        if self.threshold is not None and not _is_between(self.threshold, float("inf")):
            raise InputError(f"threshold = {self.threshold!r}: give a rise of the metric above 0")
        if self.n_edges is not None:
            check_whole("n_edges", self.n_edges, 1)
        if self.faithfulness is not None and not _is_between(self.faithfulness, 1.0):
            raise InputError(f"faithfulness = {self.faithfulness!r}: give a share between 0 and 1")

    def _check_missing(self) -> None:
        if self.method == "acdc" and self.threshold is None:
            raise InputError(
                "threshold is missing: say by how much the metric may get worse for an edge to go, in its units (for "
                "'kl' 0.01 nats say)"
            )
        if self.method == "greedy":
            if self.scores is None:
                raise InputError("scores is missing: name a method of attribute_edges, or give its result")
            if (self.n_edges is None) == (self.faithfulness is None):
                raise InputError("give n_edges or faithfulness, one of the two: it says where the circuit ends")
        if self.method == "brute_force" and self.faithfulness is None:
            raise InputError("faithfulness is missing: say how faithful the smallest circuit must be, 0.99 say")


_TAKES = {
    "acdc": ("threshold",),
    "greedy": ("scores", "n_edges", "faithfulness"),
    "brute_force": ("faithfulness", "level"),
}


def _result(task: SearchTask, found: Found, search: _Search, reference: str) -> CircuitResult:
    anatomy, values = task.anatomy, task.values
    scores = dict(zip(places(anatomy), found.scores.estimate.tolist(), strict=True))
    ties = tuple(Circuit(edges_at(anatomy, mask), anatomy, scores) for mask in found.masks)
    frame = pd.DataFrame(list(places(anatomy)), columns=["sender", "receiver", "receiver_input"])
    frame = frame.assign(method=search.method, metric=values.metric.name, kept=found.masks[0].numpy())
    frame["step"] = pd.array([step or None for step in found.step], dtype="Int64")
    frame = frame.assign(score=found.scores.estimate, ci_low=found.scores.low, ci_high=found.scores.high)
    frame["n_prompts"] = int((values.counts > 0).sum())
    masks = dict(enumerate(circuit.mask for circuit in ties))
    table = pd.DataFrame(faithfulness_rows(values, masks, confidence=task.confidence, seed=task.seed))
    table = table.drop(columns="part")
    notes = [*found.notes]
    if table["faithfulness"].isna().any():
        notes.append(
            f"{values.metric.name} does not tell the model from the reference (the interval of their difference "
            "includes 0), so no circuit has a faithfulness"
        )
    settings = {key: getattr(search, key) for key in ("method", "threshold", "n_edges", "faithfulness", "level")}
    settings["scores"] = search.scores if isinstance(search.scores, str) else getattr(search.scores, "title", None)
    settings |= {"reference": reference, "metric": values.metric.name, "within": len(task.within), "seed": task.seed}
    settings |= {"confidence": task.confidence, "n_prompts": len(values.prompts), "prompts_seed": values.prompts.seed}
    other = values.references.counterfactual
    settings["counterfactual_seed"] = None if other is None else other.seed
    said = {"acdc": "ACDC", "greedy": "scores", "brute_force": "brute force"}[search.method]
    title = f"{len(ties[0])} of {len(frame)} edges, by {said}: {values.metric.name} ({reference})"
    return CircuitResult(
        frame, title, settings, tuple(notes), circuit=ties[0], ties=ties, faithfulness=table, changes=found.changes,
        counts=values.counts[:, 0],
    )  # fmt: skip

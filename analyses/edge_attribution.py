"""Which component speaks to which: every edge's effect on a metric, to first order or exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Shaped
from numpy import ndarray
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.batches import batches
from analyses.edge_gradients import SumsOfEdges, eap, eap_ig_activations, eap_ig_inputs
from analyses.edge_patching import patched_edges
from analyses.edge_scores import EdgeWeights
from analyses.edges import Edges, edges_of
from analyses.gradients import refuse_flat
from analyses.metrics import Group, Metric, MetricLike, groups
from analyses.patching_figures import effect_map
from analyses.references import counterfactual_of
from analyses.result import Result, notes_on_intervals
from interp.model_adapter import HookedModel, activations_alone, refuse_other
from interp.statistics import Interval, ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

EdgeMethod = Literal["eap", "eap_ig_inputs", "eap_ig_activations", "exact"]
EdgeReference = Literal["counterfactual", "zero", "mean"]
_DEFAULT_STEPS = 8
_POSITIONS_IN_CACHE = 2048
_EDGES_AT_ONCE = 2000  # so that the resamples of many edges (2,000 each) take 32 MB
_OWN_COLUMNS = ("score", "receiver_input")


@dataclass(frozen=True, eq=False)
class EdgeAttributionResult(Result):
    """Effects of edges on a metric, in its own units: the metric with the edge's change minus the clean metric.

    Columns: sender, receiver, receiver_input ("q", "k" or "v" of a head; "in" of an MLP or the output), method,
    metric, the label split by (if any), score, ci_low, ci_high (over prompts), n_prompts.

    Attributes:
        senders: every sender in the order of the layers, the rows of ``matrix()``.
        receivers: every receiver with its input (``L1H0.k``) in the order of the layers, the columns of ``matrix()``.
    """

    senders: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()

    value_column = "score"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "edge_attribution"

    def matrix(self, column: str = "score", **where: Any) -> Float[Tensor, "sender receiver"]:
        """One column as a matrix, ``senders`` by ``receivers``, NaN where there is no edge; ``where`` picks rows.

        Raises:
            InputError: the column does not exist, or an edge has several rows (say which, by the label).
        """
        rows = self.frame
        for key in (column, *where):
            if key not in rows:
                raise InputError(f"{self.name} has no column {key!r}: choose from {', '.join(self.frame.columns)}")
        for key, value in where.items():
            rows = rows.loc[rows[key] == value]
        labelled = rows.assign(_receiver=_labels(rows))
        if labelled.duplicated(["sender", "_receiver"]).any():
            raise InputError(f"several rows per edge: choose one by {self.settings.get('by')}=…")
        table = labelled.pivot(index="sender", columns="_receiver", values=column)
        table = table.reindex(index=list(self.senders), columns=list(self.receivers))
        return torch.tensor(table.to_numpy(dtype=float), dtype=torch.float64)

    def plot(self) -> go.Figure:
        """Scores as a map, senders by receivers; an edge whose interval excludes 0 has a star."""
        shown = {"receiver": _labels(self.frame), "effect": self.frame["score"]}
        shown |= {"effect_low": self.frame["ci_low"], "effect_high": self.frame["ci_high"]}
        return effect_map(
            self.frame.assign(**shown), down="sender", across="receiver", title=self.title,
            by=self.settings.get("by"), of="score",
        )  # fmt: skip


def attribute_edges(
    model: HookedModel,
    prompts: Prompts,
    counterfactual: Prompts | Task | None = None,
    *,
    method: EdgeMethod = "eap",
    reference: EdgeReference = "counterfactual",
    metric: MetricLike = "loss",
    by: str | None = None,
    n_steps: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int | None = None,
) -> EdgeAttributionResult:
    """How much does each edge, from what writes to the residual stream to what reads from it, matter to a metric?

    An edge joins a sender (embed, pos_embed, a head, an MLP) to an input (q, k or v of a later head, an MLP's, the
    output's). Its effect is what changes if this input alone gets the sender's output of another run (``reference``),
    Δ = output there − output here:

    - "eap" (edge attribution patching): Σ_pos ⟨Δ, ∂metric/∂input⟩ for all edges from one pass back.
    - "eap_ig_inputs": the same with the gradient averaged over passes whose embeddings lie on the straight line from
      these prompts to the counterfactuals, at ``n_steps`` midpoints.
    - "eap_ig_activations": the gradient is averaged over passes in which the outputs of the sender's layer move along
      the straight line to their reference, at ``n_steps`` midpoints, and all behind follows. Heads of a layer move
      together, an MLP or the embedding alone. The edges that leave those who move together sum to what moving them
      changes (completeness), up to the error of the steps.
    - "exact": the edge is patched, by one pass for every edge. For small models.

    Inputs are taken in the residual stream, before LayerNorm: "exact" computes LayerNorm anew, the others go through
    its exact derivative (its scale moves too). What heads add is z W_O; biases belong to no sender.

    In a linear network all four agree. Effects of edges do not sum to that of the whole in general. Where answers are
    certain, the loss is flat and its gradient sees little: on the shipped bigram run ("bietti-full-2x4", in context, 16
    prompts of seed 5, 129 edges) scores correlate with exact patching by −0.05 ("eap") and 0.86
    ("eap_ig_inputs") for the loss, by 0.76 and 0.99 for the logit difference.

    Args:
        counterfactual: prompts aligned with ``prompts``, or their task, which draws them with ``seed``; by default
            those that the prompts carry.
        reference: "counterfactual", or "zero" or "mean" (over these prompts, at each position) to take outputs away,
            positions included, which a counterfactual never changes.
        metric: as for ``ablate``; gradients need one that has a gradient (not "accuracy").
        by: a label of the prompts that splits the effect.
        batch_size: prompts at a time; by default what a core's cache holds (2048 positions), on a GPU 512 prompts.

    Raises:
        InputError: no counterfactual, one that is not aligned, or one that the reference does not read; ``n_steps``
            with another method; a metric, label, method or reference that does not exist; a model with another
            normalisation than LayerNorm, or heads that share keys.

    Source: Syed, Rager and Conmy (2023), Attribution Patching Outperforms Automated Circuit Discovery; Hanna, Pezzelle
    and Belinkov (2024), Have Faith in Faithfulness, whose sums run over right ends instead of midpoints and, for
    activations, add up the gradients of all layers' steps for every edge, which is not complete [mem].

    >>> from interp.constructions.induction import induction_circuit
    >>> model = induction_circuit(d_vocab=5, n_ctx=6, triggers=[2], attention_logit=5.0, copy_logit=5.0).model
    >>> inputs = torch.tensor([[0, 2, 4, 1, 0, 2], [3, 2, 1, 0, 4, 2]])
    >>> answers = torch.tensor([[4], [1]]).expand(2, 6)
    >>> prompts = Prompts.from_tensors(inputs, answers, scored=torch.arange(6).expand(2, 6) == 5)
    >>> found = attribute_edges(model, prompts, method="exact", reference="zero").frame
    >>> found.loc[(found["receiver"] == "L1H0") & (found["score"] > 0.1), ["sender", "receiver_input"]].values.tolist()
    [['embed', 'q'], ['embed', 'v'], ['L0H0', 'k']]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    steps = _checked(method, reference, counterfactual, by, n_steps)
    judged, parts = Metric.of(metric), list(groups(prompts, by))
    if method == "eap":
        refuse_flat(judged, method, "'eap_ig_inputs', 'eap_ig_activations' or 'exact'")
    edges, weights = edges_of(model), EdgeWeights.of(model)
    other = counterfactual_of(prompts, counterfactual, seed=seed) if reference == "counterfactual" else None
    points = list(dict.fromkeys(sender.point for sender in edges.senders))
    if batch_size is None:
        at_home = prompts.inputs.device.type == "cpu"
        batch_size = max(1, _POSITIONS_IN_CACHE // prompts.inputs.shape[1]) if at_home else 512
    reference_of = _References(model, prompts, other, reference, points, batch_size)
    sums, counts = [], []
    for rows in batches(prompts, batch_size):
        batch = prompts[rows]
        of_batch = [Group(part.value, None if part.mask is None else part.mask[rows]) for part in parts]
        how = (model, batch, judged, of_batch, edges, weights, reference_of(rows))
        there = None if other is None else other.inputs[rows]
        if method == "exact":
            found = _patched(*how)
        elif method == "eap":
            found = eap(*how, there)
        elif method == "eap_ig_inputs":
            found = eap_ig_inputs(*how, there, n_steps=steps or _DEFAULT_STEPS)
        else:
            found = eap_ig_activations(*how, there, n_steps=steps or _DEFAULT_STEPS)
        sums.append(found[0])
        counts.append(found[1])
    interval = _intervals(np.concatenate(sums), np.concatenate(counts), confidence, seed)
    frame = _frame(edges, interval, np.concatenate(counts), method, judged, parts, by)
    settings = {"method": method, "reference": reference, "metric": judged.name, "by": by, "seed": seed}
    settings |= {"confidence": confidence, "n_prompts": len(prompts), "prompts_seed": prompts.seed}
    settings |= {"n_steps": steps, "counterfactual_seed": None if other is None else other.seed}
    title = f"Edges by {_TITLES[method]}: {judged.name} ({reference})"
    names = tuple(one.name for one in edges.senders), tuple(one.label for one in edges.receivers)
    return EdgeAttributionResult(frame, title, settings, notes_on_intervals(frame), *names)


_TITLES = {
    "eap": "attribution patching",
    "eap_ig_inputs": "attribution patching with integrated gradients (inputs)",
    "eap_ig_activations": "attribution patching with integrated gradients (activations)",
    "exact": "exact patching",
}


def _checked(method: str, reference: str, counterfactual: object, by: str | None, n_steps: int | None) -> int | None:
    """The number of steps, where the method takes them."""
    if method not in _TITLES:
        raise InputError(f"method = {method!r} is unknown: choose {', '.join(map(repr, _TITLES))}")
    if reference not in ("counterfactual", "zero", "mean"):
        raise InputError(f"reference = {reference!r} is unknown: choose 'counterfactual', 'zero' or 'mean'")
    if reference != "counterfactual" and counterfactual is not None:
        raise InputError(f"reference = {reference!r} takes no counterfactual: drop it, or the reference")
    if by in _OWN_COLUMNS:
        raise InputError(f"by = {by!r} is also a column of the table: rename the label")
    if method not in ("eap_ig_inputs", "eap_ig_activations"):
        if n_steps is not None:
            takers = "'eap_ig_inputs' or 'eap_ig_activations'"
            raise InputError(f"method = {method!r} takes no n_steps: drop it, or choose method = {takers}")
        return None
    if method == "eap_ig_inputs" and reference != "counterfactual":
        raise InputError(
            f"method = 'eap_ig_inputs' goes from the prompts to their counterfactuals: reference = {reference!r} has "
            "none, choose method = 'eap', 'eap_ig_activations' or 'exact'"
        )
    if n_steps is not None and n_steps < 1:
        raise InputError(f"n_steps = {n_steps}: an integral needs at least 1 step")
    return n_steps or _DEFAULT_STEPS


class _References:
    """What each sender's output is in the reference run."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        counterfactual: Prompts | None,
        reference: EdgeReference,
        points: Sequence[str],
        batch_size: int,
    ):
        self.model, self.counterfactual, self.points = model, counterfactual, points
        self.means = self._means(prompts, batch_size) if reference == "mean" else None

    def __call__(self, rows: slice) -> Mapping[str, Tensor | float]:
        """A batch's activations at the senders' points; for all alike, or 0, where the reference is."""
        if self.counterfactual is not None:
            return activations_alone(self.model, self.counterfactual.inputs[rows], self.points)
        return self.means or dict.fromkeys(self.points, 0.0)

    def _means(self, prompts: Prompts, batch_size: int) -> dict[str, Float[Tensor, "pos *rest"]]:
        totals: dict[str, Tensor] = {}
        for rows in batches(prompts, batch_size):
            found = activations_alone(self.model, prompts.inputs[rows], self.points)
            for point, activation in found.items():
                totals[point] = totals.get(point, 0) + activation.sum(dim=0)
        return {point: total / len(prompts) for point, total in totals.items()}


def _patched(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edges: Edges,
    weights: EdgeWeights,
    reference: Mapping[str, Tensor | float],
) -> SumsOfEdges:
    residuals = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    clean = activations_alone(model, batch.inputs, [*reference, *residuals])
    changes = {point: there - clean[point] for point, there in reference.items()}
    return patched_edges(model, batch, metric, parts, edges, weights.outputs, changes, clean)


def _intervals(
    sums: Float[ndarray, "prompt edge part"], counts: Shaped[ndarray, "prompt part"], confidence: float, seed: int
) -> Interval:
    """Scores [edge, part] with intervals; the same resamples serve every edge."""
    n_prompts, n_edges, n_parts = sums.shape
    found = []
    for start in range(0, n_edges, _EDGES_AT_ONCE):
        some = sums[:, start : start + _EDGES_AT_ONCE]
        flat = some.reshape(n_prompts, -1)
        found.append(ratio_interval(flat, np.tile(counts, (1, some.shape[1])), confidence=confidence, seed=seed))
    ends = zip(*((one.estimate, one.low, one.high) for one in found), strict=True)
    return Interval(*(np.concatenate(each).reshape(n_edges, n_parts) for each in ends))


def _frame(
    edges: Edges,
    interval: Interval,
    counts: Shaped[ndarray, "prompt part"],
    method: str,
    metric: Metric,
    parts: Sequence[Group],
    by: str | None,
) -> pd.DataFrame:
    pairs = [(s, r, j) for s, r in edges.pairs for j in range(len(parts))]
    n_prompts = (counts > 0).sum(axis=0).tolist()
    columns: dict[str, Any] = {
        "sender": [edges.senders[s].name for s, _, _ in pairs],
        "receiver": [edges.receivers[r].name for _, r, _ in pairs],
        "receiver_input": [edges.receivers[r].input for _, r, _ in pairs],
        "method": method,
        "metric": metric.name,
    }
    if by is not None:
        columns[by] = [parts[j].value for _, _, j in pairs]
    columns |= {"score": interval.estimate.ravel(), "ci_low": interval.low.ravel(), "ci_high": interval.high.ravel()}
    return pd.DataFrame(columns | {"n_prompts": [n_prompts[j] for _, _, j in pairs]})


def _labels(frame: pd.DataFrame) -> pd.Series:
    """Receivers with their inputs, where there are several."""
    return frame["receiver"].where(frame["receiver_input"] == "in", frame["receiver"] + "." + frame["receiver_input"])

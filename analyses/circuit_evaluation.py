"""How good is a circuit? Faithful, complete, minimal, and how soon circuits of all sizes are faithful."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.circuit import Circuit
from analyses.circuit_areas import area_rows
from analyses.circuit_knockouts import completeness_rows, minimality_rows
from analyses.circuit_result import CircuitResult
from analyses.circuit_scores import scores_by_edge
from analyses.circuit_values import CircuitValues, faithfulness_rows
from analyses.edge_attribution import EdgeAttributionResult, EdgeReference
from analyses.figures import INK, MUTED, look, plain, whiskers, words
from analyses.metrics import Group, Metric, MetricLike, groups
from analyses.result import Result
from interp.model_adapter import HookedModel, refuse_other
from interp.progress import counted_progress
from tasks.errors import InputError
from tasks.field_checks import check_whole
from tasks.prompts import Prompts
from tasks.protocol import Task

_OWN_COLUMNS = ("circuit", "n_edges", "reference", "model", "empty", "faithfulness", "part")


@dataclass(frozen=True, eq=False)
class CircuitEvaluation(Result):
    """How faithful circuits are, and whether they are complete and minimal.

    Columns: circuit, n_edges, reference, metric, the label split by (if any), model, empty, value (the metric of the
    model, of the reference alone and of the circuit), faithfulness, ci_low, ci_high (over prompts), n_prompts.

    Attributes:
        completeness: circuit, reference, metric, chosen ("nothing", "random", "greedy"), without (the components),
            model_without, circuit_without, difference, ci_low, ci_high, n_prompts.
        minimality: circuit, reference, metric, part, beside (components left out too), value, without, change, ci_low,
            ci_high, n_prompts.
        areas: reference, metric, measure ("CPR", "CMD"), value, ci_low, ci_high, n_prompts; no rows without scores.
        curves: reference, metric, measure, share, n_edges, n_connected, faithfulness, ci_low, ci_high, n_prompts.
    """

    completeness: pd.DataFrame = field(kw_only=True)
    minimality: pd.DataFrame = field(kw_only=True)
    areas: pd.DataFrame = field(kw_only=True)
    curves: pd.DataFrame = field(kw_only=True)

    value_column = "faithfulness"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "circuit_evaluation"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """``frame``, and every other table that has rows."""
        others = {key: getattr(self, key) for key in ("completeness", "minimality", "areas", "curves")}
        return {self.name: self.frame} | {f"circuit_{key}": one for key, one in others.items() if len(one)}

    def plot(self) -> go.Figure:
        """Faithfulness of each circuit with its interval, one symbol per reference; 1 is the model."""
        figure = go.Figure()
        by = self.settings.get("by")
        for place, (reference, rows) in enumerate(self.frame.groupby("reference", sort=False)):
            names = rows["circuit"].astype(str) if by is None else rows["circuit"] + ", " + rows[by].map(str)
            figure.add_trace(
                go.Scatter(
                    x=rows["faithfulness"].to_numpy(dtype=float),
                    y=[plain(name) for name in names],
                    mode="markers",
                    name=words(reference),
                    marker={"symbol": _SYMBOLS[place], "size": 10, "color": INK, "line": {"width": 2}},
                    error_x=whiskers(rows, "faithfulness"),
                )
            )
        for level in (0, 1):
            figure.add_vline(x=level, line={"color": MUTED, "width": 1, "dash": "dash"})
        figure.update_xaxes(title_text="faithfulness (0: the reference, 1: the model)")
        figure.update_yaxes(autorange="reversed")
        return figure.update_layout(title=plain(self.title), template=look(), scattermode="group")


_SYMBOLS = ("circle", "square-open", "diamond-open")


def evaluate_circuit(
    model: HookedModel,
    circuit: Circuit | CircuitResult | Mapping[str, Circuit],
    prompts: Prompts,
    counterfactual: Prompts | Task | None = None,
    *,
    references: Sequence[EdgeReference] = ("counterfactual", "mean"),
    metric: MetricLike = "loss",
    by: str | None = None,
    scores: EdgeAttributionResult | CircuitResult | Mapping[Any, float] | None = None,
    minimality: Literal["nodes", "edges"] = "nodes",
    n_random: int = 10,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
    progress: bool = True,
) -> CircuitEvaluation:
    """Does the circuit do what the model does, does it miss nothing, and does it hold nothing idle?

    Everything outside a circuit carries a reference's activations (``Circuit.as_model``), each of ``references`` in
    turn. With m the metric:

    - faithfulness: (m(circuit) − m(reference)) / (m(model) − m(reference)). It may exceed 1, where the circuit leaves
      out what works against it.
    - completeness: m(circuit without K) − m(model without K) for sets K of the circuit's components. Far from 0 where
      the model has a backup that the circuit misses.
    - minimality: what leaving out each component changes, beside none or some of the others, or with
      ``minimality="edges"`` each edge. Near 0 for what does not belong.
    - with ``scores``: CPR, the area under the faithfulness of circuits of the best 0.1 % to 100 % of edges (the more
      the better; circuits that beat the model push it above 1), and CMD, the area between it and 1 (0 is best).

    Sets K that are picked for their effect are picked on the first half of the prompts and measured on the second.
    Prompts other than those of the search say how far a circuit carries over.

    Args:
        circuit: one, or several by name.
        references: "counterfactual", "mean", "zero".
        by: a label of the prompts that splits the faithfulness.
        scores: of all edges, ``attribute_edges``' or ``discover_circuit``'s, above 0 (after its metric's sign) for what
            helps.
        n_random: random sets K.

    Raises:
        InputError: a circuit of another model or without edges; a reference that does not exist, or that no
            counterfactual serves; fewer than 4 prompts; and as for ``discover_circuit``.

    Source: Wang et al. (2022), Interpretability in the Wild, section 4 (faithfulness there is a difference, and the
    minimality sets are chosen by hand [mem]); the ratio, CPR and CMD: Mueller et al. (2025), MIB [code].

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> import torch
    >>> cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=4, d_vocab=5, attn_only=True)
    >>> prompts = Prompts.from_tensors(torch.randint(5, (8, 4), generator=torch.Generator().manual_seed(0)))
    >>> model = HookedTransformer(cfg)
    >>> result = evaluate_circuit(model, Circuit.full(model), prompts, references=["zero"], metric="kl")
    >>> round(float(result.frame["faithfulness"][0]), 3)
    1.0
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    circuits = _named(circuit, model)
    _check(references, counterfactual, prompts, by, minimality)
    check_whole("n_random", n_random, 0)
    judged = Metric.of(metric)
    parts = [Group("all", None)] + ([] if by is None else list(groups(prompts, by)))
    if by is None:
        parts = list(groups(prompts, None))
    full = Circuit.full(model)
    ranked = None if scores is None else scores_by_edge(scores, full.anatomy)["score"].to_numpy(dtype=float)
    how: dict[str, Any] = {"confidence": confidence, "seed": seed}
    rows: dict[str, list[dict[str, Any]]] = {
        "frame": [],
        "completeness": [],
        "minimality": [],
        "areas": [],
        "curves": [],
    }
    n_steps, done = len(references) * (1 + 2 * len(circuits)), 0
    counterfactual_seed = None
    with counted_progress("steps", n_steps, progress) as tell:
        for reference in references:
            values = CircuitValues(
                model,
                prompts,
                counterfactual if reference == "counterfactual" else None,
                judged,
                parts,
                reference=reference,
                seed=seed,
                batch_size=batch_size,
            )
            if values.references.counterfactual is not None:
                counterfactual_seed = values.references.counterfactual.seed
            rows["frame"] += faithfulness_rows(values, {name: one.mask for name, one in circuits.items()}, **how)
            if ranked is not None:
                areas, curves = area_rows(values, ranked, full.anatomy, **how)
                rows["areas"] += areas
                rows["curves"] += curves
            tell(done := done + 1)
            for name, one in circuits.items():
                rows["completeness"] += completeness_rows(name, one, full, values, n_random=n_random, **how)
                tell(done := done + 1)
                rows["minimality"] += minimality_rows(
                    name, one, values, by_edges=minimality == "edges", n_random=n_random, **how
                )
                tell(done := done + 1)
    frame = pd.DataFrame(rows.pop("frame"))
    frame = frame.drop(columns="part") if by is None else frame[frame["part"] != "all"].rename(columns={"part": by})
    settings = {"references": list(references), "metric": judged.name, "by": by, "n_random": n_random, "seed": seed}
    settings |= {"minimality": minimality, "confidence": confidence, "n_prompts": len(prompts)}
    settings |= {"prompts_seed": prompts.seed, "counterfactual_seed": counterfactual_seed}
    settings |= {"scores": None if scores is None else getattr(scores, "title", "given")}
    title = f"Faithfulness of {'a circuit' if len(circuits) == 1 else f'{len(circuits)} circuits'}: {judged.name}"
    others = {key: pd.DataFrame(each) for key, each in rows.items()}
    return CircuitEvaluation(frame.reset_index(drop=True), title, settings, _notes(frame), **others)


def _named(circuit: Any, model: HookedModel) -> dict[str, Circuit]:
    if isinstance(circuit, CircuitResult):
        circuit = circuit.circuit
    circuits = dict(circuit) if isinstance(circuit, Mapping) else {"circuit": circuit}
    if not circuits:
        raise InputError("circuit holds none: give a circuit, or several by name")
    for name, one in circuits.items():
        if not isinstance(one, Circuit):
            raise InputError(f"{name} is {type(one).__name__}, which is no circuit: see Circuit.of or discover_circuit")
        one.check_fits(model)
        if not len(one):
            raise InputError(f"{name} has no edges: there is nothing to evaluate")
    return circuits


def _check(
    references: Sequence[str], counterfactual: object, prompts: Prompts, by: str | None, minimality: str
) -> None:
    if isinstance(references, str) or not references or len(set(references)) < len(references):
        raise InputError(f"references = {references!r}: give a list of 'counterfactual', 'mean', 'zero', each once")
    for one in references:
        if one not in ("counterfactual", "mean", "zero"):
            raise InputError(f"references has {one!r}, which is unknown: choose 'counterfactual', 'mean' or 'zero'")
    if counterfactual is not None and "counterfactual" not in references:
        raise InputError(f"references = {list(references)} take no counterfactual: drop it, or add 'counterfactual'")
    if len(prompts) < 4:
        raise InputError(
            f"{len(prompts)} prompts are too few: sets are chosen on one half and measured on the other, give 4 or more"
        )
    if by in _OWN_COLUMNS:
        raise InputError(f"by = {by!r} is also a column of the table: rename the label")
    if minimality not in ("nodes", "edges"):
        raise InputError(f"minimality = {minimality!r} is unknown: choose 'nodes' or 'edges'")


def _notes(frame: pd.DataFrame) -> tuple[str, ...]:
    missing = int(frame["faithfulness"].isna().sum())
    if not missing:
        return ()
    note = (
        f"{missing} of {len(frame)} rows have no faithfulness: the interval of the difference between the model and "
        "the reference includes 0 there (or has too few prompts), so there is no way to have gone a share of"
    )
    return (note,)

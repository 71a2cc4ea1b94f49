"""How many heads a layer needs: the model with only its most important ones, beside other ways to choose them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.batches import batches
from analyses.figures import INK, MUTED, look, plain, whiskers, words
from analyses.head_assessment import HeadAssessment, assess_heads
from analyses.metrics import Metric, MetricLike, groups
from analyses.references import MeanOver, Method, ablation_edits
from analyses.result import Result, notes_on_intervals
from analyses.separate_prompts import refuse_same_prompts
from analyses.sweep import SweepOutcome, sweep
from interp.model_adapter import HookedModel, heads_of, outputs, refuse_other
from interp.sites import Site
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.field_checks import check_whole
from tasks.prompts import Prompts

BY_IMPORTANCE, AT_RANDOM, OTHER_LAYERS = "by importance", "at random", "other layers"
_ARMS = (BY_IMPORTANCE, AT_RANDOM, OTHER_LAYERS)
_LOOK = {
    BY_IMPORTANCE: (INK, "solid", "circle"),
    AT_RANDOM: (MUTED, "dash", "square-open"),
    OTHER_LAYERS: (INK, "dot", "diamond-open"),
}
_BAND = "rgba(134, 142, 152, 0.25)"  # figures.MUTED, see-through
_LOG_AXIS_FROM = 20.0  # ratio of largest to smallest value from which equal factors say more than equal steps


class Ranking(NamedTuple):
    """The heads of some layers, each layer's in the order in which they are kept."""

    heads: Mapping[int, tuple[int, ...]]

    def kept(self, n: int) -> list[Site]:
        """The first n of each layer."""
        return [Site(layer, "z", head) for layer, order in self.heads.items() for head in order[:n]]

    def pruned(self, n: int) -> tuple[Site, ...]:
        """All but the first n of each layer, sorted: what is ablated together."""
        return tuple(Site(layer, "z", head) for layer, order in self.heads.items() for head in sorted(order[n:]))


@dataclass(frozen=True, eq=False)
class PruningResult(Result):
    """The metric with only some heads of some layers kept: a row for each way to choose them and each number kept.

    Columns: arm (the way: "by importance", "at random", "other layers", or the name of another model), pruned (the
    layers in question; missing for another model), kept (heads per pruned layer), heads (which; missing at random),
    metric, baseline (the full model's), ablated, delta, ci_low, ci_high (of delta), n_prompts; n_draws, draws_low,
    draws_high (the smallest and the largest delta among random choices); contrast, contrast_ci_low,
    contrast_ci_high (the arm's delta minus that of "by importance" with as many heads kept).
    """

    assessment: HeadAssessment = field(kw_only=True)
    """What the heads' importance was read from."""

    value_column = "delta"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "pruning"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """``frame``, and the assessment that ranked the heads."""
        return {self.name: self.frame} | {f"{self.name}_{key}": one for key, one in self.assessment.tables.items()}

    def plot(self) -> go.Figure:
        """The metric against the number of heads kept, one curve per arm; other models and the full one as lines."""
        return _figure(self)


def prune_heads(
    model: HookedModel,
    prompts: Prompts,
    *,
    importance: Prompts,
    layers: Sequence[int] | None = None,
    method: Method = "zero",
    metric: MetricLike = "loss",
    n_random: int = 10,
    others: Mapping[str, HookedModel] | None = None,
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
) -> PruningResult:
    """What is left of the model if each pruned layer keeps only its k most important heads, k = 1 … n_heads?

    The others of all pruned layers are ablated together. Importance is the harm of losing the head alone
    (``assess_heads``, same method and metric) on the separate prompts ``importance``. The arms:

    - "by importance": the k most important heads of each of ``layers``;
    - "at random": ``n_random`` draws of a random order of heads in each layer, of which the first k are kept; delta is
      the mean over draws, its interval that over prompts for these draws, the spread is draws_low to draws_high;
    - "other layers": the same by importance in all layers but ``layers``, which are left whole;
    - a name of ``others``: another model, whole, on the same prompts.

    All intervals are over prompts, paired with the full model; that of a contrast pairs two arms.

    Args:
        importance: prompts to rank the heads on; they must be other ones than ``prompts``.
        layers: the layers to prune; None means all but the first.
        n_random: random choices per number kept; 0 leaves that arm out.
        others: other models to compare with, one trained with a single head say.
        method, reference, over: as for ``ablate``.

    Raises:
        InputError: a layer that does not exist, nothing to prune, prompts that serve twice, fewer than two random
            choices; and as for ``ablate``.

    Source: Chen, Zhao and Zou 2024: the first layer whole and one head in later ones, beside the reverse [abs][mem];
    random choices, intervals and contrasts are ours.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> cfg = HookedTransformerConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True)
    >>> tokens = torch.randint(5, (40, 6), generator=torch.Generator().manual_seed(0))
    >>> prompts, ranked_on = Prompts.from_tensors(tokens[:20]), Prompts.from_tensors(tokens[20:])
    >>> pruned = prune_heads(HookedTransformer(cfg), prompts, importance=ranked_on, n_random=2)
    >>> pruned.frame[["arm", "pruned", "kept"]].values.tolist()[:2]
    [['by importance', 'L1', 1], ['by importance', 'L1', 2]]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if not len(prompts):
        raise InputError("prompts holds 0 prompts: sample some")
    there = heads_of(model)
    most = max((sum(of == layer for of, _ in there) for layer in range(model.cfg.n_layers)), default=0)
    pruned = _checked_layers(layers, model.cfg.n_layers, most)
    judged, whole = Metric.of(metric), list(groups(prompts, None))
    _check_controls(n_random, others or {})
    refuse_same_prompts(importance, prompts, "importance")
    how: dict[str, Any] = {"reference": reference, "over": over, "seed": seed, "batch_size": batch_size}
    assessment = assess_heads(model, importance, method=method, metric=metric, confidence=confidence, **how)
    rankings = _rankings(assessment, pruned, sorted({layer for layer, _ in there}), n_random, seed)
    plans = [
        (arm, kept, ranking.pruned(kept))
        for arm, each in rankings.items()
        for kept in range(1, most)
        for ranking in each
        if ranking.pruned(kept)
    ]
    targets = list(dict.fromkeys(target for *_, target in plans))
    edits = ablation_edits(model, prompts, targets, method, **how)
    outcome = sweep(
        model, prompts, [{site: edits[site] for site in target} for target in targets], [judged], whole,
        batch_size=batch_size, confidence=confidence, seed=seed,
    )  # fmt: skip
    arms = _arms(rankings, dict(zip(targets, outcome.differences, strict=True)), outcome.counts, most)
    arms += [_Arm(name, _apart(model, other, prompts, judged, batch_size)) for name, other in (others or {}).items()]
    frame = _frame(arms, outcome, judged, confidence=confidence, seed=seed)
    settings = {
        "method": method,
        "over": over if method == "mean" else None,
        "metric": judged.name,
        "layers": list(pruned),
        "ranking": {f"L{layer}": list(assessment.ranking(layer)) for layer in sorted({layer for layer, _ in there})},
        "importance_seed": importance.seed,
        "n_importance_prompts": len(importance),
        "reference_seed": (reference or prompts).seed if method != "zero" else None,
        "n_random": n_random,
        "seed": seed,
        "confidence": confidence,
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
    }
    title = f"{words(judged.name).capitalize()} with few heads kept in {_named(pruned)} ({method}-ablation of the rest)"
    notes = list(notes_on_intervals(frame))
    if OTHER_LAYERS not in rankings:
        notes.append("every layer is pruned, so there are no other layers to prune instead")
    return PruningResult(frame, title, settings, tuple(notes), assessment=assessment)


_COLUMNS = [
    *("arm", "pruned", "kept", "heads", "metric", "baseline", "ablated", "delta", "ci_low", "ci_high", "n_prompts"),
    *("n_draws", "draws_low", "draws_high", "contrast", "contrast_ci_low", "contrast_ci_high"),
]


def _rankings(
    assessment: HeadAssessment, pruned: tuple[int, ...], with_heads: Sequence[int], n_random: int, seed: int
) -> dict[str, list[Ranking]]:
    """One ranking per arm, or several draws of one."""
    others = [layer for layer in with_heads if layer not in pruned]
    pruned = tuple(layer for layer in pruned if layer in with_heads)
    rankings = {BY_IMPORTANCE: [Ranking({layer: assessment.ranking(layer) for layer in pruned})]}
    if n_random:
        rng = np.random.default_rng(seed)
        rankings[AT_RANDOM] = [
            Ranking({layer: tuple(rng.permutation(sorted(assessment.ranking(layer))).tolist()) for layer in pruned})
            for _ in range(n_random)
        ]
    if others:
        rankings[OTHER_LAYERS] = [Ranking({layer: assessment.ranking(layer) for layer in others})]
    return rankings


class _Arm(NamedTuple):
    """One row to be: the metric's sums after minus before, prompt by prompt, and what the row says beside them."""

    name: str
    difference: Float[ndarray, "prompt 1"]
    about: Mapping[str, Any] = MappingProxyType({})
    against: Float[ndarray, "prompt 1"] | None = None
    """The differences of "by importance" with as many heads kept."""


def _arms(
    rankings: Mapping[str, Sequence[Ranking]],
    differences: Mapping[tuple[Site, ...], Float[ndarray, "prompt 1"]],
    counts: Float[ndarray, "prompt 1"],
    n_heads: int,
) -> list[_Arm]:
    measured = {(): np.zeros_like(counts), **differences}  # where every head is kept, nothing was run
    (ranked,) = rankings[BY_IMPORTANCE]
    arms = []
    for name, draws in rankings.items():
        for kept in range(1, n_heads + 1):
            each = [measured[draw.pruned(kept)] for draw in draws]
            about: dict[str, Any] = {"pruned": _named(tuple(draws[0].heads)), "kept": kept}
            if name == AT_RANDOM:
                deltas = [float(one.sum() / counts.sum()) for one in each]
                about |= {"n_draws": len(draws), "draws_low": min(deltas), "draws_high": max(deltas)}
            else:
                about["heads"] = " ".join(map(str, draws[0].kept(kept)))
            against = None if name == BY_IMPORTANCE else measured[ranked.pruned(kept)]
            arms.append(_Arm(name, np.mean(each, axis=0), about, against))
    return arms


def _frame(
    arms: Sequence[_Arm], outcome: SweepOutcome, metric: Metric, *, confidence: float, seed: int
) -> pd.DataFrame:
    contrasted = [index for index, arm in enumerate(arms) if arm.against is not None]
    sums = [arm.difference for arm in arms]
    sums += [arm.difference - arm.against for arm in arms if arm.against is not None]
    intervals = ratio_interval(
        np.concatenate(sums, axis=1), np.tile(outcome.counts, (1, len(sums))), confidence=confidence, seed=seed
    )
    ends = list(zip(intervals.estimate, intervals.low, intervals.high, strict=True))
    baseline, n_prompts = float(outcome.baseline[0]), int(outcome.n_prompts[0])
    rows: list[dict[str, Any]] = []
    for arm, (delta, low, high) in zip(arms, ends[: len(arms)], strict=True):
        row = {"arm": arm.name, "pruned": None, "heads": None, "kept": None, "metric": metric.name}
        row |= {"baseline": baseline, "ablated": baseline + delta, "delta": delta, "ci_low": low, "ci_high": high}
        rows.append(row | {"n_prompts": n_prompts} | dict(arm.about))
    for index, found in zip(contrasted, ends[len(arms) :], strict=True):
        rows[index] |= dict(zip(("contrast", "contrast_ci_low", "contrast_ci_high"), found, strict=True))
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"kept": "Int64", "n_draws": "Int64"})


def _apart(
    model: HookedModel, other: HookedModel, prompts: Prompts, metric: Metric, batch_size: int
) -> Float[ndarray, "prompt 1"]:
    """The metric's sums of another model minus those of the model, prompt by prompt."""
    differences = []
    with torch.no_grad():
        for rows in batches(prompts, batch_size):
            batch = prompts[rows]
            of_model, of_other = outputs(model, batch.inputs), outputs(other, batch.inputs)
            if of_model.shape != of_other.shape:
                raise InputError(
                    f"another model's outputs are {list(of_other.shape)}, the model's {list(of_model.shape)}: "
                    "compare models of one task"
                )
            before, after = (metric.measure(each, batch, of_model)[0] for each in (of_model, of_other))
            differences.append((after.double() - before.double()).cpu().numpy())
    return np.concatenate(differences)[:, None]


def _checked_layers(layers: Sequence[int] | None, n_layers: int, n_heads: int) -> tuple[int, ...]:
    if n_heads < 2:
        raise InputError("the model has one head per layer: there is none to prune")
    if layers is None:
        if n_layers < 2:
            raise InputError("the model has one layer, and the first is kept by default: say layers=[0] to prune it")
        return tuple(range(1, n_layers))
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"layers = {list(layers)}: name at least one layer, each once")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}")
    return tuple(sorted(layers))


def _check_controls(n_random: int, others: Mapping[str, HookedModel]) -> None:
    check_whole("n_random", n_random, 0)
    if n_random == 1:
        raise InputError("n_random = 1 shows no spread: ask for at least 2 random choices, or 0 for none")
    for name, other in others.items():
        if name in _ARMS:
            raise InputError(f"another model is called {name!r}, like an arm of the comparison: rename it")
        refuse_other(other)


def _named(layers: Sequence[int]) -> str:
    """L1+L3, or L1–L3 for three in a row or more."""
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        return f"L{layers[0]}–L{layers[-1]}"
    return "+".join(f"L{layer}" for layer in layers)


def _figure(result: PruningResult) -> go.Figure:
    frame = result.frame
    figure = go.Figure()
    curves = [(arm, rows) for arm, rows in frame.groupby("arm", sort=False) if arm in _ARMS]
    for arm, rows in curves:
        kept, values = rows["kept"].to_numpy(dtype=int), rows["ablated"].to_numpy(dtype=float)
        colour, dash, symbol = _LOOK[str(arm)]
        if arm == AT_RANDOM:
            figure.add_trace(_spread(rows, kept))
        ends = rows.assign(ci_low=rows["baseline"] + rows["ci_low"], ci_high=rows["baseline"] + rows["ci_high"])
        figure.add_trace(
            go.Scatter(
                x=kept,
                y=values,
                name=f"{rows['pruned'].iloc[0]} instead" if arm == OTHER_LAYERS else str(arm),
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 9, "color": colour},
                error_y=whiskers(ends, "ablated") | {"color": colour},
            )
        )
    levels = {"full model": float(frame["baseline"].iloc[0])}
    levels |= {str(row["arm"]): row["ablated"] for row in frame.to_dict("records") if row["arm"] not in _ARMS}
    for name, level in levels.items():
        figure.add_trace(_level(name, level, int(frame["kept"].max())))
    figure.update_xaxes(title_text="heads kept in each pruned layer", dtick=1)
    figure.update_yaxes(title_text=words(frame["metric"].iloc[0]))
    lowest = float(np.nanmin(frame["baseline"] + np.minimum(frame["ci_low"].fillna(0), frame["delta"])))
    if lowest > 0 and frame["ablated"].max() / frame["ablated"].min() > _LOG_AXIS_FROM:
        figure.update_yaxes(type="log", dtick=1)
    return figure.update_layout(title=plain(result.title), template=look())


def _level(name: str, value: float, n_heads: int) -> go.Scatter:
    """A model that does not depend on the number kept; a trace, since an annotation misses its place on a log axis."""
    return go.Scatter(
        x=[1, n_heads],
        y=[value, value],
        name=plain(name),
        mode="lines+text",
        text=[plain(name), ""],
        textposition="bottom right",
        textfont={"color": MUTED},
        line={"color": MUTED, "width": 1, "dash": "dash"},
        showlegend=False,
    )


def _spread(rows: pd.DataFrame, kept: ndarray) -> go.Scatter:
    """A band from the luckiest to the unluckiest random choice."""
    low, high = (rows["baseline"] + rows[end] for end in ("draws_low", "draws_high"))
    return go.Scatter(
        x=np.concatenate([kept, kept[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=_BAND,
        line={"width": 0},
        name="spread of random choices",
        hoverinfo="skip",
    )

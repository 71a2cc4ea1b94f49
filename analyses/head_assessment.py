"""How a layer's work is shared out among its heads: each head's share of the harm, and how many heads that makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray
from plotly.subplots import make_subplots
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.figures import INK, MUTED, look, plain, whiskers, words
from analyses.inline_figure import table_with_intervals
from analyses.metrics import Metric, MetricLike, groups
from analyses.references import MeanOver, Method, ablation_edits
from analyses.result import Result, notes_on_intervals
from analyses.sweep import SweepOutcome, sweep
from interp.model_adapter import HookedModel, heads_of, refuse_other
from interp.sites import Site
from interp.statistics import percentile_ends, resampled_ratios, simultaneous_ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts


@dataclass(frozen=True, eq=False)
class HeadAssessment(Result):
    """Every head's effect and its share within its layer.

    Columns: layer, head, component, metric, baseline, ablated, delta, ci_low, ci_high (of delta), share, share_ci_low,
    share_ci_high, n_prompts. Shares of a layer sum to 1; they are missing where no head of the layer does harm by
    being lost.
    """

    layers: pd.DataFrame = field(kw_only=True)
    """One row per layer: layer, n_heads, effective_heads, ci_low, ci_high, dominant (the component with the largest
    share), dominant_share, n_negative (heads without which the model does better), negative (their effects' sum)."""

    value_column = "share"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "head_assessment"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """``frame`` and ``layers``."""
        return {self.name: self.frame, f"{self.name}_layers": self.layers}

    def ranking(self, layer: int) -> tuple[int, ...]:
        """The heads of a layer by the harm of losing them, the worst first; equal ones by their number.

        Raises:
            InputError: no such layer.
        """
        rows = self.frame.loc[self.frame["layer"] == layer]
        if rows.empty:
            raise InputError(f"L{layer} was not assessed: choose a layer from 0 to {self.frame['layer'].max()}")
        harm = rows["delta"].to_numpy(dtype=float) * self.settings["worse"]
        return tuple(int(rows["head"].iloc[place]) for place in np.argsort(-harm, kind="stable"))

    def plot(self) -> go.Figure:
        """Shares as a layer × head heat map, and each layer's effective number of heads beside it."""
        return _figure(self)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + "\n" + table_with_intervals(self.layers, "effective_heads")


def assess_heads(
    model: HookedModel,
    prompts: Prompts,
    *,
    method: Method = "zero",
    metric: MetricLike = "loss",
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
) -> HeadAssessment:
    """How evenly the heads of each layer share its work, if one head at a time is taken away.

    Δ_h is the metric after minus before, W_h = max(Δ_h, 0) / Σ max(Δ, 0) the share within the layer, and
    1 / Σ W_h² the layer's effective number of heads: from 1, one head does all, to n_heads, all alike.

    A metric that falls when the model gets worse (accuracy, logit_diff, prob) is shared by −Δ; one's own function is
    taken to rise. Absent heads (``absent_heads``) have no row. A head that only does harm has the share 0, and
    ``layers`` says how many there are and what their effects sum to; where no head's loss does harm, shares and number
    are missing, with a note. Notes also name layers in which no effect exceeds 0 clearly (simultaneous interval):
    there, shares are shares of noise.

    Intervals are over prompts and paired: a resample is the same prompts for all heads and both arms. Noise makes
    heads look unequal, so that a resampled number has two doses of bias, from the prompts and from resampling them.
    For the intervals, (Σ Δ)², Σ Δ² and the shares' Σ Δ are therefore corrected by twice what resampling adds to them;
    the estimates are the plain formulas', and an interval may lie beside its estimate if prompts are few.

    Coverage of the 95 % intervals in simulations (8 heads, 128 to 2048 prompts; even, graded and dominated layers, with
    idle and negative heads; skewed and normal effects; 1000 data sets each): the number's 0.90 to 0.97, and 1.00 where
    all heads are alike or one does all; the shares' 0.90 to 1.00. Uncorrected, the number's interval never holds the
    truth where all heads are alike.

    Shapes and units: Δ in the metric's; shares and numbers have none. ``method``, ``reference`` and ``over`` are those
    of ``ablate``.

    Raises:
        InputError: as for ``ablate``.

    Source: Chen, Zhao and Zou 2024, head assessment: zeroed heads, W = Δ / Σ Δ [abs][mem]; negative effects, the
    effective number and the intervals are ours.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> cfg = HookedTransformerConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True)
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> assess_heads(HookedTransformer(cfg), prompts).layers[["layer", "n_heads"]].values.tolist()
    [[0, 2], [1, 2]]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if not len(prompts):
        raise InputError("prompts holds 0 prompts: sample some")
    judged, parts = Metric.of(metric), list(groups(prompts, None))
    sites = [Site(layer, "z", head) for layer, head in heads_of(model)]
    if not sites:
        raise InputError("the model has no head: all are absent (absent_heads)")
    edits = ablation_edits(
        model, prompts, [(site,) for site in sites], method, reference=reference, over=over, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    plans = [{site: edits[site]} for site in sites]
    outcome = sweep(model, prompts, plans, [judged], parts, batch_size=batch_size, confidence=confidence, seed=seed)
    settings = {
        "method": method,
        "over": over if method == "mean" else None,
        "reference_seed": (reference or prompts).seed if method != "zero" else None,
        "metric": judged.name,
        "worse": judged.worse,
        "seed": seed,
        "confidence": confidence,
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
    }
    frame, layers, notes = _tables(outcome, sites, judged, confidence=confidence, seed=seed)
    title = f"Each head's share of its layer's effect on {words(judged.name)} ({method}-ablation)"
    return HeadAssessment(frame, title, settings, (*notes_on_intervals(frame), *notes), layers=layers)


def effective_heads(importance: Float[Tensor, "*layer head"]) -> Float[Tensor, "*layer"]:
    """How many heads each layer really uses: the inverse participation ratio 1 / Σ_h w_h².

    ``importance`` holds non-negative effects of ablating each head, in units of the loss; each row is normalised
    to w = importance / Σ importance. The result lies between 1 (one head does all) and n_heads (all alike).

    Raises:
        InputError: an effect is negative or no number, or a layer's effects are all zero.

    Source: the participation ratio of the shares of Chen, Zhao and Zou 2024; that it counts heads is ours.

    >>> effective_heads(torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0]]))
    tensor([4., 1.])
    """
    if not bool((importance >= 0).all()):
        wrong = importance[~(importance >= 0)][0]
        raise InputError(f"an effect is {float(wrong):.3g}: give effects of at least 0, max(effect, 0) say")
    if not bool(importance.sum(dim=-1).gt(0).all()):
        raise InputError("a layer's effects are all zero: its heads have no shares, leave it out")
    share = importance / importance.sum(dim=-1, keepdim=True)
    return 1 / share.square().sum(dim=-1)


def effective_heads_ends(
    resampled: Float[ndarray, "resample head"], n_prompts: int, *, confidence: float = 0.95
) -> Float[ndarray, "2"]:
    """The ends of the interval of a layer's effective number, from resampled effects; see ``assess_heads``.

    With S₁ = (Σ max(Δ, 0))² and S₂ = Σ max(Δ, 0)², each resample gives (S₁* − 2b₁) / (S₂* − 2b₂), where b is what
    resampling adds: the mean of S* less S of the mean Δ*. Where noise takes all of S₂ it gives the number of heads.
    Cut to 1 … n_heads.

    >>> effects = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (500, 2))
    >>> effective_heads_ends(effects, 100).round(1)
    array([1.5, 1.7])
    """
    square_of_sum = _without_two_biases(lambda effects: np.maximum(effects, 0).sum(axis=-1) ** 2, resampled)
    sum_of_squares = _without_two_biases(lambda effects: (np.maximum(effects, 0) ** 2).sum(axis=-1), resampled)
    n_heads = resampled.shape[1]
    number = np.full(len(resampled), float(n_heads))
    np.divide(square_of_sum, sum_of_squares, out=number, where=sum_of_squares > 0)
    return percentile_ends(number.clip(1, n_heads), n_prompts, confidence=confidence)


def share_ends(
    resampled: Float[ndarray, "resample head"], n_prompts: int, *, confidence: float = 0.95
) -> Float[ndarray, "2 head"]:
    """The ends of the intervals of the heads' shares, from resampled effects; see ``assess_heads``.

    Each resample gives max(Δ_h*, 0) / (T* − 2b), T = Σ max(Δ, 0), with b as in ``effective_heads_ends``, cut to
    0 … 1; none where T* − 2b is not positive.

    >>> share_ends(np.random.default_rng(0).normal([3.0, 1.0], 0.1, (500, 2)), 100).round(2)
    array([[0.71, 0.21],
           [0.79, 0.29]])
    """
    total = _without_two_biases(lambda effects: np.maximum(effects, 0).sum(axis=-1), resampled)[:, None]
    shares = np.full(resampled.shape, np.nan)
    np.divide(np.maximum(resampled, 0), total, out=shares, where=total > 0)
    return percentile_ends(shares.clip(0, 1), n_prompts, confidence=confidence)


def _without_two_biases(
    statistic: Callable[[ndarray], ndarray], resampled: Float[ndarray, "resample head"]
) -> Float[ndarray, "resample"]:
    each = statistic(resampled)
    # Rows in memory order, so that both means round alike: where one head does all, nothing is then left of them.
    mean = np.ascontiguousarray(resampled.T).mean(axis=1)
    return each - 2 * (each.mean() - statistic(mean))


def _tables(
    outcome: SweepOutcome, sites: list[Site], metric: Metric, *, confidence: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    rows: list[dict[str, Any]] = []
    of_layers: list[dict[str, Any]] = []
    notes: list[str] = []
    n_prompts, baseline = int(outcome.n_prompts[0]), float(outcome.baseline[0])
    for layer in sorted({int(site.layer or 0) for site in sites}):
        places = [place for place, site in enumerate(sites) if site.layer == layer]
        harm = metric.worse * np.concatenate([outcome.differences[place] for place in places], axis=1)
        shares = _Shares.of(harm, outcome.counts[:, :1].repeat(len(places), axis=1), confidence, seed)
        for index, place in enumerate(places):
            effect = outcome.effects[place]
            row = {"layer": layer, "head": sites[place].head, "component": str(sites[place]), "metric": metric.name}
            row |= {"baseline": baseline, "ablated": baseline + effect.estimate[0], "delta": effect.estimate[0]}
            row |= {"ci_low": effect.low[0], "ci_high": effect.high[0], "share": shares.share[index]}
            row |= {"share_ci_low": shares.ends[0, index], "share_ci_high": shares.ends[1, index]}
            rows.append(row | {"n_prompts": n_prompts})
        of_layers.append({"layer": layer} | shares.summary([str(sites[place]) for place in places], metric.worse))
        notes += [f"L{layer}: {note}" for note in shares.notes(metric)]
    return pd.DataFrame(rows).astype({"head": "Int64"}), pd.DataFrame(of_layers), notes


@dataclass(frozen=True, eq=False)
class _Shares:
    """The harm of losing each head of one layer, as shares."""

    harm: Float[ndarray, "head"]
    share: Float[ndarray, "head"]
    ends: Float[ndarray, "2 head"]
    number: float
    number_ends: Float[ndarray, "2"]
    clear: bool
    """Whether some head's harm exceeds 0 clearly; True as well where that cannot be asked."""

    @classmethod
    def of(
        cls, harm: Float[ndarray, "prompt head"], counts: Float[ndarray, "prompt head"], confidence: float, seed: int
    ) -> "_Shares":
        estimate = harm.sum(axis=0) / counts.sum(axis=0)
        positive = np.maximum(estimate, 0)
        nothing = np.full(len(estimate), np.nan)
        n_counting = int((counts[:, 0] > 0).sum())
        if not positive.any() or n_counting < 2:
            share = positive / positive.sum() if positive.any() else nothing
            number = float(effective_heads(torch.from_numpy(positive))) if positive.any() else np.nan
            return cls(estimate, share, np.stack([nothing] * 2), number, np.full(2, np.nan), clear=True)
        resampled = resampled_ratios(harm, counts, seed=seed)
        resampled = resampled[~np.isnan(resampled).any(axis=1)]  # where a resample scored nothing
        together = simultaneous_ratio_interval(harm, counts, confidence=confidence, seed=seed)
        return cls(
            harm=estimate,
            share=positive / positive.sum(),
            ends=share_ends(resampled, n_counting, confidence=confidence),
            number=float(effective_heads(torch.from_numpy(positive))),
            number_ends=effective_heads_ends(resampled, n_counting, confidence=confidence),
            clear=bool((together.low > 0).any()),
        )

    def summary(self, components: list[str], worse: int) -> dict[str, Any]:
        """The layer's row, but for its number."""
        known = bool(np.isfinite(self.share).all())
        dominant = int(np.argmax(self.harm))
        return {
            "n_heads": len(components),
            "effective_heads": self.number,
            "ci_low": self.number_ends[0],
            "ci_high": self.number_ends[1],
            "dominant": components[dominant] if known else None,
            "dominant_share": self.share[dominant],
            "n_negative": int((self.harm < 0).sum()),
            "negative": worse * float(np.minimum(self.harm, 0).sum()),
        }

    def notes(self, metric: Metric) -> list[str]:
        """What must be known before the shares are believed."""
        better = f"of {len(self.harm)} heads the model does better without ({metric.name})"
        n_negative = int((self.harm < 0).sum())
        if np.isnan(self.share).any():
            return [f"no head's loss does harm, so there are no shares ({n_negative} {better})"]
        notes = [f"{n_negative} {better}: their shares are 0"] if n_negative else []
        if not self.clear:
            notes.append("no head's effect exceeds 0 clearly, so its shares may be shares of noise")
        return notes


def _figure(result: HeadAssessment) -> go.Figure:
    """Heat map of shares on the left, effective numbers with intervals on the right; the layers are shared."""
    frame, layers = result.frame, result.layers
    n_heads = int(frame["head"].max()) + 1
    shares = frame.pivot(index="layer", columns="head", values="share").reindex(columns=range(n_heads)).to_numpy(float)
    names = [f"L{layer}" for layer in layers["layer"]]
    titles = ("share within the layer", f"effective heads, of {n_heads}")
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.68, 0.32], subplot_titles=titles)
    cells = go.Heatmap(
        x=[f"H{head}" for head in range(n_heads)],
        y=names,
        z=shares,
        zmin=0,
        colorscale="Blues",
        texttemplate="%{z:.2f}",
        xgap=2,
        ygap=2,
        showscale=False,
        hovertemplate="%{y}%{x}: %{z:.3f}<extra></extra>",
    )
    figure.add_trace(cells, col=1, row=1)
    numbers = layers["effective_heads"].to_numpy(dtype=float)
    points = go.Scatter(
        x=numbers,
        y=names,
        mode="markers+text",
        text=["" if np.isnan(number) else f"{number:.1f}" for number in numbers],
        textposition="top center",
        marker={"size": 10, "color": INK},
        error_x=whiskers(layers, "effective_heads"),
        showlegend=False,
    )
    figure.add_trace(points, col=2, row=1)
    figure.add_vline(n_heads, line={"color": MUTED, "dash": "dash", "width": 1}, col=2)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(range=[0.6, n_heads * 1.05], tick0=1, col=2)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure.update_layout(title=plain(result.title), template=look())

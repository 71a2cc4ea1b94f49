"""Which head preprocesses which coordinate of a regression prompt, by what it writes and by what its loss costs."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from plotly.subplots import make_subplots
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.coordinate_regressions import Regressions
from analyses.figures import look, plain
from analyses.metrics import Metric, MetricLike, groups
from analyses.references import MeanOver, Method, ablation_edits
from analyses.result import Result
from analyses.separate_prompts import refuse_same_prompts
from analyses.support_split import split_by_support
from analyses.sweep import sweep
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import Site
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.field_checks import check_whole
from tasks.prompts import Prompts
from tasks.regression_layout import regression_pairs

_SIGNIFICANCE_LEVEL = 0.05
_BAR_BELOW = -0.4  # the colour bar's place, in heights of the maps, below the axis' title


@dataclass(frozen=True, eq=False)
class CoordinateMap(Result):
    """One row per head and coordinate j.

    Columns: layer, head, component, coordinate; r2, ci_low, ci_high (how much of r_j x_j can be read from what the head
    writes); share, share_ci_low, share_ci_high (how much of what it writes is r_j x_j; missing for a head that writes
    nothing); delta_in, delta_out (the head's effect on prompts that have j in their support, and on the others),
    contrast (delta_in − delta_out), contrast_ci_low, contrast_ci_high, p_value (missing where every prompt, or none,
    has j in its support); n_in, n_out (such prompts).
    """

    heads: pd.DataFrame = field(kw_only=True)
    """The rows of ``frame`` at each head's own coordinate: the one that most of what it writes is, by the prompts that
    the regressions were fitted to. A head that writes nothing has no row."""

    value_column = "r2"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "coordinate_map"

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """``frame`` and ``heads``."""
        return {self.name: self.frame, f"{self.name}_heads": self.heads}

    def map(self, column: str = "r2") -> Float[Tensor, "head coordinate"]:
        """One column as a head × coordinate matrix; NaN where a value is missing.

        Raises:
            InputError: the column does not exist.
        """
        if column not in self.frame:
            raise InputError(f"{self.name} has no column {column!r}: choose from {', '.join(self.frame.columns)}")
        table = self.frame.pivot(index="head", columns="coordinate", values=column)
        return torch.tensor(table.to_numpy(dtype=float), dtype=torch.float64)

    def plot(self) -> go.Figure:
        """Three maps: what can be read from each head, what it writes, and what its loss costs by the support."""
        return _figure(self)


def map_coordinates(
    model: HookedModel,
    prompts: Prompts,
    *,
    fit: Prompts,
    layer: int = 0,
    method: Method = "zero",
    metric: MetricLike = "excess_risk",
    n_permutations: int = 2000,
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
) -> CoordinateMap:
    """Does each head of a layer preprocess coordinates of its own, writing r_j x_j for some j?

    r_j = (1/n) Σ_i x_ij y_i over a prompt's n pairs; the candidate of coordinate j at a position is r_j times that
    position's x_j, context and queries alike. o is what the head adds to the residual stream, z W_O. All regressions
    are linear with an intercept, fitted to ``fit`` and scored on ``prompts``, pooled over positions:

    - r2: R² of r_j x_j predicted from o. Whether the coordinate is there to be read, however much else is;
      a head may carry several, or all, with R² near 1.
    - share: R² of o (all its dimensions) predicted from r_j x_j alone. For independent coordinates the shares of a head
      sum to at most 1: they say what the head writes, and are small if it mostly writes something else.
    - contrast: Δ(j in the support) − Δ(j not in it), where Δ is the metric's rise when the head is ablated. A head that
      prepares j is needed where w*_j ≠ 0. Its p-value is two-sided and exact under the null that the head's
      effect does not depend on j: |contrast| among ``n_permutations`` with the supports dealt out anew to the prompts.
      It is that of one row: among many rows some are small by chance. Supports of a fixed size tie coordinates
      together: with j in it, every other is less likely in it, so that other coordinates' contrasts are below 0.

    R² on separate prompts is at most 1 and can be below 0. An untrained model's r2 are not 0, since o holds products of
    x and y whatever the weights: compare with one. Intervals are over prompts.

    Args:
        fit: prompts to fit the regressions to; they must be other ones than ``prompts``.
        layer: whose heads.
        method, reference, over: how a head is ablated, as for ``ablate``.

    Raises:
        InputError: prompts of another layout than "query" or without a known support, a layer that does not exist,
            prompts that serve twice; and as for ``ablate``.

    Source: the map of heads to coordinates is the reading of Chen, Zhao and Zou 2024's first layer, R x with
    R = diag(r) [abs][mem]; the measurements are ours.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> from tasks import SparseRegression
    >>> cfg = HookedTransformerConfig(n_layers=1, n_heads=2, d_model=8, n_ctx=6, d_in=4, d_out=1, attn_only=True,
    ...     attention_dir="query_masked", attn_fn="linear", positional_embedding_type="none")
    >>> task = SparseRegression(d=3, sparsity=1, n_context=5)
    >>> found = map_coordinates(HookedTransformer(cfg), task.sample(60, seed=0), fit=task.sample(60, seed=1))
    >>> found.map().shape
    torch.Size([2, 3])
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    support = _checked(model, prompts, fit, layer)
    check_whole("n_permutations", n_permutations, 1)
    fitted = Regressions.fit(model, fit, layer, batch_size)
    read, wrote = fitted.explained_squares(model, prompts, layer, batch_size)
    r2, share = (ratio_interval(*each, confidence=confidence, seed=seed) for each in (read, wrote))

    judged, whole = Metric.of(metric), list(groups(prompts, None))
    sites = [Site(layer, "z", head) for head in range(model.cfg.n_heads)]  # an absent one has an effect of 0
    edits = ablation_edits(
        model, prompts, [(site,) for site in sites], method, reference=reference, over=over, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    plans = [{site: edits[site]} for site in sites]
    outcome = sweep(model, prompts, plans, [judged], whole, batch_size=batch_size, confidence=confidence, seed=seed)
    effects = np.concatenate(outcome.differences, axis=1)
    split = split_by_support(
        effects, outcome.counts, support, n_permutations=n_permutations, confidence=confidence, seed=seed
    )

    frame = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "component": str(site),
            "coordinate": j,
            "r2": r2.estimate[place],
            "ci_low": r2.low[place],
            "ci_high": r2.high[place],
            "share": share.estimate[place],
            "share_ci_low": share.low[place],
            "share_ci_high": share.high[place],
        }
        | {column: values[head, j] for column, values in split.items()}
        for head, site in enumerate(sites)
        for j in range(support.shape[1])
        for place in [head * support.shape[1] + j]
    )
    own = [head * support.shape[1] + j for head, j in enumerate(fitted.own_coordinate) if j is not None]
    settings = {
        "layer": layer,
        "method": method,
        "over": over if method == "mean" else None,
        "reference_seed": (reference or prompts).seed if method != "zero" else None,
        "metric": judged.name,
        "n_permutations": n_permutations,
        "fit_seed": fit.seed,
        "n_fit_prompts": len(fit),
        "seed": seed,
        "confidence": confidence,
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
    }
    title = f"Coordinates that the heads of L{layer} write and serve"
    heads = frame.iloc[own].reset_index(drop=True)
    return CoordinateMap(frame, title, settings, _notes(frame, fitted), heads=heads)


def _checked(model: HookedModel, prompts: Prompts, fit: Prompts, layer: int) -> Bool[ndarray, "prompt d"]:
    """The prompts' supports."""
    if not len(prompts):
        raise InputError("prompts holds 0 prompts: sample some")
    if not 0 <= layer < model.cfg.n_layers:
        raise InputError(f"layer {layer} does not exist: the model has layers 0 to {model.cfg.n_layers - 1}")
    refuse_same_prompts(fit, prompts, "fit")
    (x, _, _), (x_fit, _, _) = regression_pairs(prompts), regression_pairs(fit)
    if x.shape[-1] != x_fit.shape[-1]:
        raise InputError(f"fit has {x_fit.shape[-1]} coordinates, prompts {x.shape[-1]}: sample both from one task")
    if "support" not in prompts.latents:
        raise InputError(
            "the prompts have no latent 'support' (where w* is not 0): make them with SparseRegression.sample"
        )
    return prompts.latents["support"].bool().numpy(force=True)


def _notes(frame: pd.DataFrame, fitted: Regressions) -> tuple[str, ...]:
    notes = []
    idle = [f"H{head}" for head, own in enumerate(fitted.own_coordinate) if own is None]
    if idle:
        notes.append(f"{', '.join(idle)} of L{frame['layer'].iloc[0]} write nothing, or always the same")
    absent = frame.loc[frame["r2"].isna(), "coordinate"].unique()
    if len(absent):
        notes.append(
            f"coordinate {', '.join(map(str, absent))}: always 0 in these prompts, so that nothing can be read"
        )
    always = frame.loc[frame["contrast"].isna(), "coordinate"].unique()
    if len(always):
        named = ", ".join(map(str, always))
        notes.append(f"coordinate {named}: in every prompt's support, or in none, so that no effect can be split by it")
    return tuple(notes)


def _figure(result: CoordinateMap) -> go.Figure:
    maps = [
        ("r2", "R² of r<sub>j</sub>x<sub>j</sub> read from the head"),
        ("share", "its share of what the head writes"),
    ]
    maps.append(("contrast", "effect: j in the support − not"))
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=[title for _, title in maps])
    heads = list(dict.fromkeys(result.frame["component"]))
    clear = (result.map("p_value") <= _SIGNIFICANCE_LEVEL).numpy()
    for column, (name, _) in enumerate(maps, start=1):
        values = result.map(name).numpy()
        of_effects = name == "contrast"
        cells = go.Heatmap(
            x=[str(j) for j in sorted(result.frame["coordinate"].unique())],
            y=heads,
            z=values,
            text=np.where(clear, "*", "") if of_effects else None,
            texttemplate="%{text}" if of_effects else None,
            colorscale="RdBu_r" if of_effects else "Blues",
            zmid=0 if of_effects else None,
            zmin=None if of_effects else 0,
            zmax=None if of_effects else 1,
            colorbar={"orientation": "h", "thickness": 10, "len": 0.29, "x": (column - 0.5) / 3, "y": _BAR_BELOW},
            xgap=1,
            ygap=1,
        )
        figure.add_trace(cells, row=1, col=column)
        figure.update_xaxes(title_text="coordinate j", type="category", showgrid=False, row=1, col=column)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    note = f"* p ≤ {_SIGNIFICANCE_LEVEL}, each alone"
    return figure.update_layout(title=f"{plain(result.title)} ({note})", template=look())

"""How much of a metric each head is answerable for: directly, by gradients, or by Shapley values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.attribution_figures import scatter_of_methods
from analyses.contributions import Contributions
from analyses.direct_attribution import direct_attributions, direct_contributions
from analyses.figures import effect_figure
from analyses.gradient_attribution import gradient_contributions, integrated_contributions
from analyses.gradients import refuse_flat
from analyses.metrics import Group, Metric, MetricLike, groups, loss_unit
from analyses.references import EditOfRows, ablation_edits
from analyses.result import Result, notes_on_intervals
from analyses.shapley_attribution import default_permutations, shapley_contributions
from analyses.sweep import sweep
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts

__all__ = ["AttributionResult", "attribute_heads", "direct_attributions"]

AttributionMethod = Literal["direct", "gradient", "integrated", "shapley"]
Reference = Literal["zero", "mean", "counterfactual"]
_DEFAULT_STEPS = 32
# which of the arguments beside metric and by each method takes
_TAKES = {
    "direct": (),
    "gradient": ("reference", "layers", "totals"),
    "integrated": ("reference", "layers", "n_steps", "totals"),
    "shapley": ("reference", "layers", "n_permutations", "totals"),
}


@dataclass(frozen=True, eq=False)
class AttributionResult(Result):
    """How much of a metric each component is answerable for, by one of several methods, in the metric's own units.

    Columns: layer (missing for embeddings, positions and the unembedding's bias), head, component, method, metric,
    the label split by (if any), attribution, ci_low, ci_high, n_prompts. ``method="direct"`` says what a component
    adds to the logit; the other methods what taking it away changes, which has the opposite sign.
    """

    totals: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What attributions sum to: columns layer (missing: all layers), method, metric, the label, attributed (the sum),
    measured (what taking all of these heads away together really changes) and error (their difference). The error is
    what a gradient misses, what integration leaves over (completeness), or rounding (Shapley values, efficiency).
    Empty for ``method="direct"``, which refuses a model where its sum is not the logit."""

    value_column = "attribution"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "attribution"

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """The attributions, and what they sum to."""
        return super().tables if self.totals.empty else {**super().tables, f"{self.name}_totals": self.totals}

    def plot(self) -> go.Figure:
        """Attribution of each component with its interval."""
        return effect_figure(
            self.frame,
            value="attribution",
            title=self.title,
            by=self.settings.get("by"),
            loss_unit=self.settings["loss_unit"],
        )

    def plot_against(self, other: "AttributionResult") -> go.Figure:
        """Each head's attribution here (across) against another method's (up), both with intervals.

        Raises:
            InputError: the two have no component in common, or split by different labels.
        """
        by = self.settings.get("by")
        if by != other.settings.get("by"):
            raise InputError(f"one result is split by {by!r}, the other by {other.settings.get('by')!r}: split alike")
        mine, theirs = (f"{one.settings['method']} ({one.settings['metric']})" for one in (self, other))
        keys = ["component"] if by is None else ["component", by]
        return scatter_of_methods(self.frame, other.frame, axes=(mine, theirs), keys=keys)


def attribute_heads(
    model: HookedModel,
    prompts: Prompts,
    *,
    method: AttributionMethod = "direct",
    metric: Literal["logit"] | MetricLike = "logit",
    by: str | None = None,
    reference: Reference | None = None,
    layers: Sequence[int] | None = None,
    n_steps: int | None = None,
    n_permutations: int | None = None,
    totals: bool | None = None,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> AttributionResult:
    """How much of a metric is each head answerable for, as a mean over scored positions?

    "direct": a component that writes c to the residual stream adds c · (W_U[:, target] − W_U[:, wrong]) to the logit
    difference (without the second term for ``metric="logit"``). With a final LayerNorm the direction is taken
    through it at the scale that the prompt gave. Embeddings, positions, MLPs and biases have rows of their own, and
    the rows sum to the logit; what a component does through later layers is not seen.

    The other methods ask what changes when heads' outputs z move to a ``reference``, through all later layers. A head
    that helps has a positive "direct" share of the logit, and a negative value by these: what is lost without it.

    - "gradient" (attribution patching): Σ_pos (z_reference − z) · ∂metric/∂z, the ablation's effect to first order,
      from one pass forward and one back. A layer's heads sum to the derivative along its way to the reference.
    - "integrated" (integrated gradients): the same with the gradient averaged along the straight line on which the
      heads of a layer move together. They sum to what moving the whole layer changes (completeness), up to the
      error of ``n_steps`` midpoints.
    - "shapley": the mean over all orders of what the head's ablation adds to that of the heads before it. The heads
      of all chosen layers sum to what ablating all of them changes (efficiency). Over all 2^n subsets for at most
      12 heads, else over drawn permutations, whose chance the intervals then include.

    ``result.totals`` holds these sums beside what was measured, by a pass for every layer (or for all heads together).

    Args:
        metric: "logit", the mean logit of the answer, or a metric of ``ablate``; "direct" takes "logit" and
            "logit_diff", and gradients need one that has a gradient (not "accuracy").
        by: a label of the prompts that splits the attribution.
        reference: "zero" (the default), "mean" over these prompts at each position, or "counterfactual", z on the
            prompt's own counterfactual.
        layers: which layers' heads are attributed to; all by default.
        n_steps: gradients per layer for "integrated", 32 by default.
        totals: False leaves ``result.totals`` out, which saves those passes.
        n_permutations: orders drawn for "shapley"; by default none up to 12 heads, and 200 above.

    Raises:
        InputError: an argument that the method does not take; a metric, label, layer or reference that does not
            exist; for "direct" real-valued targets, a ``logit_diff`` without ``wrong`` answers, or a model whose
            components do not sum to the logit, because it computes more than it shows (a soft cap, say).

    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Nanda (2023), Attribution
    Patching; Sundararajan, Taly and Yan (2017), Axiomatic Attribution for Deep Networks; Shapley (1953) [mem].

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> attribute_heads(model, prompts).frame["component"].tolist()
    ['embed', 'pos_embed', 'L0H0', 'bias']
    >>> attribute_heads(model, prompts, method="shapley", metric="loss").frame["component"].tolist()
    ['L0H0']
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    options = {"reference": reference, "layers": layers, "n_steps": n_steps, "n_permutations": n_permutations}
    options["totals"] = totals
    _refuse_untaken(method, options)
    settings: dict[str, Any] = {"method": method, "by": by, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed, "loss_unit": loss_unit(prompts)}
    if method == "direct":
        parts = list(groups(prompts, by))
        if not isinstance(metric, str):
            raise InputError("method = 'direct' adds up logits: choose metric = 'logit' or 'logit_diff'")
        contributions = direct_contributions(model, prompts, metric, parts, batch_size)
        frame = contributions.frame(parts, method=method, metric=metric, by=by, confidence=confidence, seed=seed)
        what = "the answer's logit" if metric == "logit" else "the answer's logit minus the wrong answer's"
        title = f"Direct contributions to {what}"
        return AttributionResult(frame, title, settings | {"metric": metric}, notes_on_intervals(frame))
    judged = Metric("logit", _logit, worse=-1) if metric == "logit" else Metric.of(metric)
    parts = list(groups(prompts, by))
    taken = _checked_options(model, method, options)
    heads = [Site(layer, "z", head) for layer in taken["layers"] for head in range(model.cfg.n_heads)]
    edits = ablation_edits(model, prompts, [tuple(heads)], taken["reference"], batch_size=batch_size)
    edits = {site: edits[site] for site in heads}  # in the heads' order
    if method == "gradient":
        refuse_flat(judged, method, "'integrated' or 'shapley'")
        found = gradient_contributions(model, prompts, judged, parts, edits, batch_size=batch_size)
    elif method == "integrated":
        found = integrated_contributions(
            model, prompts, judged, parts, edits, n_steps=taken["n_steps"], batch_size=batch_size
        )
    else:
        found = shapley_contributions(
            model, prompts, judged, parts, edits, n_permutations=taken["n_permutations"],
            confidence=confidence, seed=seed, batch_size=batch_size,
        )  # fmt: skip
    frame = found.frame(parts, method=method, metric=judged.name, by=by, confidence=confidence, seed=seed)
    together = [heads] if method == "shapley" else [[one for one in heads if one.layer == k] for k in taken["layers"]]
    measured = pd.DataFrame()
    if totals is not False:
        measured = _totals(model, prompts, judged, parts, found, edits, together, method, by, batch_size)
    title = f"{_TITLES[method]} of heads: {judged.name} ({taken['reference']} reference)"
    notes = notes_on_intervals(frame)
    if not measured.empty:
        notes = (*notes, _note_on_totals(measured, method))
    return AttributionResult(frame, title, settings | taken | {"metric": judged.name}, notes, totals=measured)


_TITLES = {"gradient": "Attribution patching", "integrated": "Integrated gradients", "shapley": "Shapley values"}


def _logit(outputs: Tensor, prompts: Prompts, _clean: Tensor) -> tuple[Tensor, Tensor]:
    if prompts.targets.is_floating_point():
        raise InputError("metric = 'logit' needs token targets: these prompts have real-valued ones, use 'loss'")
    of_target = outputs.gather(-1, prompts.targets.unsqueeze(-1)).squeeze(-1)
    return torch.where(prompts.scored, of_target, 0.0).sum(dim=1), prompts.scored.sum(dim=1)


def _refuse_untaken(method: str, options: Mapping[str, Any]) -> None:
    if method not in _TAKES:
        raise InputError(f"method = {method!r} is unknown: choose {', '.join(map(repr, _TAKES))}")
    for name, value in options.items():
        if value is not None and name not in _TAKES[method]:
            takers = " or ".join(repr(other) for other, takes in _TAKES.items() if name in takes)
            raise InputError(f"method = {method!r} takes no {name}: drop it, or choose method = {takers}")


def _checked_options(model: HookedModel, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the method takes, with defaults in the place of None."""
    reference, n_steps, n_permutations = (options[name] for name in ("reference", "n_steps", "n_permutations"))
    if isinstance(reference, Prompts):
        raise InputError("reference is a Prompts: say what stands for a head, 'zero', 'mean' or 'counterfactual'")
    if reference not in (None, "zero", "mean", "counterfactual"):
        raise InputError(f"reference = {reference!r} is unknown: choose 'zero', 'mean' or 'counterfactual'")
    if n_steps is not None and n_steps < 1:
        raise InputError(f"n_steps = {n_steps}: an integral needs at least 1 step")
    if n_permutations is not None and n_permutations < 2:
        raise InputError(f"n_permutations = {n_permutations}: an interval over permutations needs at least 2")
    checked = {"reference": reference or "zero", "layers": _checked_layers(model, options["layers"])}
    if method == "integrated":
        checked["n_steps"] = n_steps or _DEFAULT_STEPS
    if method == "shapley":
        checked["n_permutations"] = n_permutations or default_permutations(len(checked["layers"]) * model.cfg.n_heads)
    return checked


def _checked_layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(model.cfg.n_layers))
    if not len(layers):
        raise InputError("layers is empty: name at least one, or leave it out for all")
    if len(set(layers)) < len(layers):
        raise InputError(f"layers = {list(layers)} names a layer twice: name each once")
    for layer in layers:
        Site(layer, "z", 0).check(model.cfg.n_layers, model.cfg.n_heads)
    return sorted(layers)


def _totals(
    model: HookedModel,
    prompts: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    found: Contributions,
    edits: Mapping[Site, EditOfRows],
    together: Sequence[Sequence[Site]],
    method: str,
    by: str | None,
    batch_size: int,
) -> pd.DataFrame:
    """What is attributed to sets of heads, beside what ablating each set changes."""
    plans = [{site: edits[site] for site in sites} for sites in together]
    outcome = sweep(model, prompts, plans, [metric], parts, batch_size=batch_size, confidence=0.95, seed=0)
    names = [component for component, *_ in found.components]
    rows = []
    for sites, effect in zip(together, outcome.effects, strict=True):
        chosen = [names.index(str(site)) for site in sites]
        attributed = found.sums[:, chosen].sum(axis=(0, 1)) / found.counts.sum(axis=0)
        for j, part in enumerate(parts):
            row: dict[str, Any] = {"layer": sites[0].layer if method != "shapley" else None, "method": method}
            row |= {"metric": metric.name} | ({} if by is None else {by: part.value})
            row |= {"attributed": attributed[j], "measured": effect.estimate[j]}
            rows.append(row | {"error": attributed[j] - effect.estimate[j]})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _note_on_totals(totals: pd.DataFrame, method: str) -> str:
    largest = float(totals["error"].abs().max())
    of = "all heads" if method == "shapley" else "a layer's heads"
    return f"attributions to {of} miss what ablating them together changes by up to {largest:.2g} (see .totals)"

"""What happens to the model when a head, an MLP, a layer or any set of sites is taken away."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.figures import effect_figure
from analyses.memory_budget import PROBED, MemoryBudget, batch_size_within
from analyses.metrics import Group, Metric, MetricLike, as_metrics, groups, loss_unit
from analyses.references import MeanOver, Method, Target, ablation_edits, method_name, site_activations
from analyses.result import Result, frame_of_rows, notes_on_intervals
from analyses.sweep import SweepOutcome, sweep
from interp.edits import Edit
from interp.interventions import Receipt
from interp.model_adapter import HookedModel, heads_of, reached_points, refuse_other
from interp.position_masks import Where, mask_of
from interp.sites import Site, SiteLike
from tasks.errors import InputError
from tasks.prompts import Prompts

_LAYER = re.compile(r"L(\d+)")


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """Effects of ablations: ``delta`` is the metric after minus before.

    Columns: layer, head (missing for what is no single head), component, metric, the label split by (if any),
    baseline, ablated, delta, ci_low, ci_high (of delta, over prompts, paired), n_prompts, and the ablated value
    once more under its metric's own name.
    """

    receipts: tuple[tuple[Receipt, ...], ...] = field(default=())
    """Per ablation, one receipt for each of its sites."""

    value_column = "delta"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "ablation"

    def plot(self) -> go.Figure:
        """Effect of each ablation with its interval, one panel per metric."""
        return effect_figure(
            self.frame,
            value="delta",
            title=self.title,
            by=self.settings.get("by"),
            loss_unit=self.settings["loss_unit"],
        )


def ablate_heads(model: HookedModel, prompts: Prompts, **how: Any) -> AblationResult:
    """How much worse the model gets without each head: one row per head. Arguments as for ``ablate``.

    >>> import torch
    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> ablate_heads(model, prompts, method="zero").frame["component"].tolist()
    ['L0H0', 'L1H0']
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    heads = [Site(layer, "z", head) for layer, head in heads_of(model)]
    return ablate(model, prompts, heads, **how)


def ablate_mlps(model: HookedModel, prompts: Prompts, **how: Any) -> AblationResult:
    """How much worse the model gets without each feed-forward part. Arguments as for ``ablate``.

    Raises:
        InputError: the model has none; and as for ``ablate``.
    """
    reached = reached_points(model)
    mlps = [site for layer in range(model.cfg.n_layers) if (site := Site(layer, "mlp")).hook_name in reached]
    if not mlps:
        raise InputError("the model has no feed-forward part in any layer: ablate heads or layers instead")
    return ablate(model, prompts, mlps, **how)


def ablate_layers(model: HookedModel, prompts: Prompts, **how: Any) -> AblationResult:
    """How much worse the model gets without each whole layer (attention and MLP). Arguments as for ``ablate``."""
    refuse_other(model)
    refuse_no_prompts(prompts)
    return ablate(model, prompts, [f"L{layer}" for layer in range(model.cfg.n_layers)], **how)


def ablate(
    model: HookedModel,
    prompts: Prompts,
    sites: Iterable[SiteLike | Sequence[SiteLike]],
    *,
    method: Method | Edit = "mean",
    where: Where | None = None,
    metric: MetricLike | Sequence[MetricLike] = "loss",
    by: str | None = None,
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
    memory_budget: MemoryBudget | None = None,
) -> AblationResult:
    """What each ablation does to the metric, with intervals over prompts (paired: same prompts in both arms).

    Args:
        sites: what to ablate, one after the other (``L0`` is a whole layer); a list or tuple of sites within it is
            ablated together.
        method: "zero" writes zeros; "mean" the mean over ``reference`` prompts (default: the prompts themselves),
            per position (``over="batch"``) or one for all positions (``over="batch_pos"``); "resample" the
            activation of another reference prompt, by a derangement drawn with ``seed``; "counterfactual" that of the
            prompt's own counterfactual. Any edit will do as well (``interp.edits``: Add, Scale, ProjectOut, Clamp …).
        where: the positions of each prompt that are edited, all by default: a mask [batch, pos], or a label of the
            prompts (``"trigger"``, or with values ``("segment", "in_context")``).
        metric: one of "loss", "accuracy", "excess_risk", "logit_diff", "prob", "kl", a function (outputs, prompts) ->
            [batch], or several of them.
        by: a label of the prompts that splits the effect, e.g. "segment".
        batch_size: prompts per pass, at most.
        memory_budget: bytes, or "2GB" say, that the sweep may take on top of the model and the prompts; prompts per
            pass are then as many as fit, measured on two of them.

    Raises:
        InputError: a site, method, metric, label or position that does not exist, no prompts, reference prompts that
            cannot serve, an ``over`` without a mean, or a memory budget that does not hold one prompt.
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if isinstance(sites, str) or not isinstance(sites, Iterable):
        raise InputError(f"sites = {sites!r} is no list of sites: give one, ['L1H0'] say")
    targets = [as_target(model, sites_together) for sites_together in sites]
    if not targets:
        raise InputError("sites is empty: name at least one site, L1H0 say")
    if not len(prompts):
        raise InputError("prompts holds 0 prompts: sample some")
    metrics, parts = as_metrics(metric), list(groups(prompts, by))
    mask = None if where is None else mask_of(prompts, where)

    def measure(some: Prompts, source: Prompts | None, size: int) -> SweepOutcome:
        edits = ablation_edits(model, some, targets, method, reference=source, over=over, seed=seed, batch_size=size)
        plans = [{site: edits[site] for site in target} for target in targets]
        return sweep(
            model, some, plans, metrics, parts, mask=mask, batch_size=size, confidence=confidence, seed=seed,
            stacked=memory_budget is None,
        )  # fmt: skip

    if memory_budget is not None:
        batch_size = batch_size_within(
            memory_budget, batch_size, len(prompts),
            lambda: measure(prompts[:PROBED], None if reference is None else reference[:PROBED], PROBED),
            kept_per_prompt=_kept_per_prompt(model, prompts, targets, method),
        )  # fmt: skip
    outcome = measure(prompts, reference, batch_size)
    settings = {
        "method": method if isinstance(method, str) else repr(method),
        "where": "mask" if isinstance(where, Tensor) else where,
        "over": over if method == "mean" else None,
        "reference_seed": (reference or prompts).seed if method in ("mean", "resample") else None,
        "by": by,
        "seed": seed,
        "confidence": confidence,
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
        "loss_unit": loss_unit(prompts),
    }
    frame = _frame(outcome, targets, metrics, parts, by)
    title = f"Effect of {method_name(method)}-ablation on {' and '.join(one.name for one in metrics)}"
    return AblationResult(frame, title, settings, notes_on_intervals(frame), receipts=outcome.receipts)


def _kept_per_prompt(model: HookedModel, prompts: Prompts, targets: Sequence[Target], method: Method | Edit) -> float:
    """Bytes of the activations that are kept of every prompt for others to be given."""
    if method not in ("resample", "counterfactual"):
        return 0.0
    sites = {site for target in targets for site in target}
    kept = site_activations(model, prompts[:1], sorted(sites, key=str), 1)
    return 2.0 * sum(each.nbytes for each in kept.values())  # in parts, and joined


def as_target(model: HookedModel, together: SiteLike | Sequence[SiteLike]) -> Target:
    """The sites that are ablated together, checked against the model."""
    several = isinstance(together, list) or (
        isinstance(together, tuple) and not (len(together) == 2 and isinstance(together[1], int))
    )
    written: list[Any] = list(together) if several else [together]  # pyright: ignore[reportArgumentType]
    reached = reached_points(model)
    target = tuple(site for one in written for site in _sites_of(one, reached))
    if not target:
        raise InputError("a set of sites is empty: name at least one site, L1H0 say")
    if len(set(target)) < len(target):
        raise InputError(f"the set {'+'.join(map(str, target))} names a site twice: name each once")
    there = set(heads_of(model))
    for site in target:
        site.check(model.cfg.n_layers, model.cfg.n_heads)
        if site.layer is not None and site.head is not None and (site.layer, site.head) not in there:
            raise InputError(f"{site} is absent from this model (absent_heads), so that nothing can be taken away")
        if site.component == "mlp" and site.hook_name not in reached:
            raise InputError(f"{site} does not exist: L{site.layer} has no feed-forward part")
        if site.hook_name not in reached:
            raise InputError(f"{site} does not exist: the model has no hook point {site.hook_name}")
    return target


def _sites_of(written: Any, reached: frozenset[str]) -> list[Site]:
    """A site as written, or for ``L0`` the attention and (if it has one) the feed-forward part of that layer."""
    whole = _LAYER.fullmatch(written) if isinstance(written, str) else None
    if whole is None:
        return [Site.parse(written)]
    layer = int(whole[1])
    mlp = Site(layer, "mlp")
    return [Site(layer, "attn"), *([mlp] if mlp.hook_name in reached else [])]


def _frame(
    outcome: SweepOutcome, targets: Sequence[Target], metrics: Sequence[Metric], parts: Sequence[Group], by: str | None
) -> pd.DataFrame:
    """One row per ablation, metric and group."""
    rows = []
    for target, effect in zip(targets, outcome.effects, strict=True):
        kinds = ((metric, group) for metric in metrics for group in parts)
        for k, (metric, group) in enumerate(kinds):
            ablated = outcome.baseline[k] + effect.estimate[k]
            row: dict[str, Any] = {
                "layer": target[0].layer,
                "head": target[0].head if len(target) == 1 else None,
                "component": _component(target),
                "metric": metric.name,
            }
            if by is not None:
                row[by] = group.value
            row |= {"baseline": outcome.baseline[k], "ablated": ablated, "delta": effect.estimate[k]}
            row |= {"ci_low": effect.low[k], "ci_high": effect.high[k], "n_prompts": int(outcome.n_prompts[k])}
            row[metric.name] = ablated
            rows.append(row)
    return frame_of_rows(rows)


def _component(target: Target) -> str:
    layers = {site.layer for site in target}
    if len(target) > 1 and len(layers) == 1 and all(site.component in ("attn", "mlp") for site in target):
        return f"L{target[0].layer}"
    return "+".join(str(site) for site in target)

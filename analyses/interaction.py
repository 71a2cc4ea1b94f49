"""Do heads stand in for each other? Joint ablation against the sum of single ones, for every pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.ablation import as_target
from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.metrics import MetricLike, as_metrics, groups
from analyses.references import MeanOver, Method, ablation_edits
from analyses.result import Result
from analyses.sweep import sweep
from interp.model_adapter import HookedModel, heads_of, refuse_other
from interp.sites import Site, SiteLike
from interp.statistics import simultaneous_ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts


@dataclass(frozen=True, eq=False)
class Interaction(Result):
    """Interaction of pairs of sites: joint effect minus the sum of the single effects.

    For a loss, a positive interaction is redundancy (each stands in for the other, so losing both costs more than
    the sum), a negative one a shared path (losing either already breaks it); for an accuracy the signs turn round.
    Columns: first, second, metric, the label split by (if any), delta_first, delta_second, delta_joint,
    interaction, ci_low, ci_high (of the interaction; all intervals of a metric hold together), n_prompts.
    """

    value_column = "interaction"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "interaction"

    def plot(self) -> go.Figure:
        """Interaction of every pair (first metric, first part); an interval that excludes 0 has a star."""
        first = self.frame[self.frame["metric"] == self.frame["metric"].iloc[0]]
        by = self.settings.get("by")
        if by is not None:
            first = first[first[by] == first[by].iloc[0]]
        clear = (first["ci_low"] > 0) | (first["ci_high"] < 0)
        cells = go.Heatmap(
            x=first["second"],
            y=first["first"],
            z=first["interaction"],
            text=clear.map({True: "*", False: ""}),
            texttemplate="%{text}",
            colorscale="RdBu_r",
            zmid=0,
            colorbar={"title": f"interaction ({first['metric'].iloc[0]})"},
        )
        return go.Figure(cells).update_layout(title=self.title, template="plotly_white")


def ablate_pairs(
    model: HookedModel,
    prompts: Prompts,
    sites: Sequence[SiteLike] | None = None,
    *,
    method: Method = "mean",
    metric: MetricLike | Sequence[MetricLike] = "loss",
    by: str | None = None,
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
) -> Interaction:
    """Which pairs of heads are redundant, or share a path: Δ(a, b) − Δ(a) − Δ(b), with simultaneous intervals.

    ``sites`` defaults to every head; the other arguments are those of ``ablate``.

    Raises:
        InputError: fewer than two different sites; and as for ``ablate``.

    >>> import torch
    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> ablate_pairs(model, prompts, method="zero").frame[["first", "second"]].values.tolist()
    [['L0H0', 'L1H0']]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if isinstance(sites, str):
        raise InputError(f"sites = {sites!r} is one site: give a list of at least 2")
    every_head = [Site(layer, "z", head) for layer, head in heads_of(model)]
    singles = [as_target(model, site)[0] for site in (every_head if sites is None else sites)]
    if len(set(singles)) < 2 or len(set(singles)) < len(singles):
        raise InputError(f"sites = {[str(site) for site in singles]}: an interaction needs at least 2 different sites")
    metrics, parts = as_metrics(metric), list(groups(prompts, by))
    pairs = list(combinations(range(len(singles)), 2))
    edits = ablation_edits(
        model, prompts, [tuple(singles)], method, reference=reference, over=over, seed=seed, batch_size=batch_size
    )
    plans = [{site: edits[site]} for site in singles]
    plans += [{singles[a]: edits[singles[a]], singles[b]: edits[singles[b]]} for a, b in pairs]
    outcome = sweep(model, prompts, plans, metrics, parts, batch_size=batch_size, confidence=confidence, seed=seed)
    alone, joint = outcome.differences[: len(singles)], outcome.differences[len(singles) :]
    rows = []
    for k, (one, part) in enumerate((one, part) for one in metrics for part in parts):
        contrasts = [both[:, k] - alone[a][:, k] - alone[b][:, k] for both, (a, b) in zip(joint, pairs, strict=True)]
        counts = np.repeat(outcome.counts[:, k : k + 1], len(pairs), axis=1)
        interval = simultaneous_ratio_interval(np.stack(contrasts, axis=1), counts, confidence=confidence, seed=seed)
        for index, (a, b) in enumerate(pairs):
            row = {"first": str(singles[a]), "second": str(singles[b]), "metric": one.name}
            row |= {} if by is None else {by: part.value}
            row |= {
                "delta_first": outcome.effects[a].estimate[k],
                "delta_second": outcome.effects[b].estimate[k],
                "delta_joint": outcome.effects[len(singles) + index].estimate[k],
                "interaction": interval.estimate[index],
                "ci_low": interval.low[index],
                "ci_high": interval.high[index],
                "n_prompts": int(outcome.n_prompts[k]),
            }
            rows.append(row)
    settings = {"method": method, "by": by, "seed": seed, "confidence": confidence, "n_prompts": len(prompts)}
    settings |= {"prompts_seed": prompts.seed, "intervals": "simultaneous over pairs"}
    return Interaction(pd.DataFrame(rows), f"Interaction of pairs under {method}-ablation", settings)

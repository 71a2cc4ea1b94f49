"""What each layer knows, linearly: probes fitted on one set of prompts and judged on another, beside two controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.layer_figures import layer_lines, layer_map
from analyses.linear_probe import RIDGES, auc_by_prompt, checked_ridges, fit_discriminant, fit_ridge
from analyses.probe_features import (
    At,
    features_at,
    held_out_rows,
    positions_read,
    prompt_of_rows,
    residual_sites,
)
from analyses.probe_targets import ProbeTarget, TargetLike, probe_target
from analyses.result import Result, notes_on_intervals
from analyses.separate_prompts import refuse_same_prompts
from analyses.untrained import NO_TWIN, UNTRAINED_SEED, untrained_twin
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import Site, SiteLike
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts

MODEL, SHUFFLED, UNTRAINED = "model", "shuffled targets", "untrained model"
_N_SHUFFLES = 8  # a single one scatters about 0 by 2 / √(fitting rows), more than an interval over test prompts says


@dataclass(frozen=True, eq=False)
class ProbeResult(Result):
    """How well a linear probe at each site reads each target out of prompts it was not fitted on.

    Columns: target, probe ("model", "shuffled targets", "untrained model"), layer, component (the site), metric,
    value, ci_low, ci_high, n_prompts, ridge (as chosen). Metrics: "r2" and "squared_error" of real targets and of
    booleans (which also have "auc"), "accuracy" of classes.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "probes"

    def plot(self) -> go.Figure:
        """One target: every metric by site, with the controls. Several: R² (accuracy of classes) by site and target."""
        if self.frame["target"].nunique() == 1:
            return layer_lines(self.frame, series="probe", title=self.title, panels="metric")
        shown = self.frame["metric"].isin(["r2", "accuracy"]) & (self.frame["probe"] == MODEL)
        rows = self.frame.loc[shown].reset_index(drop=True)
        best = (rows["value"] == rows.groupby("target")["value"].transform("max")) & (rows["ci_low"] > 0)
        what = "R²" if (rows["metric"] == "r2").all() else "R², of classes the accuracy"
        title = f"{self.title}: {what} (framed: each target's best site)"
        return layer_map(rows, columns="target", value="value", title=title, framed=best)


def probe_layers(
    model: HookedModel,
    prompts: Prompts,
    target: TargetLike | Mapping[str, TargetLike],
    *,
    test_prompts: Prompts,
    sites: Sequence[SiteLike] | None = None,
    at: At = "scored",
    ridge: float | Sequence[float] = RIDGES,
    untrained_seed: int | None = UNTRAINED_SEED,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> ProbeResult:
    """What can be read linearly from each layer: one probe per site and target, fitted on ``prompts``.

    Real targets: ridge regression with an intercept; on ``test_prompts`` R² = 1 − SSE / SST, pooled over the target's
    numbers, with SST about their test means, and the squared error (of a prediction, the sum over its numbers; with
    target "answer" this is a risk, in squared units of y). Booleans: the same on 0 and 1, and the area under the ROC
    curve. Integers: linear discriminant analysis and its accuracy. Intervals are over test prompts; positions of one
    prompt are never taken for independent. The probe on shuffled targets is the mean of eight, each fitted to the
    targets of other rows.

    What a linear probe cannot see is not absent: a query's residual stream may hold r ∘ x ("preprocessed") and so all
    that is known of w*, though neither r ("correlation") nor w* itself is linear in it.

    Args:
        target: "answer" (without its noise where that is known), a label or latent of the prompts ("w_star",
            "support", "position"), "correlation" (r = Xᵀy / n), "preprocessed" (r ∘ x), a function of the prompts such
            as ``GradientDescent(steps=3)``, or two tensors, for ``prompts`` and ``test_prompts``; or several by name.
            A function gives [batch, pos] or [batch, pos, k], or [batch, 1, k] for a fact about the whole prompt.
        sites: where to read; default: the embedding (L0.resid_pre) and the residual stream after every layer.
        at: which positions: "scored", "all" or a function of the prompts that gives a mask [batch, pos].
        ridge: strengths to choose from, in units of the features' mean variance. They are judged on a quarter of the
            fitting prompts that is held out, then the probe is fitted to all of them; a single number is just used.
        untrained_seed: of the twin that serves as control (HookedTransformer only); None for no twin.
        seed: deals out the held-out prompts and the shuffled targets, and resamples prompts.

    Raises:
        InputError: the test prompts are the fitting prompts or share their seed, a target or site that does not
            exist, a target that never varies, or too few prompts.

    Source: linear probes after Alain and Bengio (2016) (from memory); of a regression model's layers, Chen, Zhao and
    Zou 2024 [mem].

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> draw = torch.Generator().manual_seed(0)
    >>> fit, test = (Prompts.from_tensors(torch.randint(5, (40, 6), generator=draw)) for _ in range(2))
    >>> probed = probe_layers(model, fit, lambda prompts: prompts.inputs, test_prompts=test, untrained_seed=None)
    >>> probed.frame.query("probe == 'model'")[["component", "value"]].values.tolist()
    [['L0.resid_pre', 1.0], ['L0.resid_post', 1.0]]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    refuse_same_prompts(prompts, test_prompts, "prompts", "test_prompts")
    ridges = checked_ridges(ridge)
    where = (positions_read(prompts, at, "prompts"), positions_read(test_prompts, at, "test_prompts"))
    named: Mapping[str, TargetLike] = target if isinstance(target, Mapping) else {_name_of(target): target}
    if not named:
        raise InputError("target is empty: name at least one, 'answer' say")
    targets = [probe_target(name, one, (prompts, test_prompts), where) for name, one in named.items()]
    plan = _Plan(targets, *(prompt_of_rows(mask) for mask in where), ridges=ridges, seed=seed)
    reached = residual_sites(model, sites)
    twin = untrained_twin(model, untrained_seed)
    readouts = []
    for probe, source in ((MODEL, model), (UNTRAINED, twin)):
        if source is None:
            continue
        fit, test = (
            features_at(source, part, reached, mask, batch_size)
            for part, mask in zip((prompts, test_prompts), where, strict=True)
        )
        for site in reached:
            readouts += plan.readouts(probe, site, fit.pop(site), test.pop(site))
    frame = _frame(readouts, confidence, seed)
    settings = {
        "at": at if isinstance(at, str) else getattr(at, "__name__", "own mask"),
        "ridge": ridges,
        "untrained_seed": untrained_seed if twin is not None else None,
        "seed": seed,
        "confidence": confidence,
        "n_prompts": len(test_prompts),
        "prompts_seed": test_prompts.seed,
        "n_fit_prompts": len(prompts),
        "fit_prompts_seed": prompts.seed,
    }
    notes = notes_on_intervals(frame)
    if twin is None and untrained_seed is not None:
        notes += (NO_TWIN,)
    title = f"Linear probes for {', '.join(named) if len(named) < 4 else f'{len(named)} targets'}"
    return ProbeResult(frame, title, settings, notes)


def _name_of(target: TargetLike) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "target")


@dataclass(frozen=True, eq=False)
class _Readout:
    """One metric of one probe: per test prompt a sum and a count; the value is ``offset + sign`` · their ratio."""

    facts: dict[str, Any]
    sums: Float[ndarray, "prompt"]
    counts: Float[ndarray, "prompt"]
    offset: float = 0.0
    sign: float = 1.0


class _Plan:
    """What every site's probes share: the targets, which rows are held out, and how rows are shuffled."""

    def __init__(
        self,
        targets: Sequence[ProbeTarget],
        fit_rows: tuple[Int[Tensor, "fit_row"], int],
        test_rows: tuple[Int[Tensor, "test_row"], int],
        *,
        ridges: Sequence[float],
        seed: int,
    ):
        self.targets, self.ridges = targets, ridges
        self.prompt, self.n_test_prompts = test_rows
        rng = np.random.default_rng(seed)
        self.held_out = held_out_rows(*fit_rows, rng)
        self.shuffles = [torch.from_numpy(rng.permutation(len(fit_rows[0]))) for _ in range(_N_SHUFFLES)]

    def readouts(
        self, probe: str, site: Site, fit: Float[Tensor, "fit_row width"], test: Float[Tensor, "test_row width"]
    ) -> Iterator[_Readout]:
        """Every metric of the probes at one site; of the model also those fitted to shuffled targets."""
        facts = {"layer": site.layer, "component": str(site)}
        for target, outputs, ridge in self._fitted(self.targets, fit, test):
            yield from self._judged({"target": target.name, "probe": probe, "ridge": ridge} | facts, target, outputs)
        if probe != MODEL:
            return
        shuffled = [replace(one, fit=one.fit[order]) for one in self.targets for order in self.shuffles]
        drawn: dict[tuple[str, str], list[_Readout]] = {}
        for target, outputs, _ in self._fitted(shuffled, fit, test):
            for one in self._judged(
                {"target": target.name, "probe": SHUFFLED, "ridge": np.nan} | facts, target, outputs
            ):
                drawn.setdefault((target.name, one.facts["metric"]), []).append(one)
        for several in drawn.values():
            yield replace(several[0], sums=np.mean([one.sums for one in several], axis=0))

    def _fitted(
        self, targets: Sequence[ProbeTarget], fit: Tensor, test: Tensor
    ) -> Iterator[tuple[ProbeTarget, Float[Tensor, "test_row k"], float]]:
        """The outputs of each target's probe on the test rows. All real targets are fitted at once."""
        linear = [target for target in targets if target.kind != "class"]
        if linear:
            columns = [target.fit.shape[1] for target in linear]
            joint = torch.cat([target.fit.double() for target in linear], dim=1)
            probe = fit_ridge(fit, joint, self.ridges, self.held_out, columns)
            outputs = probe(test).split(columns, dim=1)
            chosen = probe.ridge.split(columns)
            yield from ((one, out, float(ridge[0])) for one, out, ridge in zip(linear, outputs, chosen, strict=True))
        for target in targets:
            if target.kind == "class":
                n_classes = int(max(target.fit.max(), target.test.max())) + 1
                discriminant = fit_discriminant(fit, target.fit[:, 0].long(), n_classes, self.ridges, self.held_out)
                yield target, discriminant(test), float(discriminant.ridge[0])

    def _judged(
        self, facts: dict[str, Any], target: ProbeTarget, outputs: Float[Tensor, "test_row k"]
    ) -> Iterator[_Readout]:
        def readout(metric: str, sums: Tensor, counts: Tensor, offset: float = 0.0, sign: float = 1.0) -> _Readout:
            return _Readout(facts | {"metric": metric}, self._per_prompt(sums), self._per_prompt(counts), offset, sign)

        each = torch.ones(len(outputs), dtype=torch.float64)
        if target.kind == "class":
            yield readout("accuracy", (outputs.argmax(dim=1) == target.test[:, 0]).double(), each)
            return
        truth = target.test.double()
        error = (outputs - truth).square().sum(dim=1)
        # The test mean counts as known: to first order SST does not change with it.
        yield readout("r2", error, (truth - truth.mean(dim=0)).square().sum(dim=1), offset=1.0, sign=-1.0)
        yield readout("squared_error", error, each)
        if target.kind == "binary":
            values = auc_by_prompt(outputs, target.test.bool(), self.prompt, self.n_test_prompts).numpy()
            yield _Readout(facts | {"metric": "auc"}, values, np.ones(len(values)))

    def _per_prompt(self, rows: Float[Tensor, "test_row"]) -> Float[ndarray, "prompt"]:
        return torch.zeros(self.n_test_prompts, dtype=torch.float64).index_add(0, self.prompt, rows).numpy()


def _frame(readouts: Sequence[_Readout], confidence: float, seed: int) -> pd.DataFrame:
    sums = np.stack([one.sums for one in readouts], axis=1)
    counts = np.stack([one.counts for one in readouts], axis=1)
    interval = ratio_interval(sums, counts, confidence=confidence, seed=seed)
    table = []
    for k, one in enumerate(readouts):
        value, *ends = (one.offset + one.sign * part[k] for part in (interval.estimate, interval.low, interval.high))
        row = {key: one.facts[key] for key in ("target", "probe", "layer", "component", "metric")}
        row |= {"value": value, "ci_low": min(ends), "ci_high": max(ends)}
        table.append(row | {"n_prompts": int((one.counts > 0).sum()), "ridge": one.facts["ridge"]})
    return pd.DataFrame(table)

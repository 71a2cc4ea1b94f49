"""Whether gradient descent learns faster on a layer's features than on x: the preprocessing probe of Chen et al."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.layer_figures import step_curves
from analyses.query_features import (
    ContextAs,
    check_questions,
    features_as_queries,
    features_of_queries,
    last_questions,
    question_batches,
)
from analyses.result import Result, notes_on_intervals
from analyses.separate_prompts import refuse_same_prompts
from analyses.untrained import NO_TWIN, UNTRAINED_SEED, untrained_twin
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import Site, SiteLike
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.field_checks import check_choice, check_whole
from tasks.prompts import CLEAN_TARGET, Prompts
from tasks.regression_layout import regression_pairs
from tasks.regression_predictors import GradientDescent, second_moments

RAW, LAYER, RANDOM, UNTRAINED, EXACT = "raw x", "layer", "random map of x", "untrained layer", "exact R x"
PER_PROMPT, BEST_FIXED = "1/λ_max per prompt", "best fixed"
STEPS_NEEDED = "steps_needed"
_STEP_FACTORS = (0.25, 0.5, 1.0, 1.5, 1.9)  # of 1 / max λ_max over all prompts, beyond whose double descent diverges
_ABOVE_RAW = 1.1  # the target risk, in units of the lowest that raw x reaches


class _Problem(NamedTuple):
    """Regressions for descent to solve, one per prompt of a batch: features of context and queries, y and truth."""

    context: Float[Tensor, "batch n width"]
    query: Float[Tensor, "batch query width"]
    y: Float[Tensor, "batch n"]
    truth: Float[Tensor, "batch query"]


FeatureMap = Callable[[Prompts], tuple[Tensor, Tensor]]
"""The features of the context's x, [batch, n, width], and of the queries' x, [batch, query, width]."""


@dataclass(frozen=True, eq=False)
class PreprocessingProbe(Result):
    """The risk of gradient descent by number of steps, on the layer's features, on x, and on controls.

    Columns: features ("raw x", "layer", "random map of x", "untrained layer", "exact R x"), step_rule, metric, steps,
    value, ci_low, ci_high, delta (the risk minus that of raw x at the same number of steps), delta_low, delta_high
    (paired: same prompts), n_prompts. Rows of the metric "steps_needed" hold the first number of steps at which the
    risk is at most ``settings["target_risk"]``, from where its interval first touches the target to where it first
    lies under it; missing: not within the steps taken.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "preprocessing_probe"

    @property
    def steps_needed(self) -> pd.DataFrame:
        """How many steps reach the target risk: features, step_rule, steps, ci_low, ci_high."""
        rows = self.frame.loc[self.frame["metric"] == STEPS_NEEDED]
        rows = rows[["features", "step_rule", "value", "ci_low", "ci_high"]].rename(columns={"value": "steps"})
        return rows.astype(dict.fromkeys(("steps", "ci_low", "ci_high"), "Int64")).reset_index(drop=True)

    def plot(self) -> go.Figure:
        """Risk against steps, both on logarithmic axes, one panel per rule for the step size, and the target risk."""
        rows = self.frame.loc[(self.frame["metric"] != STEPS_NEEDED) & (self.frame["steps"] > 0)]
        target = {"target": self.settings["target_risk"]}
        return step_curves(rows, series="features", panels="step_rule", title=self.title, marks=target)


def probe_preprocessing(
    model: HookedModel,
    prompts: Prompts,
    *,
    site: SiteLike = "L0.resid_post",
    max_steps: int = 100,
    context: ContextAs = "as_query",
    centred: bool = True,
    target_risk: float | None = None,
    tuning_prompts: Prompts | None = None,
    untrained_seed: int | None = UNTRAINED_SEED,
    confidence: float = 0.95,
    batch_size: int = 128,
    seed: int = 0,
) -> PreprocessingProbe:
    """Does gradient descent on a layer's features φ(x) reach a risk in fewer steps than on x itself?

    For every prompt w_0 = 0 and w_{t+1} = w_t + η (1/n) Σ_i (y_i − ⟨w_t, φ(x_i)⟩) φ(x_i); the prediction is
    ⟨w_t, φ(x_q)⟩ and is judged by the excess risk (by the squared error where w* is unknown), in squared units of y.
    η is 1 / λ_max of each prompt's own problem, in every arm.

    What is fair: a context position holds y_i beside x_i, and its residual stream still does behind the layer, so that
    descent on it would learn to read y off, which helps no query. So each φ(x_i) is computed as if x_i were the query:
    (x_i; 0) takes the query's place behind the same context, and context and query pass through one map, as R x is one
    map. Attention may still have found y_i in the context and put it into φ(x_i), which it cannot for a query;
    ``context="leave_one_out"`` asks for φ(x_i) with pair i taken out: nothing leaks, but each φ(x_i) has a context, and
    so a map, of its own. A claim should hold either way.

    Args:
        site: where features are read: "L0.resid_post" is the residual stream after the first layer, x's read-in
            included; "L0.attn" only what its attention writes.
        centred: whether every arm first takes from the features (and from y) their mean over the context, as an
            intercept would. What a layer writes whatever x is (biases, averages over the context) is one steep
            direction otherwise, which says nothing and alone holds the step size down. False is the formula as it
            stands.
        target_risk: for the metric "steps_needed"; default: 1.1 times the lowest risk that raw x reaches.
        tuning_prompts: if given, every arm also runs with the best of five fixed η, chosen on these prompts for each
            arm and number of steps, all below 2 / λ_max of every prompt.
        untrained_seed: of the twin that serves as control (HookedTransformer only); None for no twin.
        seed: of the random map of x, which is as wide as the site, and of the resampled prompts.

    Raises:
        InputError: no regression prompts, prompts whose queries read each other, tuning prompts that are the prompts or
            share their seed, too short a context to leave one out, an argument out of range.

    Source: Chen, Zhao and Zou 2024, the preprocessing probe [abs][mem]; the context's features as those of queries, the
    step sizes and the controls are ours.

    >>> from interp.constructions.regression import preprocess_then_optimize_transformer
    >>> from tasks import SparseRegression
    >>> prompts = SparseRegression(d=8, sparsity=1, n_context=20).sample(100, seed=0)
    >>> model = preprocess_then_optimize_transformer(d=8, n_ctx=21, steps=1, step_size=0.1)
    >>> probed = probe_preprocessing(model, prompts, site="L0.attn", max_steps=5, untrained_seed=None)
    >>> probed.frame.query("steps == 5").set_index("features")["value"].round(2).to_dict()
    {'raw x': 0.19, 'layer': 0.06, 'random map of x': 0.48, 'exact R x': 0.06}
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    _check_arguments(max_steps, context, target_risk)
    read = Site.parse(site)
    read.check(model.cfg.n_layers, model.cfg.n_heads)
    if tuning_prompts is not None:
        refuse_same_prompts(tuning_prompts, prompts, "tuning_prompts")
    asked = {"prompts": prompts} | ({} if tuning_prompts is None else {"tuning_prompts": tuning_prompts})
    for name, part in asked.items():
        check_questions(model, part, read, context, name)
    judged, *tuning = (last_questions(part) for part in asked.values())
    twin = untrained_twin(model, untrained_seed)
    rules: dict[str, dict[str, Float[ndarray, "prompt step"]]] = {PER_PROMPT: {}}
    for name, features in _feature_maps(model, twin, read, context, seed).items():
        problems = _problems(features, judged, centred, batch_size)
        rules[PER_PROMPT][name] = _risks(problems, max_steps, None)
        if tuning:
            to_tune = _problems(features, tuning[0], centred, batch_size)
            rules.setdefault(BEST_FIXED, {})[name] = _risks_at_best_fixed(problems, to_tune, max_steps)
    counts = judged.scored.sum(dim=1).double().numpy(force=True)
    metric = "excess_risk" if CLEAN_TARGET in prompts.labels else "loss"
    tables = [_table(sums, counts, rule, metric, confidence, seed) for rule, sums in rules.items()]
    frame = pd.concat(tables, ignore_index=True)
    reached = frame.loc[(frame["features"] == RAW) & (frame["step_rule"] == PER_PROMPT), "value"].min()
    target = float(_ABOVE_RAW * reached) if target_risk is None else float(target_risk)
    frame = pd.concat([frame, _steps_needed(frame, target)], ignore_index=True)
    settings = {
        "site": str(read),
        "context": context,
        "centred": centred,
        "max_steps": max_steps,
        "target_risk": target,
        "untrained_seed": None if twin is None else untrained_seed,
        "confidence": confidence,
        "seed": seed,
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
        "tuning_seed": tuning[0].seed if tuning else None,
    }
    notes = notes_on_intervals(frame.loc[frame["metric"] != STEPS_NEEDED])
    if twin is None and untrained_seed is not None:
        notes += (NO_TWIN,)
    return PreprocessingProbe(frame, f"Gradient descent on features at {read} and on x", settings, notes)


def _check_arguments(max_steps: int, context: str, target_risk: float | None) -> None:
    check_whole("max_steps", max_steps, 1)
    check_choice("context", context, ("as_query", "leave_one_out"))
    if target_risk is not None and not (math.isfinite(target_risk) and target_risk > 0):
        raise InputError(f"target_risk = {target_risk} must be a finite number above 0, in squared units of y")


def _feature_maps(
    model: HookedModel, twin: HookedModel | None, site: Site, context: ContextAs, seed: int
) -> dict[str, FeatureMap]:
    """The arms, raw x first. ``exact`` is what a layer would show that computes R x, asked in the same way."""

    def raw(prompts: Prompts) -> tuple[Tensor, Tensor]:
        x, y, _ = regression_pairs(prompts)
        return x[:, : y.shape[1]], x[:, y.shape[1] :]

    def exact(prompts: Prompts) -> tuple[Tensor, Tensor]:
        of_context, of_query = (part.double() for part in raw(prompts))
        y = regression_pairs(prompts)[1].double()
        r = second_moments(of_context, y)[1][:, None]
        n = y.shape[1]
        without_own = (n * r - of_context * y[..., None]) / (n - 1) if context == "leave_one_out" else r
        return without_own * of_context, r * of_query

    def random(prompts: Prompts) -> tuple[Tensor, Tensor]:
        width = features_of_queries(model, prompts[:1], site).shape[-1]
        of_context, of_query = raw(prompts)
        draw = torch.Generator().manual_seed(seed)
        mixed = torch.randn(of_context.shape[-1], width, generator=draw, dtype=torch.float64).to(of_context)
        return of_context @ mixed, of_query @ mixed

    maps: dict[str, FeatureMap] = {RAW: raw}
    maps[LAYER] = lambda prompts: features_as_queries(model, prompts, site, context)
    maps[RANDOM] = random
    if twin is not None:
        maps[UNTRAINED] = lambda prompts: features_as_queries(twin, prompts, site, context)
    maps[EXACT] = exact
    return maps


def _problems(features: FeatureMap, prompts: Prompts, centred: bool, batch_size: int) -> list[_Problem]:
    problems = []
    for batch, truth in question_batches(prompts, batch_size):
        of_context, of_query = features(batch)
        y = regression_pairs(batch)[1]
        problem = _Problem(*(part.cpu().double() for part in (of_context, of_query, y, truth)))
        if centred:
            middle, level = problem.context.mean(dim=1, keepdim=True), problem.y.mean(dim=1, keepdim=True)
            problem = _Problem(
                problem.context - middle, problem.query - middle, problem.y - level, problem.truth - level
            )
        problems.append(problem)
    return problems


def _risks(problems: Iterable[_Problem], max_steps: int, step_size: float | None) -> Float[ndarray, "prompt step"]:
    """Squared error summed over the queries of each prompt, after 0 … max_steps steps."""
    sums = []
    for problem in problems:
        descent = GradientDescent(max_steps, step_size).path(problem.context, problem.y, range(max_steps + 1))
        errors = [torch.einsum("bqw,bw->bq", problem.query, w) - problem.truth for w in descent]
        sums.append(torch.stack(errors, dim=1).square().sum(dim=2))
    return torch.cat(sums).numpy()


def _risks_at_best_fixed(
    problems: list[_Problem], tuning: list[_Problem], max_steps: int
) -> Float[ndarray, "prompt step"]:
    """The risks with one step size for all prompts: for each number of steps that with the least risk in tuning."""
    # What bounds the step is a property of x alone, so looking at the judged prompts too betrays no answer.
    steepest = max(
        float(torch.linalg.eigvalsh(second_moments(problem.context, problem.y)[0])[:, -1].max())
        for problem in [*problems, *tuning]
    )
    if steepest == 0:  # features that are zero everywhere: any step leads nowhere
        return _risks(problems, max_steps, None)
    sizes = [factor / steepest for factor in _STEP_FACTORS]
    best = np.stack([_risks(tuning, max_steps, size).sum(axis=0) for size in sizes]).argmin(axis=0)
    judged = np.stack([_risks(problems, max_steps, size) for size in sizes])
    return judged[best, :, np.arange(max_steps + 1)].T


def _table(
    sums: Mapping[str, Float[ndarray, "prompt step"]],
    counts: Float[ndarray, "prompt"],
    rule: str,
    metric: str,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    n_steps = next(iter(sums.values())).shape[1]
    every = np.concatenate(list(sums.values()), axis=1)
    against_raw = every - np.tile(sums[RAW], (1, len(sums)))
    count = np.repeat(counts[:, None], every.shape[1], axis=1)
    value, delta = (ratio_interval(part, count, confidence=confidence, seed=seed) for part in (every, against_raw))
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(sums):
        for step in range(n_steps):
            k = index * n_steps + step
            row: dict[str, Any] = {"features": name, "step_rule": rule, "metric": metric, "steps": step}
            row |= {"value": value.estimate[k], "ci_low": value.low[k], "ci_high": value.high[k]}
            row |= {"delta": delta.estimate[k], "delta_low": delta.low[k], "delta_high": delta.high[k]}
            rows.append(row | {"n_prompts": int((counts > 0).sum())})
    return pd.DataFrame(rows).astype({"steps": "Int64"})


def _steps_needed(frame: pd.DataFrame, target: float) -> pd.DataFrame:
    """The first step at which the risk, and each end of its interval, is at most the target."""
    rows = []
    for (name, rule), arm in frame.groupby(["features", "step_rule"], sort=False):
        row: dict[str, Any] = {"features": name, "step_rule": rule, "metric": STEPS_NEEDED, "steps": pd.NA}
        for column, of_curve in (("value", "value"), ("ci_low", "ci_low"), ("ci_high", "ci_high")):
            reaching = arm.loc[arm[of_curve] <= target, "steps"]
            row[column] = float(reaching.min()) if len(reaching) else np.nan
        rows.append(row | {"n_prompts": int(arm["n_prompts"].iloc[0])})
    return pd.DataFrame(rows).astype({"steps": "Int64"})

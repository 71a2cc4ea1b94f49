"""What is measured on a sparse-regression run: risk beside reference algorithms, heads, layers and algorithms."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import pandas as pd

from analyses.algorithm_distance import AlgorithmDistances, measure_algorithm_distances
from analyses.bayes_gap import GapClosed, gap_closed
from analyses.comparison import compare_predictors
from analyses.coordinate_map import CoordinateMap, map_coordinates
from analyses.head_assessment import HeadAssessment, assess_heads
from analyses.layer_algorithms import measure_layer_distances
from analyses.preprocessing_probe import PreprocessingProbe, probe_preprocessing
from analyses.probes import ProbeResult, probe_layers
from analyses.pruning import PruningResult, prune_heads
from analyses.report.findings import Finding
from analyses.report.regression_findings import find_algorithm, find_risk, find_shares
from analyses.report.remembering import Remembering
from interp import HookedTransformer
from tasks.bayes_sparse import BayesSparse
from tasks.errors import InputError
from tasks.lasso import Lasso
from tasks.prompts import Prompts
from tasks.protocol import Predictor
from tasks.regression_predictors import GradientDescent, LeastSquares, PreprocessThenOptimize, Ridge
from tasks.sparse_regression import SparseRegression

METRIC = "excess_risk"
AS_TRAINED = "as trained"
ZERO, RIDGE_BOUND, LASSO, BAYES = "zero", "ridge, best λ in hindsight", "lasso", "Bayes posterior mean"
PREPROCESS = "preprocess, then optimise"
# What the prompts of a set are for, as the last word of their seed: none serves two purposes.
_TUNING, _FITTING, _RANKING, _SHIFTED = range(101, 105)
_TUNING_PROMPTS = 400
_FEWEST_FITTING_PROMPTS = 500
_CONTEXT_SHARES = (0.25, 0.5, 0.75, 1.5)
_STEPS_READ = (1, 2, 3, 5, 10)
_STEPS_PROBED = (1, 3, 10)


@dataclass(frozen=True, eq=False)
class RegressionMeasurements:
    """All results on one set of prompts and its shifted variants, and the findings made of them."""

    findings: tuple[Finding, ...]
    risks: pd.DataFrame
    """Excess risk of the model and every predictor: prompts (name of the set), source, value, ci_low, ci_high."""
    lengths: Mapping[str, int]
    """The number of pairs of the sets that differ in nothing else, the training task's own included."""
    gap: GapClosed | None
    assessment: HeadAssessment
    pruning: PruningResult | str
    probes: ProbeResult
    preprocessing: PreprocessingProbe | str
    coordinates: CoordinateMap | str
    """A sentence in place of a result says why there is none."""
    algorithms: AlgorithmDistances
    layers: AlgorithmDistances


def measure_regression(
    model: HookedTransformer, task: SparseRegression, prompts: Prompts, seed: int, base_seed: int
) -> RegressionMeasurements:
    """Everything that a regression report says. ``base_seed`` begins the seeds of all further prompts.

    Raises:
        InputError: prompts that are not the task's.
    """

    def drawn(of: SparseRegression, n: int, purpose: int, number: int = 0) -> Prompts:
        return of.sample(n, seed=(base_seed, seed, number, purpose))

    lengths, tasks = shifted_tasks(model, task)
    sets = {AS_TRAINED: prompts}
    sets |= {
        name: drawn(one, len(prompts), _SHIFTED, number)
        for number, (name, one) in enumerate(tasks.items())
        if name != AS_TRAINED
    }
    tuned = {
        name: _predictors(one, sets[name], drawn(one, _TUNING_PROMPTS, _TUNING, number))
        for number, (name, one) in enumerate(tasks.items())
    }
    everywhere = [name for name in tuned[AS_TRAINED] if all(name in of_set for of_set in tuned.values())]
    predictors: dict[str, dict[str, Predictor]] = {
        name: {set_name: of_set[name] for set_name, of_set in tuned.items()} for name in everywhere
    }
    risks = pd.concat(
        [
            compare_predictors(model, part, tuned[name], metric=METRIC, seed=seed).frame.assign(prompts=name)
            for name, part in sets.items()
        ],
        ignore_index=True,
    )
    rivals = {name: of for name, of in predictors.items() if name not in (ZERO, RIDGE_BOUND)}
    ranked_on = drawn(task, len(prompts), _RANKING)
    fitted_on = drawn(task, max(len(prompts), _FEWEST_FITTING_PROMPTS), _FITTING)
    assessment = assess_heads(model, prompts, metric=METRIC, seed=seed)
    algorithms = measure_algorithm_distances(model, sets, rivals, seed=seed)
    own = tuned[AS_TRAINED]
    references = {name: of for name, of in predictors.items() if name != ZERO}
    return RegressionMeasurements(
        findings=(
            find_risk(model, prompts, own, seed=seed),
            find_shares(assessment),
            find_algorithm(algorithms, AS_TRAINED, worse_than_zero=_worse_than_zero(risks)),
        ),
        risks=risks,
        lengths=lengths,
        gap=gap_closed(model, sets, references, bayes=BAYES, seed=seed) if BAYES in predictors else None,
        assessment=assessment,
        pruning=_or_why(lambda: prune_heads(model, prompts, importance=ranked_on, metric=METRIC, seed=seed)),
        probes=probe_layers(
            model,
            fitted_on,
            {"answer": "answer", "preprocessed (r ∘ x)": "preprocessed", "w*": "w_star"}
            | ({"support": "support"} if _varies(fitted_on) and _varies(prompts) else {})
            | {f"descent, {t} steps": GradientDescent(t) for t in _STEPS_PROBED},
            test_prompts=prompts,
            seed=seed,
        ),
        preprocessing=_or_why(lambda: probe_preprocessing(model, prompts, seed=seed)),
        coordinates=_or_why(lambda: map_coordinates(model, prompts, fit=fitted_on, seed=seed)),
        algorithms=algorithms,
        layers=measure_layer_distances(model, prompts, _stepwise(own), fit_prompts=fitted_on, seed=seed),
    )


def shifted_tasks(
    model: HookedTransformer, task: SparseRegression
) -> tuple[dict[str, int], dict[str, SparseRegression]]:
    """The task as trained, with shorter and longer contexts, and with other noise, sparsity and covariance.

    The first dict has the number of pairs of those that differ in nothing else. In the interleaved layout every
    length is in every prompt, so that only the shifts are left.
    """
    task = replace(task, n_context_min=None, curriculum_steps=None, curriculum_dims=None, curriculum_context=None)
    lengths = {AS_TRAINED: task.n_context}
    tasks = {AS_TRAINED: task}
    if task.layout == "query":
        for share in _CONTEXT_SHARES:
            n = max(1, round(share * task.n_context))
            if n not in lengths.values() and (n + task.n_queries <= model.cfg.n_ctx or not model.has_positions):
                lengths[f"n = {n}"] = n
                tasks[f"n = {n}"] = replace(task, n_context=n)
    if task.noise > 0:
        for factor in (0.5, 2):
            tasks[f"σ = {factor * task.noise:g}"] = replace(task, noise=factor * task.noise)
    for sparsity in (task.sparsity // 2, 2 * task.sparsity):
        if 1 <= sparsity <= task.dims:
            tasks[f"s = {sparsity}"] = replace(task, sparsity=sparsity)
    if task.covariance == "identity":
        tasks["covariance j⁻¹"] = replace(task, covariance="power", covariance_exponent=1.0)
    return lengths, tasks


def _predictors(task: SparseRegression, prompts: Prompts, tuning: Prompts) -> dict[str, Predictor]:
    """The reference algorithms, each with its one number tuned on ``tuning``; ridge also in hindsight, as a bound."""
    predictors: dict[str, Predictor] = {
        ZERO: _zero,
        "least squares": LeastSquares(),
        "gradient descent": GradientDescent.tuned(tuning),
        "ridge": Ridge.tuned(tuning),
        RIDGE_BOUND: Ridge.hindsight(prompts),
        PREPROCESS: PreprocessThenOptimize.tuned(tuning),
        LASSO: Lasso.tuned(tuning),
    }
    with suppress(InputError):  # no noise, or too many supports to enumerate
        predictors[BAYES] = BayesSparse(task)
    return {name: Remembering(predictor) for name, predictor in predictors.items()}


def _varies(prompts: Prompts) -> bool:
    """Whether some prompts have each feature in their support and some have not."""
    share = prompts.latents["support"].double().mean(dim=0)
    return bool(((share > 0) & (share < 1)).all())


def _worse_than_zero(risks: pd.DataFrame) -> tuple[str, ...]:
    """The sets of prompts on which the model is clearly worse than predicting 0."""
    rows = risks.loc[risks["metric"] == METRIC]
    model, zero = (rows.loc[rows["source"] == source].set_index("prompts") for source in ("model", ZERO))
    worse = model["ci_low"] > zero["ci_high"]
    return tuple(str(name) for name in worse.index[worse])


def _stepwise(own: Mapping[str, Predictor]) -> dict[str, Predictor]:
    """Algorithms by their steps, for layers that may be on the way; and the others as they are."""
    steps: dict[str, Predictor] = {f"descent, {t} steps": GradientDescent(t) for t in _STEPS_READ}
    steps |= {f"preprocessed, {t} steps": PreprocessThenOptimize(t) for t in _STEPS_READ}
    return {ZERO: _zero} | steps | {name: of for name, of in own.items() if name in ("ridge", LASSO, BAYES)}


def _zero(prompts: Prompts):
    return prompts.targets.new_zeros(prompts.targets.shape)


def _or_why(measure):
    """The result, or the sentence that says why this run has none."""
    try:
        return measure()
    except InputError as reason:
        return str(reason)

"""Claim: gradient descent reaches a risk sooner on what the first layer writes than on x itself."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.papers.chen2024.checkpoints import Checkpoint, arm_of, load, task_with
from analyses.papers.chen2024.setting import (
    ATTENTION,
    JUDGED,
    KINDS,
    MOST_HEADS,
    N_CONTEXT,
    SEEDS,
    SETTINGS,
    TEST_SEED,
)
from analyses.papers.chen2024.where import in_words, where_it_holds
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.preprocessing_probe import EXACT, LAYER, RAW, STEPS_NEEDED, probe_preprocessing
from analyses.query_features import ContextAs
from analyses.report.contents import FigureOf, TableOf
from interp.hooked_transformer import HookedTransformer
from tasks.sparse_regression import SparseRegression

CONTEXTS_AS: tuple[ContextAs, ...] = ("as_query", "leave_one_out")
_MARGIN = 0.25
_WITH = {"as_query": "pair kept", "leave_one_out": "pair taken out"}
SOONER = {
    context: Criterion(
        f"sooner-{context.replace('_', '-')}",
        f"share of the steps on raw x that the first layer's features save ({_WITH[context]})",
        _MARGIN,
        source="[abs][mem]; margin [ours]",
    )
    for context in CONTEXTS_AS
}
WRITTEN, STREAM = "L0.attn", "L0.resid_post"
_FEW_PAIRS = N_CONTEXT // 2
_MOST_STEPS = 100
_SITES = (
    "Which features are meant matters. The criterion is read on what the first layer's attention writes (L0.attn), "
    "where the exact algorithm has R x and nothing else; the whole residual stream after the layer (L0.resid_post) "
    "holds x as well. Where a risk is not reached within 100 steps the share saved says no more than that: features"
    " that never reach what x reaches in 6 steps read 1 - 100/6 = -15.7, with no spread over seeds. With 32 pairs "
    "of d = 16 even the exact R x saves little or nothing, so that a layer which preprocessed as the paper has it "
    "would not be seen in this setting by this criterion."
)


def first_layer_preprocesses(scale: Scale) -> Claim:
    """The preprocessing probe on the first layer's output."""
    return Claim(
        name="preprocessing-probe",
        sentence="Gradient descent on the first layer's features reaches a risk in fewer steps than on x itself.",
        source="[abs][mem]",
        question="Does the first layer write features on which descent is faster?",
        criteria=tuple(SOONER.values()),
        measured="For every prompt, gradient descent from 0 with step 1/λ_max on φ(x), what the attention of the first "
        "layer writes where x is asked about, and on x. The target is 1.1 times the lowest risk that raw x reaches "
        f"within {_MOST_STEPS} steps; features that never reach it count as taking {_MOST_STEPS}. φ of a pair's x is "
        "computed as if it were a query, once with its pair left in the context and once with it taken out, since y "
        "could leak through it: a claim should hold either way. Beside it: the exact R x of the paper's algorithm, a "
        "random map of x, an untrained layer, the whole residual stream, and half as many pairs. "
        f"{SETTINGS[scale].descent_prompts} prompts of {N_CONTEXT} pairs for each seed.",
        arms={
            _named(kind, site, n): _arm(scale, kind, site, n)
            for kind in KINDS
            for site in (WRITTEN, STREAM)
            for n in (N_CONTEXT, _FEW_PAIRS)
        }
        | {_named("untrained", STREAM, N_CONTEXT): _arm(scale, ATTENTION, STREAM, N_CONTEXT, untrained=True)},
        measure=measure_preprocessing,
        control="Untrained twins, whose first layer is a random map.",
        null_arms={_named(ATTENTION, WRITTEN, N_CONTEXT): _arm(scale, ATTENTION, WRITTEN, N_CONTEXT, untrained=True)},
    )


def measure_preprocessing(outcomes: Outcomes) -> Evidence:
    """The share of steps saved, with the pair kept and taken out; and the same for the exact algorithm's features."""
    values = {name: _saved_by(LAYER, arm) for name, arm in outcomes.items()}
    # The exact R x depends on the prompts alone, so that one kind of attention and one site say it.
    held = values | {
        f"the exact R x in place of the layer, n = {name.rpartition(' = ')[2]}": _saved_by(EXACT, arm)
        for name, arm in outcomes.items()
        if name.startswith(f"{ATTENTION} attention, {WRITTEN}")
    }
    deciding = outcomes[_named(ATTENTION, WRITTEN, N_CONTEXT)]
    curves = {}
    for features in deciding[0]["features"].unique():
        parts = [
            rows.loc[
                (rows["features"] == features) & (rows["context"] == CONTEXTS_AS[0]) & (rows["metric"] != STEPS_NEEDED)
            ]
            for rows in deciding
        ]
        curves[str(features)] = [
            (part["steps"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float)) for part in parts
        ]
    figure = seed_curves(curves, x="steps of gradient descent", y="excess risk").update_xaxes(range=[0, 30])
    needed = pd.concat(
        [rows.loc[rows["metric"] == STEPS_NEEDED].assign(setting=name, seed=seed)
         for name, arm in outcomes.items() for seed, rows in zip(SEEDS, arm, strict=False)], ignore_index=True,
    )[["setting", "seed", "context", "features", "value", "target"]]  # fmt: skip
    where = where_it_holds(tuple(SOONER.values()), held, "Where it holds: attention, site and pairs")
    return Evidence(
        values[_named(ATTENTION, WRITTEN, N_CONTEXT)],
        figures=[
            FigureOf(
                figure,
                "Gradient descent on what the first layer writes (pair kept), on x, and on controls.",
                height=400,
            )
        ],
        tables=[
            where,
            TableOf("steps", "Steps to the target risk", needed.rename(columns={"value": "steps"})),
        ],
        text=[_SITES, in_words(where)],
        silent={name: _too_little_to_save(values) for name, values in _saved_by(EXACT, deciding).items()},
    )


def descended(*, seed: int, checkpoint: Checkpoint, site: str, n_context: int, n_prompts: int) -> pd.DataFrame:
    """Descent on one model's features: columns context, features, metric, steps, value, target."""
    return descended_on(load(checkpoint), task_with(n_context), site=site, seed=seed, n_prompts=n_prompts)


def descended_on(
    model: HookedTransformer, task: SparseRegression, *, site: str, seed: int, n_prompts: int
) -> pd.DataFrame:
    """Descent on a model's features: columns context, features, metric, steps, value, target."""
    prompts = task.sample(n_prompts, seed=(TEST_SEED, JUDGED, seed))
    parts = []
    for context in CONTEXTS_AS:
        found = probe_preprocessing(model, prompts, site=site, context=context, max_steps=_MOST_STEPS, seed=seed)
        part = found.frame[["features", "metric", "steps", "value"]]
        parts.append(part.assign(context=context, target=found.settings["target_risk"]))
    return pd.concat(parts, ignore_index=True)


def _saved_by(features: str, arm: Sequence[pd.DataFrame]) -> dict[str, list[float]]:
    """Of each criterion, the share of raw x's steps that the features save, seed by seed."""
    return {
        SOONER[context].name: [1 - _steps(rows, features, context) / _steps(rows, RAW, context) for rows in arm]
        for context in CONTEXTS_AS
    }


def _too_little_to_save(exact: Sequence[float]) -> str:
    """Why saving no more than the margin denies nothing, if the exact algorithm saves no more; empty if it does."""
    saved = float(np.mean(exact))
    return f"the exact R x of the algorithm saves {saved:.3g} here, no more either" if saved <= _MARGIN else ""


def _steps(rows: pd.DataFrame, features: str, context: str) -> float:
    chosen = (rows["features"] == features) & (rows["context"] == context) & (rows["metric"] == STEPS_NEEDED)
    (steps,) = rows.loc[chosen, "value"]
    return float(_MOST_STEPS if np.isnan(steps) else steps)


def _arm(scale: Scale, kind: str, site: str, n_context: int, *, untrained: bool = False) -> Arm:
    arguments = {"site": site, "n_context": n_context, "n_prompts": SETTINGS[scale].descent_prompts}
    return arm_of(descended, "descent", n_heads=MOST_HEADS, attention=kind, untrained=untrained, cost=6.0, **arguments)


def _named(kind: str, site: str, n_context: int) -> str:
    return f"{kind} attention, {site}, n = {n_context}"

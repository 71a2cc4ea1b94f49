"""Claim: read by linear probes, the risk falls from layer to layer, as steps of an optimisation would."""

from collections.abc import Sequence

import pandas as pd

from analyses.papers.chen2024.checkpoints import Checkpoint, arm_of, load, task_with
from analyses.papers.chen2024.setting import (
    ATTENTION,
    FITTED,
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
from analyses.probes import MODEL, probe_layers
from analyses.report.contents import FigureOf, TableOf
from interp.hooked_transformer import HookedTransformer
from tasks import GradientDescent
from tasks.sparse_regression import SparseRegression

FALLS = Criterion(
    "least-fall",
    "least share of the probe's risk that a later layer takes away",
    0.1,
    source="[mem]; margin [ours]",
)
DESCENT = "gradient descent"
_FEW_PAIRS = N_CONTEXT // 2
_MOST_STEPS = 8


def layers_are_steps(scale: Scale) -> Claim:
    """Linear probes for the answer after every layer."""
    one = SETTINGS[scale]
    return Claim(
        name="layers-as-steps",
        sentence="The risk that a linear probe reads falls from layer to layer, as optimisation steps would have it.",
        source="[mem]",
        question="How well can ⟨w*, x⟩ be read linearly from the query's residual stream after each layer?",
        criteria=(FALLS,),
        measured="Ridge regression of ⟨w*, x⟩ on the residual stream at the query, fitted on "
        f"{one.head_prompts} prompts and judged on as many others of {N_CONTEXT} pairs for each seed. Its risk is r₀ "
        "before the first layer and r_l after layer l; a later layer takes away the share 1 − r_l / r_(l−1), and the "
        "criterion asks for the least of these over the layers behind the first. Beside it: probes fitted to other "
        "prompts' answers, and gradient descent after t steps.",
        arms={_named(kind, n): _arm(scale, kind, n) for kind in KINDS for n in (N_CONTEXT, _FEW_PAIRS)},
        measure=measure_layers,
        control="Untrained twins, whose layers optimise nothing.",
        null_arms={_named(ATTENTION, N_CONTEXT): _arm(scale, ATTENTION, N_CONTEXT, untrained=True)},
    )


def measure_layers(outcomes: Outcomes) -> Evidence:
    """The least fall over the layers behind the first."""
    held = {name: {FALLS.name: [_least_fall(rows) for rows in arm]} for name, arm in outcomes.items()}
    deciding = outcomes[_named(ATTENTION, N_CONTEXT)]
    curves = {}
    for name in deciding[0]["source"].unique():
        parts = [rows.loc[rows["source"] == name] for rows in deciding]
        curves[str(name)] = [
            (part["after"].to_numpy(dtype=float), part["risk"].to_numpy(dtype=float)) for part in parts
        ]
    figure = seed_curves(curves, x="layers passed, or steps of gradient descent taken", y="excess risk")
    table = pd.concat(
        [rows.assign(setting=name, seed=seed) for name, arm in outcomes.items()
         for seed, rows in zip(SEEDS, arm, strict=False)], ignore_index=True,
    )  # fmt: skip
    where = where_it_holds((FALLS,), held, "Where it holds: attention and pairs")
    return Evidence(
        held[_named(ATTENTION, N_CONTEXT)],
        figures=[
            FigureOf(figure, "What a probe reads after each layer, beside controls and steps of gradient descent.")
        ],
        tables=[
            where,
            TableOf("probes", "Risk of the probes", table),
        ],
        text=[in_words(where), _steps_in_words(deciding)],
    )


def probed(*, seed: int, checkpoint: Checkpoint, n_context: int, n_prompts: int) -> pd.DataFrame:
    """The probes' risk after every layer of one model: columns source, after, risk."""
    return probed_layers(load(checkpoint), task_with(n_context), seed=seed, n_prompts=n_prompts)


def probed_layers(model: HookedTransformer, task: SparseRegression, *, seed: int, n_prompts: int) -> pd.DataFrame:
    """The probes' risk after every layer of a model, and descent's after as many steps: columns source, after, risk."""
    fit, test = (task.sample(n_prompts, seed=(TEST_SEED, purpose, seed)) for purpose in (FITTED, JUDGED))
    frame = probe_layers(model, fit, "answer", test_prompts=test, untrained_seed=None, seed=seed).frame
    frame = frame.loc[frame["metric"] == "squared_error"]
    rows = [
        {"source": str(source), "after": after, "risk": float(risk)}
        for source, part in frame.groupby("probe", sort=False)
        for after, risk in enumerate(part["value"])
    ]
    for steps in range(_MOST_STEPS + 1):
        sums, counts = test.excess_risk(GradientDescent(steps)(test))
        rows.append({"source": DESCENT, "after": steps, "risk": float(sums.sum() / counts.sum())})
    return pd.DataFrame(rows)


def _least_fall(rows: pd.DataFrame) -> float:
    risks = rows.loc[rows["source"] == MODEL, "risk"].to_numpy(dtype=float)
    return float((1 - risks[2:] / risks[1:-1]).min())


def _steps_in_words(arm: Sequence[pd.DataFrame]) -> str:
    """After how many steps gradient descent first has the risk that is read after each layer."""
    means = pd.concat(arm).groupby(["source", "after"])["risk"].mean()
    descent, said = means[DESCENT], []
    for layer, risk in means[MODEL].items():
        reached = descent.index[descent <= risk]
        said.append(f"after {layer}: {reached[0] if len(reached) else f'more than {_MOST_STEPS}'}")
    return (
        "Steps of gradient descent (1/λ_max per prompt, mean over seeds) that first reach the probe's risk, by the "
        f"number of layers passed: {'; '.join(said)}."
    )


def _arm(scale: Scale, kind: str, n_context: int, *, untrained: bool = False) -> Arm:
    arguments = {"n_context": n_context, "n_prompts": SETTINGS[scale].head_prompts}
    return arm_of(probed, "probes", n_heads=MOST_HEADS, attention=kind, untrained=untrained, **arguments)


def _named(kind: str, n_context: int) -> str:
    return f"{kind} attention, n = {n_context}"

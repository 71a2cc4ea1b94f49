"""Claim: at an equal number of parameters more heads reach a lower risk."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analyses.papers.chen2024.algorithms import DESCENT, RIDGE, risk_by_algorithm
from analyses.papers.chen2024.checkpoints import Checkpoint, arm_of, checkpoint_name, load, task_with
from analyses.papers.chen2024.setting import (
    CONTEXTS,
    HEADS,
    JUDGED,
    MOST_HEADS,
    SEEDS,
    SETTINGS,
    TEST_SEED,
    TRAINED_ANEW,
    training,
)
from analyses.papers.chen2024.where import in_words, where_it_holds
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm, Calculation
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.hooked_transformer import HookedTransformer
from interp.run import Run
from tasks.sparse_regression import SparseRegression

CRITERION = Criterion(
    "one-over-eight", "risk of one head over that of eight (geometric mean over n)", 1.05, source="[abs]; margin [ours]"
)
REFERENCES, AGAIN = "algorithms", "trained anew"
_BATCH = 500
_CAPTION = "Excess risk against the number of pairs: a thin line for each seed, a thick one for their mean."
_BESIDE_RIDGE = "The same over the risk of ridge, tuned at each n, on the same seeds: where the models differ at all."


def more_heads_are_better(scale: Scale) -> Claim:
    """Risk against n for 1, 2, 4 and 8 heads."""
    one = SETTINGS[scale]
    return Claim(
        name="more-heads",
        sentence="At an equal number of parameters, more heads reach a lower risk.",
        source="[abs][mem]",
        question="How does the excess risk fall with the number of pairs n, for 1, 2, 4 and 8 heads per layer?",
        criteria=(CRITERION,),
        measured=f"Excess risk on {one.test_prompts} fresh prompts of 16 queries for each seed and n = "
        f"{', '.join(map(str, CONTEXTS))}, the same prompts for all models of a seed. Ridge, gradient descent and "
        "preprocess-then-optimise, tuned at each n on other prompts, stand beside them.",
        arms={_arm(n): _models(n, scale) for n in HEADS}
        | {REFERENCES: _references(scale), AGAIN: (training(*TRAINED_ANEW),)},
        measure=measure_risk_by_heads,
        control="The eight-head models of other seeds, in place of those of 1, 2 and 4 heads.",
        null_arms={_arm(n): _models(MOST_HEADS, scale, turn=turn) for n, turn in zip(HEADS, (1, 2, 3, 0), strict=True)},
    )


def measure_risk_by_heads(outcomes: Outcomes) -> Evidence:
    """The ratio of the risks of one head and of eight, and where along n it exceeds the margin."""
    risks = {n: [rows.set_index("n")["risk"] for rows in outcomes[_arm(n)]] for n in HEADS}
    fewest, most = risks[HEADS[0]], risks[MOST_HEADS]
    ratios = [few / many for few, many in zip(fewest, most, strict=True)]
    contexts = list(ratios[0].index)
    held = {f"n = {n}": {CRITERION.name: [float(one[n]) for one in ratios]} for n in contexts}
    held |= {
        f"{n} heads against {MOST_HEADS}, over all n": {
            CRITERION.name: [_mean_ratio(few / many) for few, many in zip(risks[n], most, strict=True)]
        }
        for n in HEADS[1:-1]
    }
    curves = {_arm(n): risks[n] for n in HEADS} | _by_algorithm(outcomes.get(REFERENCES, ()))
    figures = [_figure({name: curves[name] for name in curves if name != DESCENT}, "excess risk", _CAPTION)]
    if ridge := curves.pop(RIDGE, None):
        beside = {name: [one / by for one, by in zip(arm, ridge, strict=True)] for name, arm in curves.items()}
        figures.append(_figure(beside, "excess risk / that of ridge", _BESIDE_RIDGE))
    table = pd.DataFrame(
        [{"heads": n, "seed": seed} | one.to_dict() for n in HEADS for seed, one in zip(SEEDS, risks[n], strict=True)]
    )
    table.columns = [f"n = {name}" if isinstance(name, int) else str(name) for name in table.columns]
    where = where_it_holds((CRITERION,), held, "Where along n one head is worse than eight")
    tables = [
        where,
        TableOf("risk", "Excess risk of every model", table),
    ]
    text = [in_words(where)]
    if trained := outcomes.get(AGAIN):
        compared = _compared(trained)
        tables.append(TableOf("trained-anew", "Trained anew, beside the shipped checkpoint", compared))
        text.append(_same_or_not(compared))
    return Evidence(
        {CRITERION.name: [_mean_ratio(one) for one in ratios]},
        figures=figures,
        tables=tables,
        text=text,
    )


def risk_by_context(*, seed: int, checkpoint: Checkpoint, n_prompts: int) -> pd.DataFrame:
    """The excess risk of one model by number of pairs: columns n, risk."""
    return risks_of(load(checkpoint), [task_with(n) for n in CONTEXTS], seed=seed, n_prompts=n_prompts)


@torch.no_grad()
def risks_of(model: HookedTransformer, tasks: Sequence[SparseRegression], *, seed: int, n_prompts: int) -> pd.DataFrame:
    """The excess risk of a model on each task: columns n, risk."""
    rows = []
    for task in tasks:
        prompts = task.sample(n_prompts, seed=(TEST_SEED, JUDGED, seed))
        sums = counts = 0.0
        for start in range(0, n_prompts, _BATCH):
            part = prompts[start : start + _BATCH]
            total, count = part.excess_risk(model(part.inputs))
            sums, counts = sums + float(total.double().sum()), counts + float(count.sum())
        rows.append({"n": task.n_context, "risk": sums / counts})
    return pd.DataFrame(rows)


def _models(n_heads: int, scale: Scale, *, turn: int = 0) -> Arm:
    return arm_of(risk_by_context, "risk", n_heads=n_heads, turn=turn, n_prompts=SETTINGS[scale].test_prompts)


def _references(scale: Scale) -> Arm:
    n_prompts = SETTINGS[scale].test_prompts
    return tuple(
        Calculation("risk of algorithms", seed, risk_by_algorithm, {"contexts": CONTEXTS, "n_prompts": n_prompts})
        for seed in SEEDS
    )


def _compared(trained: Sequence[Run]) -> pd.DataFrame:
    """Each model trained anew beside its shipped checkpoint: how far apart the weights are, and the risks."""
    rows = []
    for run in trained:
        name = checkpoint_name(run.config.n_heads, run.train_config.init_seed // 3)
        shipped = Run.shipped(name)
        there, here = shipped.model.state_dict(), run.model.state_dict()
        apart = max(float((there[key] - here[key]).abs().max()) for key in there)
        row = {"checkpoint": name, "largest difference of weights": apart, "bit for bit": apart == 0}
        ends = (("shipped", shipped), ("trained anew", run))
        rows.append(row | {f"risk, {of}": float(one.history["excess_risk"].iloc[-1]) for of, one in ends})
    return pd.DataFrame(rows)


def _same_or_not(compared: pd.DataFrame) -> str:
    n, same = len(compared), bool(compared["bit for bit"].all())
    models = "One model was" if n == 1 else f"{n} models were"
    if same:
        return f"{models} trained anew here and came out bit for bit as shipped ({', '.join(compared['checkpoint'])})."
    apart = compared["largest difference of weights"].max()
    return (
        f"{models} trained anew here and came out up to {apart:.2g} per weight away from the shipped checkpoint: sums "
        "are taken in another order on another processor, and training enlarges the difference. The table says how far "
        "the risks are from each other."
    )


def _by_algorithm(references: Sequence[pd.DataFrame]) -> dict[str, list[pd.Series]]:
    """The risks of each algorithm by n, one for each seed."""
    names = [] if not references else list(references[0]["algorithm"].unique())
    return {
        str(name): [rows.loc[rows["algorithm"] == name].set_index("n")["risk"] for rows in references] for name in names
    }


def _figure(curves: Mapping[str, Sequence[pd.Series]], y: str, caption: str) -> FigureOf:
    lines = {name: [(_floats(one.index), _floats(one)) for one in arm] for name, arm in curves.items()}
    return FigureOf(seed_curves(lines, x="pairs n", y=y), caption, height=420)


def _mean_ratio(ratio: pd.Series) -> float:
    return float(np.exp(np.log(ratio).mean()))


def _floats(values: pd.Series | pd.Index) -> np.ndarray:
    return np.asarray(values, dtype=float)


def _arm(n_heads: int) -> str:
    return "1 head" if n_heads == 1 else f"{n_heads} heads"

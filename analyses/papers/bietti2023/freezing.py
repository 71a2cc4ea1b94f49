"""Claims on the order of learning, from runs in which some of the matrices are held still for most of the training."""

import pandas as pd

from analyses.figures import MUTED
from analyses.papers.bietti2023.setting import SETTINGS, arm, two_layers
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm
from analyses.papers.seed_figures import seed_curves, seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf

_PARAMETERS = {"W_O2": "blocks.1.attn.W_O", "W_K1": "blocks.0.attn.W_K", "W_K2": "blocks.1.attn.W_K"}
_NEAR_ONE = 0.9
_MUCH = 0.3
_MORE = 0.2
_READ = ("recall_W_O2", "recall_W_K2", "recall_W_K1", "accuracy")


def W_O2_comes_first(scale: Scale) -> Claim:
    """The copying memory forms without the others, they do not form without it, and it does not solve the task."""
    held = SETTINGS[scale].held
    return Claim(
        name="W_O2-first",
        sentence="W_O2 can and must be learned before the key-query matrices, but is not enough.",
        source="[mem]; the freezing studies [code]",
        question=f"After {held} steps in which either the key-query matrices or W_O2 were held still, which "
        "memories are there, and how accurate is the model?",
        criteria=(
            Criterion("can", "recall of W_O2 while W_K1 and W_K2 are frozen", _NEAR_ONE),
            Criterion("must-W_K2", "recall of W_K2 lost while W_O2 is frozen", _MUCH),
            Criterion("must-W_K1", "recall of W_K1 lost while W_O2 is frozen", _MUCH),
            Criterion("not-enough", "accuracy lost while W_K1 and W_K2 are frozen", _MUCH),
        ),
        measured=f"Recall probes and in-context accuracy on the evaluation prompts at step {held}, the last "
        "one frozen; what is lost is the difference from the same seed with nothing frozen. Training "
        "then goes on with everything, which the figure shows and no criterion uses.",
        arms={
            "nothing frozen": two_layers(scale),
            "W_K1 and W_K2 frozen": frozen(scale, "W_K1", "W_K2"),
            "W_O2 frozen": frozen(scale, "W_O2"),
        },
        measure=lambda outcomes: measure_W_O2_first(outcomes, held),
        control="Nothing is frozen in the arms that are called frozen (other seeds).",
        null_arms={
            "nothing frozen": two_layers(scale),
            "W_K1 and W_K2 frozen": two_layers(scale, again=True),
            "W_O2 frozen": two_layers(scale, again=True),
        },
    )


def W_K2_is_easier_first(scale: Scale) -> Claim:
    """W_K2 forms while W_K1 is frozen, more than W_K1 does while W_K2 is."""
    held = SETTINGS[scale].held
    return Claim(
        name="W_K2-before-W_K1",
        sentence="W_K2 is easier to learn before W_K1 than the other way round.",
        source="[mem]; the freezing studies [code]",
        question=f"After {held} steps, does W_K1 miss a frozen W_K2 more than W_K2 misses a frozen W_K1?",
        criteria=(
            Criterion("asymmetry", "recall that W_K1 loses to a frozen W_K2, minus the reverse", _MORE),
            Criterion("W_K2-alone", "recall of W_K2 while W_K1 is frozen", _NEAR_ONE),
        ),
        measured=f"Recall probes at step {held}, the last one frozen; what is lost is the difference from the "
        "same seed with nothing frozen. Training then goes on with everything, which the figure "
        "shows and no criterion uses.",
        arms={
            "nothing frozen": two_layers(scale),
            "W_K1 frozen": frozen(scale, "W_K1"),
            "W_K2 frozen": frozen(scale, "W_K2"),
        },
        measure=lambda outcomes: measure_asymmetry(outcomes, held),
        control="Nothing is frozen in the arms that are called frozen (other seeds).",
        null_arms={
            "nothing frozen": two_layers(scale),
            "W_K1 frozen": two_layers(scale, again=True),
            "W_K2 frozen": two_layers(scale, again=True),
        },
    )


def frozen(scale: Scale, *memories: str) -> Arm:
    """The usual run, but the matrices of these memories do not move in the first three quarters."""
    until = {_PARAMETERS[memory]: SETTINGS[scale].held for memory in memories}
    return arm(f"{' and '.join(memories)} frozen", scale, training={"freeze_until": until})


def measure_W_O2_first(outcomes: Outcomes, step: int) -> Evidence:
    """What is there at the last frozen step, without the keys and without W_O2."""
    frame = _at(outcomes, step)
    free, no_keys, no_copy = (_of(frame, name) for name in ("nothing frozen", "W_K1 and W_K2 frozen", "W_O2 frozen"))
    values = {
        "can": no_keys["recall_W_O2"].tolist(),
        "must-W_K2": (free["recall_W_K2"] - no_copy["recall_W_K2"]).tolist(),
        "must-W_K1": (free["recall_W_K1"] - no_copy["recall_W_K1"]).tolist(),
        "not-enough": (free["accuracy"] - no_keys["accuracy"]).tolist(),
    }
    silent = {f"must-{memory}": _nothing_to_lose(free, memory, _MUCH) for memory in ("W_K2", "W_K1")}
    return Evidence(values, _figures(outcomes, frame, step), [_table(frame, step)], silent=silent)


def measure_asymmetry(outcomes: Outcomes, step: int) -> Evidence:
    """What each key-query matrix loses to the other's being frozen."""
    frame = _at(outcomes, step)
    free, no_K1, no_K2 = (_of(frame, name) for name in ("nothing frozen", "W_K1 frozen", "W_K2 frozen"))
    lost_K1, lost_K2 = free["recall_W_K1"] - no_K2["recall_W_K1"], free["recall_W_K2"] - no_K1["recall_W_K2"]
    values = {"asymmetry": (lost_K1 - lost_K2).tolist(), "W_K2-alone": no_K1["recall_W_K2"].tolist()}
    silent = {"asymmetry": _nothing_to_lose(free, "W_K1", _MORE)}
    return Evidence(values, _figures(outcomes, frame, step), [_table(frame, step)], silent=silent)


def _nothing_to_lose(free: pd.DataFrame, memory: str, margin: float) -> str:
    """Why a small loss denies nothing, if the memory had no more than the margin to lose; empty if it had."""
    had = float(free[f"recall_{memory}"].mean())
    return f"{memory} recalls {had:.3g} where nothing is frozen and cannot lose more" if had <= margin else ""


def _at(outcomes: Outcomes, step: int) -> pd.DataFrame:
    """One row for each arm and seed: what is read at that step (at the last one of a run that is shorter)."""
    rows = []
    for name, runs in outcomes.items():
        for index, run in enumerate(runs):
            history = run.history
            there = history[history["step"] <= step].iloc[-1]
            rows.append({"arm": name, "seed": index, **{column: float(there[column]) for column in _READ}})
    return pd.DataFrame(rows)


def _of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame.loc[frame["arm"] == name].reset_index(drop=True)


def _figures(outcomes: Outcomes, frame: pd.DataFrame, step: int) -> list[FigureOf]:
    curves = {
        name: [(run.history["step"].to_numpy(), run.history["accuracy"].to_numpy()) for run in runs]
        for name, runs in outcomes.items()
    }
    over_time = seed_curves(curves, x="training step", y="in-context accuracy", share=True)
    over_time.add_vline(x=step, line={"dash": "dash", "width": 1, "color": MUTED})
    figures = [FigureOf(over_time, f"Accuracy; what is frozen is set free after step {step}. Thin lines are seeds.")]
    for column in ("recall_W_K1", "recall_W_K2"):
        memory = column.removeprefix("recall_")
        points = seed_points({name: _of(frame, name)[column].tolist() for name in outcomes}, y=f"recall of {memory}")
        figures.append(
            FigureOf(points.update_yaxes(range=[-0.03, 1.03]), f"Recall of {memory} at step {step}, by seed.")
        )
    return figures


def _table(frame: pd.DataFrame, step: int) -> TableOf:
    return TableOf("frozen", f"What is there at step {step}", frame)

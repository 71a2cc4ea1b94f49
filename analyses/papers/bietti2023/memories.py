"""Claim: the weights become associative memories as accuracy rises."""

import numpy as np
import pandas as pd
from scipy import stats

from analyses.papers.bietti2023.setting import two_layers, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf

_MEMORIES = ("W_O2", "W_K2", "W_K1")
_NEAR_ONE = 0.9
_TOGETHER = 0.8


def weights_become_memories(scale: Scale) -> Claim:
    """The three recall probes rise to about 1, together with accuracy."""
    return Claim(
        name="memories-form",
        sentence="The weights become associative memories: the recall probes rise to about 1 as accuracy rises.",
        source="[abs][mem], probes [code]",
        question="After training, what share of tokens does W_O2 copy, of triggers does W_K2 match, and of "
        "positions does W_K1 lead to the one before; and do these shares rise with accuracy?",
        criteria=(
            *(Criterion(memory, f"recall of {memory} at the end", _NEAR_ONE) for memory in _MEMORIES),
            Criterion("together", "rank correlation of mean recall and accuracy over training", _TOGETHER),
        ),
        measured="The paper's recall probes [code] at every logged step: W_O2 over all tokens, W_K2 over the "
        "triggers as keys, W_K1 over all positions. The rank correlation is Spearman's, over the "
        "logged steps, between the mean of the three and the in-context accuracy on the evaluation "
        "prompts; 0 where one of them never changes.",
        arms={"two layers": two_layers(scale)},
        measure=measure_recalls,
        control="The same models without training.",
        null_arms={"two layers": untrained(scale)},
    )


def measure_recalls(outcomes: Outcomes) -> Evidence:
    """Recall at the end, and its rank correlation with accuracy."""
    histories = [run.history for run in outcomes["two layers"]]
    values = {memory: [float(one[f"recall_{memory}"].iloc[-1]) for one in histories] for memory in _MEMORIES}
    values["together"] = [_rank_correlation(one) for one in histories]
    shown = {f"recall of {memory}": f"recall_{memory}" for memory in _MEMORIES} | {"accuracy": "accuracy"}
    curves = {
        name: [(one["step"].to_numpy(), one[column].to_numpy()) for one in histories] for name, column in shown.items()
    }
    figure = seed_curves(curves, x="training step", y="share", share=True)
    frame = pd.DataFrame(values)
    frame["accuracy"] = [float(one["accuracy"].iloc[-1]) for one in histories]
    return Evidence(
        values,
        figures=[FigureOf(figure, "Recall of the memories, and in-context accuracy; thin lines are seeds.", wide=True)],
        tables=[TableOf("recall", "Recall at the end, by seed", frame)],
    )


def _rank_correlation(history: pd.DataFrame) -> float:
    recall = history[[f"recall_{memory}" for memory in _MEMORIES]].mean(axis=1).to_numpy()
    accuracy = history["accuracy"].to_numpy()
    if np.ptp(recall) == 0 or np.ptp(accuracy) == 0:
        return 0.0
    return float(stats.spearmanr(recall, accuracy).statistic)  # pyright: ignore[reportAttributeAccessIssue]

"""Claim: global bigrams are learned fast, the induction head more slowly."""

import math

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.papers.bietti2023.accuracies import loss_of
from analyses.papers.bietti2023.milestones import log2_ratio, lower_bound, step_of_passing
from analyses.papers.bietti2023.setting import SETTINGS, arm, eval_prompts, task_of, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.run import Run
from tasks.bigram_predictors import BayesOptimal

_WITH_MEMORY = "bietti-simplified-ff"
_HALF = 0.5
_SEGMENTS = {"global": 0, "in_context": 2}
"""Names in the history, and the label of the positions."""


def global_bigrams_come_first(scale: Scale) -> Claim:
    """The loss off triggers falls before the loss on known triggers does."""
    setting = SETTINGS[scale]
    everywhere = {"scored": "all"}
    # half as many steps again
    training = {"steps": 3 * setting.steps // 2, "log_every": max(1, setting.log_every // 2)}
    return Claim(
        name="global-before-in-context",
        sentence="Global bigrams are learned fast, in-context bigrams more slowly.",
        source="[abs][mem]",
        question="With every position scored, how much longer does the loss at triggers seen before take to "
        "come halfway than the loss at tokens that are no triggers?",
        criteria=(
            Criterion("later", "log2 of the steps to halfway in context over those of global bigrams", 1.0),
            Criterion("learned", "share of the way that the in-context loss has come at the end", _HALF),
        ),
        measured="The way leads from the loss of knowing nothing (the logarithm of the vocabulary's size) to "
        "that of the Bayes-optimal predictor on the same evaluation prompts, for tokens that are no "
        "triggers and for triggers at their second and later occurrences. Between logged steps the "
        "curve is taken as straight; a curve that never comes halfway counts as if it did at the "
        "last step. The model has the linear feed-forward part that can hold the global bigrams, and trains for "
        f"{training['steps']} steps: three things are to be learned here rather than one.",
        arms={"trained": arm("all positions", scale, task=everywhere, base=_WITH_MEMORY, training=training)},
        measure=measure_halfway,
        control="The same models without training: neither loss moves, so that the delay is 0 by construction, and "
        "what is checked is that nothing counts as learned.",
        null_arms={"trained": untrained(scale, task=everywhere, base=_WITH_MEMORY)},
    )


def measure_halfway(outcomes: Outcomes) -> Evidence:
    """Steps to halfway, for both kinds of position."""
    rows, curves = [], {"global": [], "in context": []}
    for run in outcomes["trained"]:
        history = run.history
        row: dict[str, float] = {}
        for name in _SEGMENTS:
            way = share_of_way(run, name)
            row[f"steps_{name}"] = step_of_passing(history["step"].to_numpy(), way, _HALF)
            row[f"end_{name}"] = float(way[-1])
            curves[name.replace("_", " ")].append((history["step"].to_numpy(), way.clip(min=-0.3)))
        rows.append(row)
    frame = pd.DataFrame(rows)
    ways = [way for _, way in curves["in context"]]
    later = [log2_ratio(row["steps_in_context"], row["steps_global"]) for row in rows]
    figure = seed_curves(curves, x="training step", y="share of the way to Bayes")
    return Evidence(
        {"later": later, "learned": frame["end_in_context"].tolist()},
        figures=[FigureOf(figure, "How far each loss has come; thin lines are seeds.", wide=True)],
        tables=[TableOf("steps", "Steps to halfway, by seed", frame)],
        silent={"later": lower_bound("the share of the way in context", ways, _HALF)},
    )


def share_of_way(run: Run, segment: str) -> Float[np.ndarray, "row"]:
    """By logged step: (log V − loss) / (log V − Bayes loss) at one kind of position."""
    prompts = eval_prompts(run)
    prompts = prompts.score_only(prompts.labels["segment"] == _SEGMENTS[segment])
    task = task_of(run)
    nothing, best = math.log(task.d_vocab), loss_of(BayesOptimal(task), prompts)
    return (nothing - run.history[f"loss_{segment}"].to_numpy()) / (nothing - best)

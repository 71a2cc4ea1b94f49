"""Claim: the previous-token memory is learned for early positions much before late ones."""

import numpy as np
import pandas as pd
import torch

from analyses.memory_scores import previous_token_scores
from analyses.memory_statistics import unique_best
from analyses.papers.bietti2023.milestones import log2_ratio, lower_bound, step_of_passing
from analyses.papers.bietti2023.setting import SETTINGS, early_positions, two_layers, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.run import Run

_HALF = 0.5
_SMOOTHED = 5  # positions averaged in the figure, an odd number


def early_positions_come_first(scale: Scale) -> Claim:
    """W_K1 is stored for the first quarter of the positions before the others."""
    n_pos = SETTINGS[scale].seq_len
    cut = early_positions(n_pos)
    return Claim(
        name="early-positions-first",
        sentence="W_K1 learns early positions much before late ones.",
        source="[mem]; the paper cuts at 64 of 256 positions [code]",
        question=f"How much longer does the recall of W_K1 take to reach one half at positions from {cut} on "
        f"than at positions before {cut}, of {n_pos}?",
        criteria=(
            Criterion("later", "log2 of the steps to half recall of late positions over those of early ones", 1.0),
            Criterion("early-learned", "recall of W_K1 at early positions at the end", _HALF),
        ),
        measured="The recall probe of W_K1 [code], where position t is recalled if its best key among all "
        "positions is t − 1, split by t. Between logged steps the curve is taken as straight; a "
        "curve that never reaches one half counts as if it did at the last step, which understates "
        "the difference.",
        arms={"two layers": two_layers(scale)},
        measure=measure_positions,
        control="The same models without training: neither recall moves, so that the delay is 0 by construction, and "
        "what is checked is that nothing counts as learned.",
        null_arms={"two layers": untrained(scale)},
    )


def measure_positions(outcomes: Outcomes) -> Evidence:
    """Steps to half recall, early and late, and recall by position at the end."""
    runs = outcomes["two layers"]
    rows, curves = [], {"early": [], "late": []}
    for run in runs:
        history = run.history
        row: dict[str, float] = {}
        for part in curves:
            steps, recall = history["step"].to_numpy(), history[f"recall_W_K1_{part}"].to_numpy()
            row |= {f"steps_{part}": step_of_passing(steps, recall, _HALF), f"end_{part}": recall[-1]}
            curves[part].append((steps, recall))
        rows.append(row)
    frame = pd.DataFrame(rows)
    over_time = seed_curves(
        {f"{name} positions": one for name, one in curves.items()}, x="training step", y="recall of W_K1", share=True
    )
    hits = [_recalled(run) for run in runs]
    window = np.ones(_SMOOTHED) / _SMOOTHED
    places = np.arange(1, len(hits[0]) + 1)[_SMOOTHED // 2 : -(_SMOOTHED // 2)]
    smooth = [(places, np.convolve(one, window, mode="valid")) for one in hits]
    by_position = seed_curves({"at the end": smooth}, x="position", y="recall of W_K1", share=True)
    table = pd.DataFrame({"position": np.arange(1, len(hits[0]) + 1), "recalled": np.mean(hits, axis=0)})
    return Evidence(
        {
            "later": [log2_ratio(row["steps_late"], row["steps_early"]) for row in rows],
            "early-learned": frame["end_early"].tolist(),
        },
        figures=[
            FigureOf(over_time, "Recall of early and of late positions during training; thin lines are seeds."),
            FigureOf(
                by_position,
                f"Recall by position at the end, each averaged over {_SMOOTHED} positions; thin lines are seeds.",
            ),
        ],
        tables=[
            TableOf("steps", "Steps to half recall, by seed", frame),
            TableOf("map", "Share of seeds that recall each position at the end", table),
        ],
        silent={"later": lower_bound("the recall of late positions", [recall for _, recall in curves["late"]], _HALF)},
    )


@torch.no_grad()
def _recalled(run: Run) -> np.ndarray:
    """1 where position t = 1, 2, … finds t − 1 among all keys, else 0."""
    model = run.model
    scores = previous_token_scores(model.W_pos[: run.task.n_ctx], model.W_Q[0, 0], model.W_K[0, 0])
    return (unique_best(scores) == torch.arange(len(scores))).double().numpy()

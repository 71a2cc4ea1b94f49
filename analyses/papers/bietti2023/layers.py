"""Claim: one layer of attention fails on in-context bigrams, two layers succeed."""

import pandas as pd
import torch

from analyses.papers.bietti2023.setting import ONE_LAYER, SETTINGS, TEST_SEED, arm, two_layers, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.run import Run
from tasks.bigram_predictors import CurrentToken, InContextUnigram
from tasks.prompts import Prompts
from tasks.protocol import Predictor


def two_layers_are_needed(scale: Scale) -> Claim:
    """One layer does no better than counting tokens, two layers copy."""
    one_layer = arm("one layer", scale, model=ONE_LAYER)
    return Claim(
        name="two-layers-needed",
        sentence="A one-layer model fails on in-context bigrams, two layers succeed.",
        source="[abs][mem]",
        question="How often is the output of a trigger that occurred before predicted, by one layer and by "
        "two, beside a predictor that only counts which tokens are over-represented in the prompt?",
        criteria=(
            Criterion("two-over-one", "accuracy of two layers minus that of one", 0.25),
            Criterion("two-over-counting", "accuracy of two layers minus that of counting", 0.25),
            Criterion("one-over-counting", "accuracy of one layer minus that of counting", 0.05, "below"),
        ),
        measured=f"Accuracy on the in-context positions of {SETTINGS[scale].test_prompts} fresh prompts per "
        "seed, positions left out from which a prompt only goes round a loop of triggers. Counting is the "
        "in-context unigram predictor: the token most over-represented so far, the best that one layer is "
        "known to reach. The one-layer model's W_O is trained, as the second layer's is.",
        arms={"two layers": two_layers(scale), "one layer": one_layer},
        measure=lambda outcomes: measure_layers(outcomes, scale),
        control="Two layers that were not trained, in place of the trained ones.",
        null_arms={"two layers": untrained(scale), "one layer": one_layer},
    )


def measure_layers(outcomes: Outcomes, scale: Scale) -> Evidence:
    """Accuracies of both models and of the predictors, on the same prompts for each seed."""
    rows = []
    for two, one in zip(outcomes["two layers"], outcomes["one layer"], strict=True):
        prompts = not_absorbed(
            one.task.sample(SETTINGS[scale].test_prompts, seed=(TEST_SEED, one.train_config.init_seed))
        )
        rows.append(
            {
                "two layers": accuracy_of(two, prompts),
                "one layer": accuracy_of(one, prompts),
                "counting": predicted(InContextUnigram(one.task), prompts),
                "chance": predicted(CurrentToken(one.task), prompts),
            }
        )
    frame = pd.DataFrame(rows)
    values = {
        "two-over-one": (frame["two layers"] - frame["one layer"]).tolist(),
        "two-over-counting": (frame["two layers"] - frame["counting"]).tolist(),
        "one-over-counting": (frame["one layer"] - frame["counting"]).tolist(),
    }
    marks = {"counting": float(frame["counting"].mean()), "chance (current token)": float(frame["chance"].mean())}
    points = {name: frame[name].tolist() for name in ("one layer", "two layers")}
    figure = seed_points(points, y="in-context accuracy", marks=marks).update_yaxes(range=[0, 1.03])
    return Evidence(
        values,
        figures=[FigureOf(figure, "In-context accuracy on fresh prompts, every seed a point; bars are means.")],
        tables=[TableOf("accuracy", "Accuracy by seed", frame)],
    )


def not_absorbed(prompts: Prompts) -> Prompts:
    """Scored where the prompt can still bring something new, and copying is not trivial."""
    return prompts.score_only(~prompts.labels["absorbed"])


@torch.no_grad()
def accuracy_of(run: Run, prompts: Prompts, batch: int = 256) -> float:
    """The share of scored positions that the trained model predicts."""
    return _accuracy(lambda part: run.model(part.inputs), prompts, batch)


def predicted(predictor: Predictor, prompts: Prompts, batch: int = 256) -> float:
    """The share of scored positions that a predictor predicts."""
    return _accuracy(predictor, prompts, batch)


def _accuracy(predictor: Predictor, prompts: Prompts, batch: int) -> float:
    sums = counts = 0.0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        total, count = part.accuracy(predictor(part))
        sums, counts = sums + float(total.sum()), counts + float(count.sum())
    return sums / counts

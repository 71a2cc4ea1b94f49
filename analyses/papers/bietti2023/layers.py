"""Claim: one layer of attention fails on in-context bigrams, two layers succeed."""

import pandas as pd

from analyses.papers.bietti2023.accuracies import accuracy_of, not_absorbed, predicted
from analyses.papers.bietti2023.setting import ONE_LAYER, arm, task_of, test_prompts, two_layers, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from tasks.bigram_predictors import CurrentToken, InContextUnigram


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
        measured="Accuracy on the in-context positions of fresh prompts, without the positions from which on "
        "a prompt only goes round a loop of triggers. Counting is the in-context unigram predictor: "
        "the token most over-represented so far. The one-layer model's W_O is trained, as the second "
        "layer's is in the other.",
        arms={"two layers": two_layers(scale), "one layer": one_layer},
        measure=measure_layers,
        control="Two layers that were not trained, in place of the trained ones.",
        null_arms={"two layers": untrained(scale), "one layer": one_layer},
    )


def measure_layers(outcomes: Outcomes) -> Evidence:
    """Accuracies of both models and of the predictors, on the same prompts for each seed."""
    task = task_of(outcomes["one layer"][0])
    predictors = {"counting": InContextUnigram(task), "chance": CurrentToken(task)}
    rows = []
    for two, one in zip(outcomes["two layers"], outcomes["one layer"], strict=True):
        prompts = not_absorbed(test_prompts(task, one))
        row = {"two layers": accuracy_of(two, prompts), "one layer": accuracy_of(one, prompts)}
        rows.append(row | {name: predicted(predictor, prompts) for name, predictor in predictors.items()})
    frame = pd.DataFrame(rows)
    values = {
        "two-over-one": (frame["two layers"] - frame["one layer"]).tolist(),
        "two-over-counting": (frame["two layers"] - frame["counting"]).tolist(),
        "one-over-counting": (frame["one layer"] - frame["counting"]).tolist(),
    }
    marks = {"counting": float(frame["counting"].mean()), "chance: current token": float(frame["chance"].mean())}
    points = {name: frame[name].tolist() for name in ("one layer", "two layers")}
    figure = seed_points(points, y="in-context accuracy", marks=marks).update_yaxes(range=[0, 1.03])
    return Evidence(
        values,
        figures=[FigureOf(figure, "In-context accuracy on fresh prompts; a point for each seed, a bar at the mean.")],
        tables=[TableOf("accuracy", "Accuracy by seed", frame)],
    )

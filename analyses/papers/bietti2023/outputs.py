"""Claims on the outputs in training: uniform ones generalise better than bigram ones; and to outputs never seen?"""

from dataclasses import replace

import pandas as pd

from analyses.papers.bietti2023.accuracies import accuracy_of, not_absorbed, predicted
from analyses.papers.bietti2023.setting import arm, task_of, test_prompts, two_layers, untrained
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_points
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from tasks.bigram_predictors import CurrentToken


def uniform_outputs_generalise_better(scale: Scale) -> Claim:
    """Trained on uniform or on bigram outputs, both tested on uniform ones."""
    return Claim(
        name="uniform-outputs-generalise",
        sentence="Uniform outputs in training generalise to new output tokens better than bigram outputs.",
        source="[mem]; the study [code]",
        question="Tested on uniform outputs of the same triggers, how much more accurate is a model trained "
        "on uniform outputs than one trained on outputs that the bigram law makes likely?",
        criteria=(
            Criterion("gain", "accuracy on uniform outputs, trained on uniform minus trained on bigram outputs", 0.1),
        ),
        measured="In-context accuracy on the same fresh prompts with uniform outputs, without the positions "
        "from which on a prompt only goes round a loop of triggers. The table has both models on "
        "bigram outputs as well.",
        arms={"uniform": two_layers(scale), "bigram": arm("bigram outputs", scale, task={"outputs": "bigram"})},
        measure=measure_outputs,
        control="Uniform outputs in both arms (other seeds in the second).",
        null_arms={"uniform": two_layers(scale), "bigram": two_layers(scale, again=True)},
    )


def measure_outputs(outcomes: Outcomes) -> Evidence:
    """Both models on the same prompts, of uniform and of bigram outputs."""
    tested = {
        "uniform": task_of(outcomes["uniform"][0]),
        "bigram": replace(task_of(outcomes["uniform"][0]), outputs="bigram"),
    }
    rows = []
    for uniform, bigram in zip(outcomes["uniform"], outcomes["bigram"], strict=True):
        row: dict[str, float] = {}
        for name, task in tested.items():
            prompts = not_absorbed(test_prompts(task, uniform))
            row[f"uniform, tested on {name}"] = accuracy_of(uniform, prompts)
            row[f"bigram, tested on {name}"] = accuracy_of(bigram, prompts)
        rows.append(row)
    frame = pd.DataFrame(rows)
    gain = frame["uniform, tested on uniform"] - frame["bigram, tested on uniform"]
    points = {f"trained on {name}": frame[name].tolist() for name in frame}
    figure = seed_points(points, y="in-context accuracy").update_yaxes(range=[0, 1.03])
    return Evidence(
        {"gain": gain.tolist()},
        figures=[FigureOf(figure, "Accuracy by outputs in training and in testing, every seed a point.", wide=True)],
        tables=[TableOf("accuracy", "Accuracy by seed", frame)],
    )


def held_out_outputs_are_copied(scale: Scale) -> Claim:
    """A study of its own: outputs in training from three quarters of the vocabulary, in testing from the rest."""
    split = {"output_split": "first"}
    return Claim(
        name="held-out-outputs",
        sentence="A model trained on outputs from three quarters of the vocabulary copies outputs from the rest.",
        source="[code] has the study; what the paper found in it is not known to us",
        question="How often are outputs predicted that were never an output in training, beyond what the "
        "current token alone tells?",
        criteria=(Criterion("held-out", "accuracy on held-out outputs minus that of the current token alone", 0.25),),
        measured="In-context accuracy on fresh prompts whose outputs come from the last quarter of the "
        "vocabulary, without the positions from which on a prompt only goes round a loop of "
        "triggers. The held-out tokens do occur in training, as ordinary tokens; the loss is taken "
        "at triggers only, so they are never a target. The table has the outputs of training, and "
        "the model trained on all outputs.",
        arms={"split": arm("outputs from 75 %", scale, task=split), "all": two_layers(scale)},
        measure=measure_held_out,
        control="The same models without training.",
        null_arms={"split": untrained(scale, task=split), "all": two_layers(scale)},
    )


def measure_held_out(outcomes: Outcomes) -> Evidence:
    """Accuracy on outputs of either part of the vocabulary."""
    seen = task_of(outcomes["split"][0])
    held_out = replace(seen, output_split="rest")
    chance = CurrentToken(held_out)
    rows = []
    for split, whole in zip(outcomes["split"], outcomes["all"], strict=True):
        new, old = not_absorbed(test_prompts(held_out, split)), not_absorbed(test_prompts(seen, split))
        rows.append(
            {
                "held out": accuracy_of(split, new),
                "seen": accuracy_of(split, old),
                "held out, trained on all": accuracy_of(whole, new),
                "chance": predicted(chance, new),
            }
        )
    frame = pd.DataFrame(rows)
    points = {name: frame[name].tolist() for name in ("seen", "held out", "held out, trained on all")}
    marks = {"held out, current token only": float(frame["chance"].mean())}
    figure = seed_points(points, y="in-context accuracy", marks=marks).update_yaxes(range=[-0.03, 1.03])
    return Evidence(
        {"held-out": (frame["held out"] - frame["chance"]).tolist()},
        figures=[FigureOf(figure, "Accuracy on outputs seen in training and held out, every seed a point.", wide=True)],
        tables=[TableOf("accuracy", "Accuracy by seed", frame)],
    )

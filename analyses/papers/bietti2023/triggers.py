"""Claim: fixed frequent triggers are learned fastest, rarer or random ones more slowly."""

import numpy as np
import pandas as pd

from analyses.papers.bietti2023.accuracies import predicted
from analyses.papers.bietti2023.milestones import log2_ratio, lower_bound, step_of_passing
from analyses.papers.bietti2023.setting import arm, eval_prompts, task_of, two_layers
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.seed_figures import seed_curves
from analyses.papers.verdicts import Criterion
from analyses.report.contents import FigureOf, TableOf
from interp.run import Run
from tasks.bigram_predictors import BayesOptimal, CurrentToken

_HALF = 0.5
_SKIPPED = 15
"""Most frequent tokens that rarer triggers skip: triggers 16 to 20 [ours]."""


def frequent_triggers_are_fastest(scale: Scale) -> Claim:
    """Rarer fixed triggers and random ones take longer to learn."""
    margin = 0.5
    return Claim(
        name="trigger-frequency",
        sentence="Fixed frequent triggers are learned fastest, rarer or random ones more slowly.",
        source="[mem]",
        question="How many more steps does the in-context accuracy take to come halfway with rarer triggers, "
        "and with triggers drawn anew in each prompt, than with the five most frequent ones?",
        criteria=(
            Criterion("rarer", "log2 of the steps to halfway of rarer triggers over those of frequent ones", margin),
            Criterion("random", "log2 of the steps to halfway of random triggers over those of frequent ones", margin),
        ),
        measured=f"Rarer triggers are tokens {_SKIPPED + 1} to {_SKIPPED + 5} by frequency; random ones are "
        "drawn from the unigram law. The way leads from the accuracy of the best predictor that sees "
        "the current token only to that of the Bayes-optimal one, on the same evaluation prompts. "
        "Between logged steps the curve is taken as straight; a curve that never comes halfway "
        "counts as if it did at the last step, which understates the difference.",
        arms={
            "frequent": two_layers(scale),
            "rarer": arm("rarer triggers", scale, task={"trigger_offset": _SKIPPED}),
            "random": arm("random triggers", scale, task={"triggers": "random"}),
        },
        measure=measure_triggers,
        control="Frequent triggers in all three arms (other seeds in the latter two).",
        null_arms={
            "frequent": two_layers(scale),
            "rarer": two_layers(scale, again=True),
            "random": two_layers(scale, again=True),
        },
    )


def measure_triggers(outcomes: Outcomes) -> Evidence:
    """Steps to halfway for each kind of trigger, and how much there was to learn from."""
    rows, curves = [], {name: [] for name in outcomes}
    for name, runs in outcomes.items():
        chance, best = CurrentToken(task_of(runs[0])), BayesOptimal(task_of(runs[0]))
        for index, run in enumerate(runs):
            prompts = eval_prompts(run)
            low, high = predicted(chance, prompts), predicted(best, prompts)
            way = ((run.history["accuracy"] - low) / (high - low)).to_numpy()
            steps = step_of_passing(run.history["step"].to_numpy(), way, _HALF)
            per_step = _scored_per_step(run)
            row = {"arm": name, "seed": index, "steps": steps, "scored_per_step": per_step}
            row |= {
                "scored_positions": steps * per_step,
                "way_at_best": way.max(),
                "accuracy": run.history["accuracy"].iloc[-1],
            }
            rows.append(row | {"chance": low, "bayes": high})
            curves[name].append((run.history["step"].to_numpy(), way))
    frame = pd.DataFrame(rows)
    steps = {name: frame.loc[frame["arm"] == name, "steps"].tolist() for name in outcomes}
    values = {
        name: [log2_ratio(one, base) for one, base in zip(steps[name], steps["frequent"], strict=True)]
        for name in ("rarer", "random")
    }
    figure = seed_curves(
        {f"{name} triggers": one for name, one in curves.items()}, x="training step", y="share of the way to Bayes"
    )
    return Evidence(
        values,
        figures=[FigureOf(figure, "How far the in-context accuracy has come; thin lines are seeds.", wide=True)],
        tables=[TableOf("steps", "Steps to halfway, by kind of trigger and seed", frame)],
        text=_per_position(frame),
        silent={
            name: lower_bound(f"the way with {name} triggers", [way for _, way in curves[name]], _HALF)
            for name in ("rarer", "random")
        },
    )


def _scored_per_step(run: Run) -> float:
    prompts = eval_prompts(run)
    return float(prompts.scored.sum()) / len(prompts) * run.train_config.batch_size


def _per_position(frame: pd.DataFrame) -> tuple[str, ...]:
    """How many never came halfway, and the confound in numbers: other triggers bring other numbers of positions."""
    said = []
    frequent = frame.loc[frame["arm"] == "frequent"]
    base, base_per_step = frequent["scored_positions"].to_numpy(), frequent["scored_per_step"].mean()
    for name in ("rarer", "random"):
        rows = frame.loc[frame["arm"] == name]
        n_never = int((rows["way_at_best"] < _HALF).sum())
        ratio = np.log2(rows["scored_positions"].to_numpy() / base).mean()
        fewer = base_per_step / rows["scored_per_step"].mean()
        bound = f" at least (a lower bound: {n_never} of {len(rows)} seeds never came halfway)" if n_never else ""
        said.append(
            f"With {name} triggers a step has fewer scored positions, one for every {fewer:.1f} of frequent ones; "
            f"counted in scored positions seen rather than in steps, the mean log2 ratio is {ratio:.2f}{bound}."
        )
    return tuple(said)

"""The report of many seeds: the curves with bands, what emerged when, and where the seeds ended."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.emergence import Emergence
from analyses.figures import MUTED, component_colour, words
from analyses.report.contents import FigureOf, Report, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.folder import PAGE, refuse_occupied, write_folder
from analyses.report.seeds import REPORT_STREAM, check_n_prompts
from analyses.seed_dynamics import SeedDynamics, seed_histories
from interp.evaluation import evaluate
from interp.seed_runs import SeedRuns
from tasks.errors import InputError

RECALL = "recall_"
SIGNIFICANT = 0.05
_FEWEST = 5
_PROMPTS_AT_ONCE = 128
_METHOD = (
    (
        "The seed is the unit: every interval is over training seeds, each with its own initial weights and prompts. "
        "Thin lines are seeds, thick ones their mean; the band is Student's 95% interval of the mean, for each step by "
        "itself."
    ),
    (
        "The gain of a memory is the median over seeds of its last recall minus its first. It has emerged in a seed at "
        "the first logged step at which the recall lies above that seed's start by half the gain. Seeds that never get "
        "there are censored: they count as later than the last step, and none is dropped. The mean gain has Student's "
        "interval; a memory for which it holds zero has emerged nowhere. The interval of a median step is exact (order "
        "statistics); a missing end lies beyond the last step, or needs more seeds. A step is that of a logged row, so "
        "the true one lies between it and the row before."
    ),
    (
        "One memory is said to come before another if a sign test over seeds says so after correction for the number "
        "of pairs (Bonferroni); seeds in which both came at the same logged step speak for neither."
    ),
)


def write_seeds_report(runs: SeedRuns, out: str | Path, *, seed: int = 0, n_prompts: int = 512) -> Path:
    """Say how a training went over its seeds: page, tables and JSON in a new folder; returns the page.

    Args:
        out: a folder that does not exist yet, or an empty one.
        seed: draws the fresh prompts, the same for every model, that the last checkpoints are measured on.
        n_prompts: how many.

    Raises:
        InputError: fewer than 5 seeds, seeds that stopped before their end, a folder that is not empty, or runs that
            cannot be read.
    """
    folder = Path(out)
    refuse_occupied(folder)
    check_n_prompts(n_prompts)
    if len(runs) < _FEWEST:
        raise InputError(f"{len(runs)} seeds are too few for intervals over seeds: train at least {_FEWEST}")
    if runs.unfinished or runs.missing:
        left = ", ".join(map(str, [*runs.unfinished, *runs.missing]))
        raise InputError(f"seeds {left} of {runs.path} are not trained to their end: run the training again")
    recalls, emergence = _recalls(runs)
    sections = [] if recalls is None or emergence is None else [_memories(recalls, emergence)]
    sections += [_learning(runs), _end(runs, seed, n_prompts), _training(runs)]
    findings = [
        _final_finding(sections[-2].tables[0].frame),
        *([] if emergence is None else _order_findings(emergence)),
    ]
    report = Report(
        f"{runs.task.name}: one training from {len(runs)} seeds",
        _facts(runs, n_prompts),
        findings,
        sections,
        _settings(runs, seed, n_prompts),
        _METHOD if recalls is not None else _METHOD[:1],
    )
    write_folder(folder, report)
    return folder / PAGE


def _recalls(runs: SeedRuns) -> tuple[SeedDynamics | None, Emergence | None]:
    """The recall of each memory as it was logged, if it was."""
    history = runs.history
    names = [str(name) for name in history if str(name).startswith(RECALL)]
    early = f"{RECALL}W_K1_first64"  # of prompts no longer than that, the same curve once more
    names = [name for name in names if name != early or not history[name].equals(history[f"{RECALL}W_K1"])]
    if not names:
        return None, None
    found = seed_histories(runs, names)
    frame = found.frame.assign(readout=found.frame["readout"].str.removeprefix(RECALL))
    recalls = SeedDynamics(frame, "Recall of the memories", found.settings)
    return recalls, recalls.emergence()


def _memories(recalls: SeedDynamics, emergence: Emergence) -> Section:
    names = list(dict.fromkeys(recalls.frame["readout"]))
    colours = {name: component_colour(int("K1" not in name), 0) for name in names}
    curves = recalls.drawn(colours).update_layout(title=None)
    curves.update_yaxes(range=[-0.03, 1.05]).update_yaxes(title_text="recall (share)", row=1, col=1)
    gain = ("gain", "mean_gain", "mean_gain_low", "mean_gain_high")
    shown = ("readout", *gain, "n_seeds", "n_censored", "median_step", "ci_low", "ci_high")
    censored = int(emergence.summary["n_censored"].sum())
    never = "Every seed gets there." if not censored else "Triangles at the end are seeds that never get there."
    return Section(
        "memories",
        "Memories",
        "When the memories are learned",
        text=[f"Note: {note}." for note in emergence.notes],
        figures=[
            FigureOf(curves, "Recall of each memory in training: every seed, their mean, and its 95% band.", wide=True),
            FigureOf(
                emergence.drawn(colours).update_layout(title=None),
                f"The step at which each memory has half of its gain: a mark per seed, and the median with its "
                f"interval below them. {never}",
                height=90 + 90 * len(names),
                wide=True,
            ),
        ],
        tables=[
            TableOf("emergence_summary", "Steps to half of the gain", emergence.summary, shown, emergence.settings),
            TableOf("emergence_order", "Which memory comes first", emergence.order),
            TableOf("emergence", "Every seed", emergence.frame),
            TableOf("recall_bands", "Recall against step, mean over seeds", recalls.bands(), notes=recalls.notes),
        ],
    )


def _learning(runs: SeedRuns) -> Section:
    history = runs.history
    names = [str(name) for name in history if str(name).startswith(("loss", "accuracy", "excess_risk"))]
    whole = [name for name in names if history.loc[history["step"] == history["step"].max(), name].notna().all()]
    measured = {"loss": "loss", "accuracy": "accuracy (share)", "excess_risk": "excess risk"}
    figures, bands = [], []
    for kind, axis in measured.items():
        of_kind = _distinct(history, [name for name in whole if name.startswith(kind)])
        if of_kind:
            curves = seed_histories(runs, of_kind)
            drawn = curves.drawn(dict.fromkeys(of_kind, MUTED)).update_layout(title=None)
            figures.append(
                FigureOf(drawn.update_yaxes(title_text=axis, row=1, col=1), f"{words(kind).capitalize()} in training.")
            )
            bands.append(curves.bands())
    table = TableOf("learning_bands", "Loss and scores against step, mean over seeds", pd.concat(bands))
    return Section("learning", "Learning", "How good the models become", figures=figures, tables=[table])


def _distinct(history: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns, but for those that repeat an earlier one: a segment that is all there is, say."""
    kept: list[str] = []
    for name in names:
        if not any(history[name].equals(history[other]) for other in kept):
            kept.append(name)
    return kept


def _end(runs: SeedRuns, seed: int, n_prompts: int) -> Section:
    """Every last checkpoint on the same fresh prompts, and the mean over seeds."""
    eval_seeds = sorted({run.train_config.eval_seed for run in runs})
    prompts = runs.task.sample(n_prompts, seed=(eval_seeds[0], seed, REPORT_STREAM))
    figures = {number: evaluate(runs[number].model, prompts, _PROMPTS_AT_ONCE) for number in runs.seeds}
    rows = [
        {"seed": number, "step": runs[number].steps[-1], "readout": name, "value": value}
        for number, measured in figures.items()
        for name, value in measured.items()
    ]
    of_seeds = SeedDynamics(pd.DataFrame(rows), "Last checkpoints", {"n_prompts": n_prompts, "seed": seed})
    each = pd.DataFrame([{"seed": number, **measured} for number, measured in figures.items()])
    return Section(
        "end",
        "End",
        "Where the seeds end",
        tables=[
            TableOf("end_bands", "Last checkpoints, mean over seeds", of_seeds.bands(), settings=of_seeds.settings),
            TableOf("end", "Last checkpoint of every seed", each),
        ],
    )


def _training(runs: SeedRuns) -> Section:
    how = runs.how
    text = []
    timed = how.dropna(subset=["alone_seconds"])
    if not timed.empty:
        one = timed.iloc[-1]
        text.append(
            f"Before training, a step of one model alone took {1000 * one['alone_seconds']:.1f} ms and a step of "
            f"{one['n_stacked'] if one['way'] == 'stacked' else 'the stacked'} models "
            f"{1000 * one['stacked_seconds']:.1f} ms per model: they were trained {one['way']}."
        )
    return Section(
        "training",
        "Training",
        "How they were trained",
        text=text,
        tables=[TableOf("how", "Stacked or one by one", how), TableOf("history", "All histories", runs.history)],
    )


def _final_finding(bands: pd.DataFrame) -> Finding:
    there = set(bands["readout"])
    wanted = next(name for name in ("accuracy_in_context", "accuracy", "excess_risk", "loss") if name in there)
    row = _plain(bands[bands["readout"] == wanted].iloc[0].to_dict())
    sentence = (
        f"At the end the {words(wanted)} is {row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}], "
        f"the mean over {row['n_seeds']} seeds."
    )
    return Finding("end", claims=True, sentence=sentence, numbers=row, label="at the end")


def _order_findings(emergence: Emergence) -> list[Finding]:
    """What comes before what, as far as the seeds agree; and what never came."""
    findings = []
    for row in map(_plain, emergence.order.to_dict("records")):
        first, second, before, after = row["readout"], row["other"], row["n_before"], row["n_after"]
        if after > before:
            first, second, before, after = second, first, after, before
        n, tied = before + after + row["n_same_step"], row["n_same_step"]
        agreed = row["p_value"] is not None and row["p_value"] < SIGNIFICANT
        counts = f"in {before} of {n} seeds, after it in {after}, at the same logged step in {tied}"
        p_value = "" if row["p_value"] is None else f" (p = {row['p_value']:.2g}, corrected)"
        sentence = f"Which of {first} and {second} comes first is open: {first} does {counts}{p_value}."
        if agreed:
            sentence = f"{first} has half of its gain before {second} {counts}{p_value}."
        elif not n:
            sentence = f"Which of {first} and {second} comes first is open: no seed has half of either's gain."
        elif n < (fewest := _fewest_for_an_order(len(emergence.order))):
            sentence += f" So few seeds cannot settle it, even where all agree: train at least {fewest}."
        findings.append(Finding("memories", claims=agreed, sentence=sentence, numbers=row, label="order"))
    no_gain = emergence.frame.groupby("readout")["height"].apply(lambda heights: heights.isna().all())
    for row in map(_plain, emergence.summary.to_dict("records")):
        if row["n_censored"]:
            why = ": it has no clear gain over its start" if no_gain[row["readout"]] else ""
            counts = f"in {row['n_censored']} of {row['n_seeds']} seeds"
            sentence = f"{row['readout']} never has half of its gain {counts}{why}."
            findings.append(Finding("memories", claims=False, sentence=sentence, numbers=row, label="never"))
    return findings


def _fewest_for_an_order(n_pairs: int) -> int:
    """How many seeds that all agree a sign test needs, corrected for the number of pairs.

    >>> _fewest_for_an_order(1), _fewest_for_an_order(3)
    (6, 7)
    """
    n_seeds = 1
    while 2 * 0.5**n_seeds * n_pairs >= SIGNIFICANT:
        n_seeds += 1
    return n_seeds


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table, missing values as None."""
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}


def _facts(runs: SeedRuns, n_prompts: int) -> tuple[str, ...]:
    config = next(iter(runs)).config
    return (
        f"runs {runs.path.resolve().name}",
        f"{len(runs)} seeds",
        f"{_counted(config.n_layers, 'layer')} of {_counted(config.n_heads, 'head')}, width {config.d_model}",
        f"{runs.steps[-1]:,} training steps",
        f"last checkpoints measured on {n_prompts:,} fresh prompts",
    )


def _settings(runs: SeedRuns, seed: int, n_prompts: int) -> dict[str, Any]:
    packages = ("icl-interp", "torch", "transformer-lens", "numpy", "plotly")
    return {
        "report": {"seed": seed, "n_prompts": n_prompts, "checkpoint": runs.steps[-1]},
        "task": {"name": runs.task.name, **runs.task.config()},
        "seeds": {"seeds": runs.seeds},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "trained with": dict(next(iter(runs)).record.versions),
    }


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"

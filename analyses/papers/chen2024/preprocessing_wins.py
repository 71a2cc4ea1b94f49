"""Claims: preprocess-then-optimise beats gradient descent and ridge where s ≪ d, on average and in every setting."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.papers.chen2024.algorithms import CANDIDATES, DESCENT, PREPROCESSED, RIDGE, STEPS, compared
from analyses.papers.chen2024.map_figure import map_figure
from analyses.papers.chen2024.setting import COST_OF_A_SECOND, SETTINGS
from analyses.papers.claims import Claim, Evidence, Outcomes, Scale
from analyses.papers.jobs import Arm, Calculation
from analyses.papers.verdicts import Criterion, judge
from analyses.report.contents import FigureOf, TableOf

AVERAGE = Criterion(
    "rival-over-preprocessed",
    "risk of the better of gradient descent and ridge over that of preprocess-then-optimise (geometric mean over all "
    "settings with s ≤ d/4)",
    1.0,
    source="[abs]",
)
EVERYWHERE = Criterion(
    "share-won",
    "share of the settings with s ≤ d/4 in which preprocess-then-optimise has a lower risk than both",
    0.95,
    source="[abs]; margin [ours]",
)
_WINS = Criterion("wins", "risk of the better rival over that of preprocess-then-optimise", 1.0)
_WORD = {"reproduced": "wins", "not reproduced": "loses", "inconclusive": "undecided"}
IN_QUESTION, HALF, DENSE = "s ≤ d/4", "s = d/2", "s = d"
_PARTS = {IN_QUESTION: (16, 8, 4), HALF: (2,), DENSE: (1,)}
"""d / s in each arm. s ≪ d is read as s ≤ d / 4, which the paper's own d = 16, s = 4 [mem, weak] is."""


def preprocessing_wins_on_average(scale: Scale) -> Claim:
    """Preprocess-then-optimise against the better of gradient descent and ridge, over all sparse settings at once."""
    return _claim(
        scale,
        "preprocessing-wins",
        "Preprocess-then-optimise beats gradient descent and ridge where s ≪ d, taken over all settings together.",
        AVERAGE,
    )


def preprocessing_wins_everywhere(scale: Scale) -> Claim:
    """The same, setting by setting."""
    return _claim(
        scale,
        "preprocessing-wins-everywhere",
        "Preprocess-then-optimise beats gradient descent and ridge in every setting with s ≪ d.",
        EVERYWHERE,
    )


def _claim(scale: Scale, name: str, sentence: str, criterion: Criterion) -> Claim:
    one = SETTINGS[scale]
    fractions = [part for parts in _PARTS.values() for part in parts]
    grid = (
        f"d = {_listed(one.dimensions)}; d/s = {_listed(fractions)}; n/d = {_listed(one.pairs_per_dimension)}; "
        f"σ = {_listed(one.noises)}"
    )
    return Claim(
        name=name,
        sentence=sentence,
        source="[abs][mem]; that s ≪ d is enough is our reading, the paper's conditions on n and σ are not known to us",
        question="Over dimension, sparsity, number of pairs and noise: where does preprocessing help, and where not?",
        criteria=(criterion,),
        measured=f"{grid}; signs, x ~ N(0, I); {one.draws} independent draws of {one.map_prompts} prompts and as many "
        f"others to tune on. λ of ridge is the best of {len(CANDIDATES[RIDGE])}, the number of steps of both descents "
        f"the best of {len(STEPS)} from 1 to {STEPS[-1]}. A setting is won or lost where the interval over draws of "
        "the ratio of risks lies above or below 1.",
        arms={arm: _draws(scale, parts) for arm, parts in _PARTS.items()},
        measure=lambda outcomes: measure_wins(outcomes, criterion),
        control="Dense w* (s = d) in every setting, where scaling features by their correlation has nothing to find.",
        null_arms={IN_QUESTION: _draws(scale, _PARTS[DENSE])},
    )


def measure_wins(outcomes: Outcomes, criterion: Criterion) -> Evidence:
    """The criterion on the arm "s ≤ d/4", one value for each draw; the map over all arms."""
    statistic = {AVERAGE.name: _geometric_mean, EVERYWHERE.name: _share_won}[criterion.name]
    rows = pd.concat([rows for arm in outcomes.values() for rows in arm], ignore_index=True)
    table = wins_by_setting(rows)
    caption = (
        "The risk of the better of gradient descent and ridge over that of preprocess-then-optimise: above 1 (blue) "
        "preprocessing wins, below 1 (orange) it loses; in brackets where the interval over draws holds 1."
    )
    figure = FigureOf(map_figure(table), caption, height=110 + 190 * table["d"].nunique(), wide=True)
    return Evidence(
        {criterion.name: ratios_by_draw(pd.concat(outcomes[IN_QUESTION])).groupby("draw").agg(statistic).tolist()},
        figures=[figure],
        tables=[TableOf("map", "Where preprocess-then-optimise wins", table)],
        text=[_in_words(table)],
    )


def ratios_by_draw(rows: pd.DataFrame) -> pd.Series:
    """The risk of the better rival over that of preprocess-then-optimise, by draw and setting."""
    wide = rows.pivot(index=["draw", "d", "s", "n", "noise"], columns="algorithm", values="risk")
    return wide[[RIDGE, DESCENT]].min(axis=1) / wide[PREPROCESSED]


def wins_by_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: d, s, n, noise, ratio, ci_low, ci_high, outcome ("wins", "loses", "undecided")."""
    found = []
    for setting, ratios in ratios_by_draw(rows).groupby(["d", "s", "n", "noise"]):
        one = judge(_WINS, ratios.tolist())
        row = dict(zip(("d", "s", "n", "noise"), setting, strict=True))
        row |= {"ratio": one.value, "ci_low": one.ci_low, "ci_high": one.ci_high, "outcome": _WORD[one.verdict]}
        found.append(row)
    return pd.DataFrame(found)


def _draws(scale: Scale, parts: Sequence[int]) -> Arm:
    one = SETTINGS[scale]
    jobs = []
    for seed in range(one.draws):
        for d in one.dimensions:
            settings = {"sparsities": [d // part for part in parts], "noises": one.noises}
            settings |= {"contexts": [d * times for times in one.pairs_per_dimension], "n_prompts": one.map_prompts}
            label, cost = f"algorithms, d = {d}", len(parts) * d / 8 * COST_OF_A_SECOND
            jobs.append(Calculation(label, seed, compared, {"d": d, **settings}, cost=cost))
    return tuple(jobs)


def _geometric_mean(ratios: pd.Series) -> float:
    return float(np.exp(np.log(ratios).mean()))


def _share_won(ratios: pd.Series) -> float:
    return float((ratios > 1).mean())


def _in_words(table: pd.DataFrame) -> str:
    """How the settings fall out, by noise and by the number of pairs."""
    sparse = table.loc[table["s"] * 4 <= table["d"]]
    if sparse.empty:
        sparse = table

    def share(rows: pd.DataFrame) -> str:
        counted = rows["outcome"].value_counts()
        return f"{counted.get('wins', 0)} won, {counted.get('loses', 0)} lost of {len(rows)}"

    by_noise = "; ".join(f"σ = {noise:g}: {share(rows)}" for noise, rows in sparse.groupby("noise"))
    times = sparse["n"] // sparse["d"]
    by_pairs = "; ".join(f"n = {time} d: {share(rows)}" for time, rows in sparse.groupby(times))
    return f"Settings with s ≤ d/4: {share(sparse)}. By noise, {by_noise}. By number of pairs, {by_pairs}."


def _listed(values: Sequence[float] | Sequence[int]) -> str:
    return ", ".join(f"{value:g}" for value in values)

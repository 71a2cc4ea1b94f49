"""The map of where a claim holds: each criterion judged in every part of the settings, as it is in the deciding one."""

from collections.abc import Mapping, Sequence

import pandas as pd

from analyses.papers.verdicts import Criterion, judge
from analyses.report.contents import TableOf

_WORDS = {"reproduced": "met", "not reproduced": "not met", "inconclusive": "open"}


def where_it_holds(
    criteria: Sequence[Criterion], values: Mapping[str, Mapping[str, Sequence[float]]], title: str, name: str = "where"
) -> TableOf:
    """One row for each setting and criterion: setting, criterion, value, ci_low, ci_high, verdict.

    ``values``: of each setting, one value per seed for every criterion by name.
    """
    rows = []
    for setting, of_setting in values.items():
        for criterion in criteria:
            if criterion.name in of_setting:
                one = judge(criterion, of_setting[criterion.name])
                row = {"setting": setting, "criterion": criterion.name, "value": one.value}
                rows.append(row | {"ci_low": one.ci_low, "ci_high": one.ci_high, "verdict": one.verdict})
    notes = tuple(f"{one.name}: {one.text}" for one in criteria)
    return TableOf(name, title, pd.DataFrame(rows), notes=notes)


def in_words(table: TableOf) -> str:
    """The map in a sentence for each criterion: where it is met, where not, and where that is open."""
    said = []
    for criterion, rows in table.frame.groupby("criterion", sort=False):
        parts = [
            f"{word} in: {'; '.join(settings)}"
            for verdict, word in _WORDS.items()
            if (settings := [str(one) for one in rows.loc[rows["verdict"] == verdict, "setting"]])
        ]
        said.append(f"Criterion {criterion}: {'. '.join(parts)}.")
    return " ".join(said)

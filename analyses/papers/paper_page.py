"""The page of a reproduction: one that reads like a short paper. Claim, figure, verdict, how it was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.papers.claims import Examined
from analyses.papers.verdicts import Judgement
from analyses.report.contents import Report, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.folder import files_of

METHOD = (
    (
        "Every criterion was written down in the code before anything was run, and no setting depends on an "
        "outcome. A criterion has one value for each seed (initial weights, training prompts and evaluation "
        "prompts are all drawn from it); its interval is Student's t at 95 % over seeds. A claim is "
        "reproduced if the interval of every one of its criteria lies wholly on the claimed side of the "
        "margin, not reproduced if the interval of one lies wholly on the other, and inconclusive otherwise; "
        "then stands how many seeds of the same mean and spread would settle it. Where criteria are several, "
        "the number given first is that of the one that decides. Margins marked [ours] are ours: the paper "
        "gives none."
    ),
    (
        "Every claim has a negative control: something in which it must fail, measured by the same function. "
        "A control that is not judged 'not reproduced' is said to have failed, and the claim's verdict is "
        "then worth nothing."
    ),
    (
        "Tags: [code] read in the paper's published code, [abs] in its abstract, [mem] from memory of the "
        "paper, [ours] our choice."
    ),
)


def page_files(
    title: str, citation: str, about: Sequence[str], findings: Sequence[Examined], results: Mapping[str, Any]
) -> dict[str, bytes]:
    """The page, its Markdown and JSON twins and the tables, by file name."""
    seeds = sorted({job.seed for one in findings for job in one.claim.jobs})
    counted = pd.Series([one.verdict for one in findings]).value_counts()
    facts = [citation, f"scale: {results['scale']}", ", ".join(f"{n} {verdict}" for verdict, n in counted.items())]
    opening = Section("setting", "Setting", "What was run", text=about, tables=[_table_of_claims(findings)])
    settings = {
        "command": results["command"],
        "seeds": ", ".join(map(str, seeds)),
        "machine": results["machine"],
        "versions": results["versions"],
        "runs": len(results["runs"]),
    }
    runs = TableOf("runs", "All runs", pd.DataFrame(results["runs"]), columns=("setting", "seed", "folder"))
    every_run = Section("runs", "Runs", "Every run behind this page", tables=[runs])
    return files_of(
        Report(
            title=title,
            facts=facts,
            findings=[_headline(one) for one in findings],
            sections=[opening, *(_section(one) for one in findings), every_run],
            settings=settings,
            method=METHOD,
        )
    )


def _headline(finding: Examined) -> Finding:
    control = "" if finding.control_passed else " The negative control failed."
    return Finding(
        key=finding.claim.name,
        claims=finding.verdict == "reproduced",
        sentence=f"{finding.claim.sentence} {_in_numbers(finding.deciding)}{control}",
        numbers={"value": finding.deciding.value, "verdict": finding.verdict},
        label=finding.verdict,
    )


def _section(finding: Examined) -> Section:
    claim = finding.claim
    facts = {
        "claim": f"{claim.sentence} {claim.source}",
        "question": claim.question,
        "criterion": "; and ".join(one.text for one in claim.criteria),
        "verdict": f"{finding.verdict}. {' '.join(_in_numbers(one) for one in finding.judgements)}",
        "control": f"{claim.control} {'Passed' if finding.control_passed else 'FAILED'}: {_in_numbers(finding.null)}",
        "measured": claim.measured,
    }
    values = TableOf(f"{claim.name}-values", "The criteria, seed by seed", _values(finding))
    tables = [
        TableOf(f"{claim.name}-{one.name}", one.title, one.frame, one.columns, one.settings, one.notes)
        for one in finding.evidence.tables
    ]
    return Section(
        claim.name,
        claim.name.replace("-", " ").capitalize(),
        f"{claim.sentence.rstrip('.')}: {finding.verdict}",
        text=finding.evidence.text,
        facts=facts,
        figures=finding.evidence.figures,
        tables=[values, *tables],
    )


def _in_numbers(one: Judgement) -> str:
    """A judgement in words."""
    criterion = one.criterion
    said = f"{_capital(criterion.statistic)}: {one.value:.3g} [{one.ci_low:.3g}, {one.ci_high:.3g}] "
    said += f"(95 % over {len(one.values)} seeds; claimed: {criterion.side} {criterion.threshold:g})"
    if one.verdict != "inconclusive":
        return f"{said}."
    n = one.seeds_to_settle
    return f"{said}; {'no number of seeds' if n is None else f'{n} seeds'} of this mean and spread would settle it."


def _values(finding: Examined) -> pd.DataFrame:
    rows = [
        {"of": of, "criterion": one.criterion.name, "seed": index, "value": value, "verdict": one.verdict}
        for of, judgements in (("claim", finding.judgements), ("control", finding.null_judgements))
        for one in judgements
        for index, value in enumerate(one.values)
    ]
    return pd.DataFrame(rows)


def _table_of_claims(findings: Sequence[Examined]) -> TableOf:
    rows = [
        {
            "claim": one.claim.name,
            "criterion": one.deciding.criterion.text,
            "value": one.deciding.value,
            "ci_low": one.deciding.ci_low,
            "ci_high": one.deciding.ci_high,
            "verdict": one.verdict,
            "seeds_to_settle": one.deciding.seeds_to_settle,
            "control": one.null.value,
            "control_verdict": one.null.verdict,
        }
        for one in findings
    ]
    return TableOf("claims", "All claims", pd.DataFrame(rows).astype({"seeds_to_settle": "Int64"}))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""The page of a reproduction: one that reads like a short paper. Claim, figure, verdict, how it was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.papers.claims import Examined
from analyses.papers.paper_words import METHOD, capital, in_numbers, where_it_holds
from analyses.report.contents import Report, Section, TableOf
from analyses.report.findings import Finding
from analyses.report.folder import files_of


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
        sentence=f"{finding.claim.sentence} {in_numbers(finding.deciding)}{control}",
        numbers={"value": finding.deciding.value, "verdict": finding.verdict},
        label=finding.verdict,
    )


def _section(finding: Examined) -> Section:
    claim = finding.claim
    passed = "Passed" if finding.control_passed else "FAILED"
    in_null = " ".join(f"{capital(one.verdict)}: {in_numbers(one)}" for one in finding.null_judgements)
    facts = {
        "claim": f"{claim.sentence} {claim.source}",
        "question": claim.question,
        "criterion": "; and ".join(one.text for one in claim.criteria),
        "verdict": f"{finding.verdict}. {' '.join(in_numbers(one) for one in finding.judgements)}",
        "in part": where_it_holds(finding.judgements),
        "control": f"{claim.control} {passed}. {in_null}",
        "measured": claim.measured,
    }
    values = TableOf(f"{claim.name}-values", "The criteria, seed by seed", _values(finding))
    tables = [
        TableOf(f"{claim.name}-{one.name}", one.title, one.frame, one.columns, one.settings, one.notes)
        for one in finding.evidence.tables
    ]
    return Section(
        claim.name,
        capital(claim.name.replace("-", " ")),
        f"{claim.sentence.rstrip('.')}: {finding.verdict}",
        text=finding.evidence.text,
        facts={word: fact for word, fact in facts.items() if fact},
        figures=finding.evidence.figures,
        tables=[values, *tables],
    )


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
            "control_criterion": one.null.criterion.text,
            "control_verdict": one.null.verdict,
        }
        for one in findings
    ]
    return TableOf("claims", "All claims", pd.DataFrame(rows).astype({"seeds_to_settle": "Int64"}))

"""The reproduction as a short paper in Markdown, with vector figures: for documentation, where no script runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyses.papers.claims import Examined
from analyses.papers.paper_words import METHOD, in_control, in_numbers, where_it_holds
from analyses.static_figure import static_figure

FIGURES = "figures"


def markdown_files(
    title: str, citation: str, about: Sequence[str], examined: Sequence[Examined], results: Mapping[str, Any]
) -> dict[str, bytes]:
    """index.md and its figures, by file name."""
    lines = [f"# {title}", "", f"{citation}. Scale: {results['scale']}.", ""]
    lines += [
        "| claim | source | verdict | value | 95 % interval | criterion | control |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(one) for one in examined]
    lines += ["", "## Setting", "", *(f"{paragraph}\n" for paragraph in about)]
    files: dict[str, bytes] = {}
    for one in examined:
        lines += _section(one)
        for index, figure in enumerate(one.evidence.figures):
            name = _figure_name(one, index)
            drawn = go.Figure(figure.figure).update_layout(height=figure.height)
            files[name] = static_figure(drawn, "svg")
            lines += [f"![{figure.caption}]({name})", "", f"*{figure.caption}*", ""]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    machine = ", ".join(str(value) for value in results["machine"].values())
    seeds = sorted({job.seed for one in examined for job in one.claim.jobs})
    lines += ["## How it was measured", "", *(f"{paragraph}\n" for paragraph in METHOD)]
    lines += [f"- Command: `{results['command']}`", f"- Machine: {machine}"]
    lines += [f"- Seeds, those of controls that repeat a setting included: {', '.join(map(str, seeds))}"]
    lines += [f"- Versions: {versions}", f"- Runs: {len(results['runs'])}, listed in results.json", ""]
    return {"index.md": "\n".join(lines).encode(), **files}


def _row(one: Examined) -> str:
    judged = one.deciding
    interval = f"{judged.ci_low:.3g} to {judged.ci_high:.3g}"
    verdict = one.verdict
    if judged.seeds_to_settle is not None:
        verdict += f" ({judged.seeds_to_settle} seeds would settle it)"
    if judged.silent_because:
        verdict += " (denies nothing: see there)"
    link = f"[{one.claim.name}](#{_anchor(one)})"
    cells = [link, one.claim.source, verdict, f"{judged.value:.3g}", interval, judged.criterion.text, in_control(one)]
    return f"| {' | '.join(cells)} |"


def _section(one: Examined) -> list[str]:
    claim = one.claim
    control = "passed" if one.control_passed else "FAILED"
    return [
        f"({_anchor(one)})=",
        f"## {claim.sentence.rstrip('.')}: {one.verdict}",
        "",
        f"**Claim.** {claim.sentence} {claim.source}",
        "",
        f"**Question.** {claim.question}",
        "",
        f"**Criterion.** {'; and '.join(each.text for each in claim.criteria)}.",
        "",
        *(f"- {each.verdict}: {in_numbers(each)}" for each in one.judgements),
        "",
        *([f"**In part.** {in_part}", ""] if (in_part := where_it_holds(one.judgements)) else []),
        f"**Control, {control}.** {claim.control}",
        "",
        *(f"- {each.verdict}: {in_numbers(each)}" for each in one.null_judgements),
        "",
        f"**Measured.** {claim.measured}",
        "",
        *(f"{paragraph}\n" for paragraph in one.evidence.text),
    ]


def _figure_name(one: Examined, index: int) -> str:
    return f"{FIGURES}/{one.claim.name}-{index + 1}.svg"


def _anchor(one: Examined) -> str:
    return one.claim.name.lower().replace("_", "-")

"""The report as Markdown: the findings and the tables' places, for a reader without a browser."""

import json
import re

from analyses.report.contents import Report
from analyses.report.page import shown, shown_columns

_ROWS = 40


def markdown_of(report: Report) -> str:
    """Findings, then every section with its captions and tables (long ones cut, whole in their CSV)."""
    lines = [f"# {_escaped(report.title)}", "", _escaped(" · ".join(report.facts)), ""]
    for number, finding in enumerate(report.findings, start=1):
        label = f"**{_escaped(finding.label)}.** " if finding.label else ""
        lines.append(f"{number}. {label}{_escaped(finding.sentence)}")
    for section in report.sections:
        lines += ["", f"## {_escaped(section.heading)}", ""]
        lines += [f"**{_escaped(word)}:** {_escaped(fact)}\n" for word, fact in section.facts.items()]
        lines += [_escaped(paragraph) + "\n" for paragraph in section.text if not section.prompts]
        lines += [f"- {_escaped(one.caption)}" for one in section.figures]
        for tokens in section.prompts:
            lines += ["", _code("".join(one.token for one in tokens))]
        for table in section.tables:
            columns = shown_columns(table)
            lines += ["", f"### {_escaped(table.title)}", "", _row(_escaped(name) for name in columns)]
            lines.append(_row("---" for _ in columns))
            rows = table.frame[columns].to_dict("records")
            lines += [_row(_escaped(shown(row[name])) for name in columns) for row in rows[:_ROWS]]
            lines += ["", f"All {len(rows)} rows: [tables/{table.name}.csv](tables/{table.name}.csv)"]
    lines += ["", "## How it was measured", "", *(_escaped(paragraph) + "\n" for paragraph in report.method)]
    settings = json.dumps(dict(report.settings), indent=2, default=str, ensure_ascii=True)
    return "\n".join([*lines, "```json", settings, "```", ""])


def _row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    r"""Text that Markdown shows as it is.

    >>> _escaped("W_O2 <b>")
    'W\\_O2 &lt;b&gt;'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def _code(text: str) -> str:
    """Text as code, between more backquotes than it holds itself."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}"

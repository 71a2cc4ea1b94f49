"""Every message with which the packages refuse wrong input, read from their source: the list behind docs/errors.md."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("tasks", "interp", "analyses")


class Refusal(NamedTuple):
    """One place that refuses: its module, what the module is for, and the message, values as {…}."""

    module: str
    purpose: str
    message: str


def refusals(root: Path = ROOT) -> Iterator[Refusal]:
    """Every ``raise InputError(…)`` (or of a subclass named there) whose message is written where it is raised."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            purpose = (ast.get_docstring(tree) or "").partition("\n")[0]
            for node in ast.walk(tree):
                if isinstance(node, ast.Raise) and (message := _message(node)) is not None:
                    yield Refusal(module, purpose, message)


def as_markdown(found: list[Refusal]) -> str:
    """The list as a page's body: a heading for each module, a line for each message."""
    lines: list[str] = []
    module = ""
    for refusal in found:
        if refusal.module != module:
            module = refusal.module
            lines += ["", f"### {module}", "", refusal.purpose, ""]
        lines.append("- `" + refusal.message.replace("`", "'") + "`")
    return "\n".join(lines[1:]) + "\n"


def _message(node: ast.Raise) -> str | None:
    call = node.exc
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not call.args:
        return None
    if call.func.id not in ("InputError", "TrainingDivergedError"):
        return None
    text = call.args[0]
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return text.value
    if isinstance(text, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"
            for part in text.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return None  # put together elsewhere, by a function that the list shows where it is written

"""The page: one HTML file that works from the disk, without a network, under a strict Content-Security-Policy.

Everything that came from outside (tokens, names) reaches the page either through the template's escaping or as JSON in
a script element of a type that no browser runs; the scripts that do run are the page's own, allowed by their hash.
"""

import base64
import hashlib
import json
import math
import re
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import plotly
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analyses.figures import INK, INK_ON_DARK, look
from analyses.report.contents import PatternsOf, Report, TableOf
from analyses.report.visible import visible

_TEMPLATES = "templates"
_POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_DIGITS = 3


def page_of(report: Report) -> str:
    """The report as one HTML document."""
    scripts = [_script(_plotly()), _script(_page_script())]
    if any(section.patterns for section in report.sections):
        scripts.insert(1, _script(_circuitsvis()))
    policy = _POLICY.format(hashes=" ".join(f"'{_hash_of(script)}'" for script in scripts))
    environment = Environment(
        loader=PackageLoader("analyses.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["json"] = json_for_html
    environment.filters["setting"] = _setting
    environment.globals["columns"] = shown_columns
    return environment.get_template("page.html.j2").render(
        report=report,
        policy=policy,
        scripts=scripts,
        style=Markup(_read("style.css")),
        data=_data_of(report),
    )


def json_for_html(value: Any) -> Markup:
    """JSON that can stand inside a script element: no character in it means anything to HTML.

    >>> print(json_for_html("</script>"))
    "\\u003c/script\\u003e"
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def shown(value: Any) -> str:
    """A table's cell for a reader.

    >>> shown(0.123456), shown(1e-9), shown(None), shown(True)
    ('0.123', '1e-09', '–', 'yes')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1g}" if 0 < abs(value) < 10**-_DIGITS else f"{value:.{_DIGITS}f}"
    return visible_words(str(value))


def visible_words(text: str) -> str:
    """Text of ours with its spaces kept, and everything else that has no shape made visible."""
    return " ".join(visible(word) for word in text.split(" "))


def shown_columns(table: TableOf) -> list[str]:
    """The columns that the page shows."""
    return [name for name in table.columns or table.frame.columns if name in table.frame]


def _setting(value: Any) -> str:
    """A setting for a reader."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    return str(value) if isinstance(value, float) else shown(value)


def _data_of(report: Report) -> dict[str, Any]:
    """What the page's script draws."""
    figures, patterns = {}, {}
    for section in report.sections:
        for index, one in enumerate(section.figures):
            drawn = json.loads(str(one.figure.update_layout(template="none", autosize=True).to_json()))
            drawn["layout"].pop("template", None)
            figures[f"figure-{section.key}-{index}"] = drawn
        for index, one in enumerate(section.patterns):
            patterns[f"patterns-{section.key}-{index}"] = _pattern_data(one)
    templates = {name: json.loads(_json_of(look(dark=name == "dark"))) for name in ("light", "dark")}
    return {
        "figures": figures,
        "patterns": patterns,
        "templates": templates,
        "ink": {"light": INK, "dark": INK_ON_DARK},
    }


def _json_of(template: Any) -> str:
    return json.dumps(template.to_plotly_json())


def _pattern_data(one: PatternsOf) -> dict[str, Any]:
    return {
        "tokens": list(one.tokens),
        "heads": [{"name": name, "colour": colour} for name, colour in one.heads],
        # four decimals are more than a shade of grey can show
        "patterns": [[[round(value, 4) for value in row] for row in head] for head in one.patterns.tolist()],
        "causal": one.causal,
    }


def _script(source: str) -> Markup:
    """A script's text, free of what would end or confuse its element."""
    source = re.sub(r"\n?//# sourceMappingURL=.*", "", source).replace("\r\n", "\n")
    source = re.sub(r"</(?=script)", r"<\\/", source, flags=re.IGNORECASE)
    return Markup(re.sub(r"<!--", r"<\\!--", source))


def _hash_of(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _plotly() -> str:
    return plotly.offline.get_plotlyjs()


@cache
def _circuitsvis() -> str:
    # read, not imported: its Python side asks the network which bundle to show
    return (resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")


def _page_script() -> str:
    return _read("page.js")


def _read(name: str) -> str:
    return (resources.files("analyses.report") / _TEMPLATES / name).read_text(encoding="utf-8")

"""How Sphinx builds these pages; `make docs` does, with warnings as errors and without a network."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from error_messages import as_markdown, refusals

project = "interp"
author = "the interp developers"
release = version_of("icl-interp")
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_generated", "images/README.md", "results/*/README.md"]
nitpicky = False  # annotations name jaxtyping's axes, which are nowhere documented

# Names of other projects are links to their pages; nothing is fetched to build these.
extlinks = {
    "arxiv": ("https://arxiv.org/abs/%s", "arXiv %s"),
    "torch": ("https://pytorch.org/docs/stable/generated/torch.%s.html", "torch.%s"),
    "transformerlens": ("https://transformerlensorg.github.io/TransformerLens/%s", "TransformerLens"),
}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "notebooks")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them

html_theme = "furo"
html_title = "interp"
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}

_LITERAL = re.compile(r"(``.+?``)")


def _escape(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Docstrings are plain text with literals: |x| is an absolute value and w* an optimum, not markup."""
    in_example = False
    for index, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            parts = _LITERAL.split(line)
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            lines[index] = "".join(parts)


def setup(app) -> None:  # noqa: D103 — Sphinx' name
    messages = Path(__file__).parent / "_generated" / "error_messages.md"
    messages.parent.mkdir(exist_ok=True)
    messages.write_text(as_markdown(list(refusals())), encoding="utf-8")
    app.connect("autodoc-process-docstring", _escape, priority=100)

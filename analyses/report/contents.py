"""What a report holds, before it becomes a page, a Markdown file, JSON and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from analyses.report.findings import Finding


@dataclass(frozen=True, eq=False)
class FigureOf:
    """A figure and the sentence that says what it shows."""

    figure: go.Figure
    caption: str
    height: int = 340
    wide: bool = False


@dataclass(frozen=True, eq=False)
class TableOf:
    """A table: shown on the page with ``columns`` only, written whole to ``tables/<name>.csv``."""

    name: str
    title: str
    frame: pd.DataFrame
    columns: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PatternsOf:
    """Attention patterns of one prompt, a picture for each head."""

    tokens: tuple[str, ...]
    heads: tuple[tuple[str, str], ...]
    """Name and colour of each head."""
    patterns: Float[Tensor, "head dest src"]
    causal: bool


@dataclass(frozen=True)
class Guess:
    """One token of a prompt and how the model guessed it."""

    token: str
    kind: str
    """"right", "wrong" or "unscored"."""
    segment: str
    about: str


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the report under a heading that says what was found there."""

    key: str
    short: str
    heading: str
    text: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short statements under a word each, before the text."""
    figures: Sequence[FigureOf] = ()
    patterns: Sequence[PatternsOf] = ()
    prompts: Sequence[Sequence[Guess]] = ()
    tables: Sequence[TableOf] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """Everything there is to say about a run."""

    title: str
    facts: Sequence[str]
    findings: Sequence[Finding]
    sections: Sequence[Section]
    settings: Mapping[str, Any]
    method: Sequence[str]
    """How to read the numbers, in paragraphs."""

    @property
    def tables(self) -> list[TableOf]:
        """All tables, in the order of their sections."""
        return [table for section in self.sections for table in section.tables]

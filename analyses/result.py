"""What every analysis returns: a tidy table that says what it is, draws itself and saves itself."""

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.inline_figure import table_with_intervals
from analyses.static_figure import STATIC_FORMATS, static_figure
from interp.atomic_files import write_atomically
from tasks.errors import InputError

_ROWS_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """The outcome of an analysis.

    Attributes:
        frame: one row per measured thing, tidy.
        title: what was measured, in words.
        settings: everything needed to measure it again (method, seeds, number of prompts).
        notes: what the reader must know before trusting a row (something left out, a caveat).
    """

    frame: pd.DataFrame
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    value_column: ClassVar[str] = "value"
    """The column that a notebook draws beside the table."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, used for files."""

    @abstractmethod
    def plot(self) -> go.Figure:
        """The table as a Plotly figure."""

    def matrix(self, column: str = "delta", **where: Any) -> Float[Tensor, "layer head"]:
        """One column as a layer × head matrix; ``where`` picks rows (``metric="loss"``) until each head has one.

        Raises:
            InputError: the column does not exist, a head has no row or several (the message says which columns
                tell them apart).
        """
        rows: pd.DataFrame = self.frame.loc[self.frame["head"].notna()] if "head" in self.frame else self.frame.iloc[:0]
        for key, value in where.items():
            if key not in rows:
                raise InputError(f"{self.name} has no column {key!r}: choose from {', '.join(self.frame.columns)}")
            rows = rows.loc[rows[key] == value]
        if column not in rows:
            raise InputError(f"{self.name} has no column {column!r}: choose from {', '.join(self.frame.columns)}")
        if rows.empty:
            raise InputError(f"{self.name} has no row of a single head{f' with {where}' if where else ''}")
        if rows.duplicated(["layer", "head"]).any():
            kinds = [str(key) for key in rows if rows[key].dtype == object or str(rows[key].dtype) == "str"]
            varying = [key for key in kinds if rows[key].nunique() > 1 and key != "component"]
            raise InputError(f"several rows per head: choose one by {' or '.join(varying) or 'a column'}=…")
        table = rows.pivot(index="layer", columns="head", values=column)
        # from layer 0 and head 0 on, so that an entry's place is its layer and head
        table = table.reindex(index=range(int(table.index.max()) + 1), columns=range(int(table.columns.max()) + 1))
        values = torch.tensor(table.to_numpy(dtype=float), dtype=torch.float64)
        if values.isnan().any():
            raise InputError(f"some heads have no {column}: matrix needs every head of every layer")
        return values

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Every table by its short name: ``frame``, and what else a result holds beside it."""
        return {self.name: self.frame}

    def save(self, folder: Path | str) -> Path:
        """Write a ``<name>.csv`` per table and ``<name>.json`` (title, settings, notes) into a folder, made if need be.

        Raises:
            InputError: one of the files exists.
        """
        folder = Path(folder)
        about = {"title": self.title, "settings": dict(self.settings), "notes": list(self.notes)}
        contents = {folder / f"{name}.csv": table.to_csv(index=False).encode() for name, table in self.tables.items()}
        contents[folder / f"{self.name}.json"] = (json.dumps(about, indent=2, default=str) + "\n").encode()
        for path in contents:
            if path.exists():
                raise InputError(f"{path} exists: choose another folder, or remove it first")
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            write_atomically(path, content)
        return folder

    def export(self, path: Path | str) -> Path:
        """Write the figure as one file: .html (to explore, offline), .svg or .pdf (vectors, for a paper), or .png.

        Raises:
            InputError: another ending, or the file exists.
        """
        path = Path(path)
        kind = path.suffix.removeprefix(".").lower()
        if kind not in ("html", *STATIC_FORMATS):
            raise InputError(f"{path} ends in {path.suffix!r}: end it in .html, .svg, .pdf or .png")
        if path.exists():
            raise InputError(f"{path} exists: choose another name, or remove it first")
        figure = self.plot()
        if kind == "html":
            content = figure.to_html(include_plotlyjs=True).encode()
        else:
            content = static_figure(figure, kind)  # pyright: ignore[reportArgumentType] — looked up above
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return path

    def _repr_html_(self) -> str:
        shown = self.frame.head(_ROWS_SHOWN)
        more = len(self.frame) - len(shown)
        parts = [f"<strong>{html.escape(self.title)}</strong>", table_with_intervals(shown, self.value_column)]
        if more > 0:
            parts.append(f"<em>… and {more} more rows in .frame</em>")
        parts += [f"<p>Note: {html.escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def frame_of_rows(rows: Sequence[Mapping[str, Any]], *, whole: Sequence[str] = ("layer", "head")) -> pd.DataFrame:
    """Rows as a table whose columns ``whole`` are whole numbers or missing; ``astype`` would take as long as a pass.

    >>> frame_of_rows([{"layer": 0, "head": None}, {"layer": 1, "head": 2}])
       layer  head
    0      0  <NA>
    1      1     2
    """
    frame = pd.DataFrame(rows)
    for name in whole:
        frame[name] = pd.array([row[name] for row in rows], dtype="Int64")
    return frame


def notes_on_intervals(frame: pd.DataFrame) -> tuple[str, ...]:
    """A note if some rows have no interval, and why."""
    missing = int(frame["ci_low"].isna().sum())
    return (f"{missing} of {len(frame)} rows have no interval: fewer than 2 prompts score there",) if missing else ()

"""How a model came to be what it is: any analysis at every checkpoint of a run, and when a readout passes a mark."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from torch import Tensor

from analyses.figures import component_colour, look, plain, words
from analyses.result import Result
from interp.hooked_transformer import HookedTransformer
from interp.run import Run
from interp.seed_runs import measured_table
from tasks.errors import InputError

_HEAD = re.compile(r"\bL(\d+)H(\d+)\b")
Analysis = Callable[[HookedTransformer], Result | Mapping[str, float | Tensor]]
"""What to measure at a checkpoint: an analysis, or named figures."""


@dataclass(frozen=True, eq=False)
class Dynamics(Result):
    """An analysis against training step: the analysis' own columns with ``step`` in front.

    Named figures make the columns step, readout, value.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "dynamics"

    def plot(self) -> go.Figure:
        """Each readout against step, on a logarithmic axis from step 1.

        Raises:
            InputError: the frame is an analysis' own; say which of its columns to draw with ``curves``.
        """
        if "readout" not in self.frame:
            raise InputError("plot() draws named readouts: pick columns of this frame with .curves(value, per) first")
        figure = go.Figure()
        for readout, rows in self.frame.groupby("readout", sort=False):
            head = _HEAD.search(str(readout))
            colour = component_colour(*map(int, head.groups())) if head else None
            name = words(readout)
            curve = go.Scatter(x=rows["step"].clip(lower=1), y=rows["value"], name=name, mode="lines+markers")
            figure.add_trace(curve.update(line={"color": colour}))
        figure.update_xaxes(type="log", title_text="training step (0 drawn at 1)")
        return figure.update_layout(title=plain(self.title), template=look(), yaxis_title="value")

    def curves(self, value: str, per: str | Sequence[str], **where: Any) -> "Dynamics":
        """One column of the analysis as named readouts, one for each combination of the columns ``per``.

        Raises:
            InputError: a column that does not exist, or rows that ``per`` and ``where`` do not tell apart.
        """
        tidy = picked_curves(self.frame, ("step",), value, per, where)
        return Dynamics(tidy, f"{value} against step", self.settings, self.notes)

    def first_passing(self, threshold: float) -> pd.DataFrame:
        """When each readout first reaches the threshold: readout, step (missing: never, so censored), last_step.

        The step is that of a checkpoint: the true one lies between it and the checkpoint before, ``after_step``.

        Raises:
            InputError: the frame is an analysis' own and has no readouts.
        """
        if "readout" not in self.frame:
            raise InputError("first_passing needs named readouts: pick columns of this frame with .curves(value, per)")
        rows = []
        for readout, curve in self.frame.groupby("readout", sort=False):
            curve = curve.sort_values("step")
            steps = curve["step"].tolist()
            passed = [step for step, value in zip(steps, curve["value"], strict=True) if value >= threshold]
            before = [step for step in steps if passed and step < passed[0]]
            rows.append(
                {
                    "readout": readout,
                    "step": passed[0] if passed else None,
                    "after_step": before[-1] if before else None,
                    "last_step": steps[-1],
                }
            )
        return pd.DataFrame(rows).astype({"step": "Int64", "after_step": "Int64"})


def analyse_checkpoints(run: Run, analysis: Analysis, steps: Sequence[int] | None = None) -> Dynamics:
    """Any analysis at every checkpoint of a run (or at ``steps``), as one table with the step in front.

    >>> run = Run.shipped("bietti-full-2x4")
    >>> analyse_checkpoints(run, lambda model: {"n_heads": model.cfg.n_heads}).frame.values.tolist()
    [[600, 'n_heads', 4.0]]

    Raises:
        InputError: no checkpoint was written at one of the steps (the message lists those there are).
    """
    tables, notes = [], []
    result: Result | Mapping[str, float | Tensor] | None = None
    for step in run.steps if steps is None else steps:
        result = analysis(run.at(step))
        if isinstance(result, Result):
            table = result.frame.copy()
            notes += [note for note in result.notes if note not in notes]
        else:
            table = measured_table(result)
        table.insert(0, "step", step)
        tables.append(table)
    if not tables:
        raise InputError("steps is empty: name at least one checkpoint")
    title = result.title if isinstance(result, Result) else "Readouts"
    settings = {"run": run.path.name, "steps": [int(table["step"].iloc[0]) for table in tables]}
    return Dynamics(pd.concat(tables, ignore_index=True), f"{title} against step", settings, tuple(notes))


def picked_curves(
    frame: pd.DataFrame, keys: Sequence[str], value: str, per: str | Sequence[str], where: Mapping[str, Any]
) -> pd.DataFrame:
    """One column of a table as named readouts: the ``keys``, readout and value.

    Raises:
        InputError: a column that does not exist, or rows that ``per`` and ``where`` do not tell apart.
    """
    per = [per] if isinstance(per, str) else list(per)
    for column in [value, *per, *where]:
        if column not in frame:
            raise InputError(f"no column {column!r}: choose from {', '.join(frame.columns)}")
    rows = frame
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    readout = rows[per].astype(str).agg(" ".join, axis=1)
    tidy = pd.DataFrame({**{key: rows[key] for key in keys}, "readout": readout, "value": rows[value]})
    if tidy.duplicated([*keys, "readout"]).any():
        raise InputError(f"several rows per {keys[-1]} share {per}: add a column to per=, or a condition")
    return tidy.reset_index(drop=True)

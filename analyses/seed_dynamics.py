"""Any analysis over seeds and training steps: one table, bands over seeds, and what emerges when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.dynamics import Analysis, picked_curves
from analyses.emergence import Emergence, emergence_of, passing_of
from analyses.figures import MUTED, component_colour, look, plain, words
from analyses.result import Result
from interp.seed_runs import SeedRuns
from interp.statistics import seed_interval
from tasks.errors import InputError

_KEYS = ("seed", "step")


@dataclass(frozen=True, eq=False)
class SeedDynamics(Result):
    """An analysis of every seed at every step: the analysis' own columns with ``seed`` and ``step`` in front.

    Named figures make the columns seed, step, readout, value. The seed is the unit of every interval.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "seed_dynamics"

    @property
    def seeds(self) -> list[int]:
        """The seeds in the table, ascending."""
        return sorted(int(seed) for seed in self.frame["seed"].unique())

    def curves(self, value: str, per: str | Sequence[str], **where: Any) -> "SeedDynamics":
        """One column of the analysis as named readouts, one for each combination of the columns ``per``.

        Raises:
            InputError: a column that does not exist, or rows that ``per`` and ``where`` do not tell apart.
        """
        tidy = picked_curves(self.frame, _KEYS, value, per, where)
        return SeedDynamics(tidy, f"{value} against step", self.settings, self.notes)

    def bands(self, confidence: float = 0.95) -> pd.DataFrame:
        """The mean over seeds of every readout at every step, with Student's t interval.

        Columns: readout, step, n_seeds, mean, ci_low, ci_high. Each interval holds for its own step.

        Raises:
            InputError: no named readouts, fewer than 5 seeds, a readout that some seed lacks or that is not finite.
        """
        rows = []
        for readout, values in self._matrices().items():
            interval = seed_interval(values.to_numpy(dtype=float).T, confidence=confidence)
            rows.append(
                pd.DataFrame(
                    {
                        "readout": readout,
                        "step": values.index,
                        "n_seeds": values.shape[1],
                        "mean": interval.estimate,
                        "ci_low": interval.low,
                        "ci_high": interval.high,
                    }
                )
            )
        return pd.concat(rows, ignore_index=True)

    def emergence(self, share: float = 0.5) -> Emergence:
        """When each readout has made ``share`` of its gain in each seed, and in what order they do.

        The gain of a readout is the median over seeds of its last value minus its first. In seed i it has emerged
        at the first step with a value of first_i + share · gain or beyond (below, if it falls). The height is the same
        for every seed, so that a seed that learns only a little is not dated by half of little: seeds that never get
        there are censored, and counted as later than the last step. A readout without a gain (an interval over seeds
        that holds zero) has emerged nowhere, which a note says.

        Raises:
            InputError: as for ``bands``, or a share that is not above 0 and at most 1.
        """
        return emergence_of(self._matrices(), share, dict(self.settings))

    def first_passing(self, threshold: float) -> Emergence:
        """When each readout first reaches a threshold in each seed, in the same tables as ``emergence``.

        Raises:
            InputError: as for ``bands``.
        """
        return passing_of(self._matrices(), threshold, dict(self.settings))

    def plot(self) -> go.Figure:
        """A panel per readout: every seed as a thin line, and their mean with its band.

        Raises:
            InputError: as for ``bands``.
        """
        return self.drawn({name: component_colour(0, index) for index, name in enumerate(self._matrices())})

    def drawn(self, colours: Mapping[str, str]) -> go.Figure:
        """As ``plot``, in these colours; the panels share their axis."""
        matrices, bands = self._matrices(), self.bands()
        titles = [readable(name) for name in matrices]
        figure = make_subplots(rows=1, cols=len(matrices), subplot_titles=titles, shared_yaxes=True)
        for column, (readout, values) in enumerate(matrices.items(), start=1):
            band = bands[bands["readout"] == readout]
            for trace in _seed_lines(values, colours.get(readout, MUTED)) + _band(band, colours.get(readout, MUTED)):
                figure.add_trace(trace, row=1, col=column)
            figure.update_xaxes(title_text="training step", row=1, col=column)
        return figure.update_layout(template=look(), title=plain(self.title), showlegend=False)

    def _matrices(self) -> dict[str, pd.DataFrame]:
        """The values of each readout, [step, seed]."""
        if "readout" not in self.frame:
            raise InputError("this table has no named readouts: pick columns of it with .curves(value, per) first")
        found = {}
        for readout, rows in self.frame.groupby("readout", sort=False):
            values = rows.pivot(index="step", columns="seed", values="value")
            if values.isna().to_numpy().any() or values.shape[1] < len(self.seeds):
                raise InputError(f"{readout} is missing (or not a number) for some seed at some step: leave it out")
            found[str(readout)] = values
        return found


def analyse_seeds(runs: SeedRuns, analysis: Analysis, steps: Sequence[int] | None = None) -> SeedDynamics:
    """Any analysis of every seed at every checkpoint (or at ``steps``), as one table with seed and step in front.

    Raises:
        InputError: no checkpoint was written at one of the steps, in one of the seeds.
    """
    titles, notes = ["Readouts"], list[str]()

    def noted(model: Any) -> Any:
        result = analysis(model)
        if isinstance(result, Result):
            titles.append(result.title)
            notes.extend(note for note in result.notes if note not in notes)
        return result

    frame = runs.map(noted, steps)
    settings = {"runs": runs.path.name, "seeds": runs.seeds, "steps": sorted(int(step) for step in set(frame["step"]))}
    return SeedDynamics(frame, f"{titles[-1]} against step", settings, (*notes, *_left_out(runs)))


def seed_histories(runs: SeedRuns, columns: Sequence[str]) -> SeedDynamics:
    """What was logged while training, of every seed at every logged step, as named readouts.

    Raises:
        InputError: no column, or one that the histories do not have.
    """
    history = runs.history
    for column in columns:
        if column not in history:
            raise InputError(
                f"no column {column!r} in the histories: choose from {', '.join(map(str, history.columns))}"
            )
    if not columns:
        raise InputError("columns is empty: name at least one of the histories")
    reached = history.groupby("seed")["step"].max().min()  # a seed that stopped early ends the common stretch
    history = history[history["step"] <= reached]
    frame = history.melt(["seed", "step"], list(columns), var_name="readout", value_name="value")
    return SeedDynamics(frame, "History", {"runs": runs.path.name, "seeds": runs.seeds}, _left_out(runs))


def _left_out(runs: SeedRuns) -> tuple[str, ...]:
    """What a table of all seeds lacks, in words."""
    notes = []
    if runs.missing:
        notes.append(f"left out, since they have not begun: seeds {', '.join(map(str, runs.missing))}")
    if runs.unfinished:
        numbers = ", ".join(map(str, runs.unfinished))
        notes.append(f"not at their last step, so that later ones of the others are left out: seeds {numbers}")
    return tuple(notes)


def readable(readout: str) -> str:
    """A readout's name for a figure: a matrix keeps its own.

    >>> readable("W_K1"), readable("accuracy_in_context")
    ('W_K1', 'accuracy in context')
    """
    return plain(readout) if readout.startswith("W_") else words(readout)


def _seed_lines(values: pd.DataFrame, colour: str) -> list[go.Scatter]:
    line = {"color": colour, "width": 1}
    hover = "seed %{text}, step %{x}: %{y:.3f}<extra></extra>"
    return [
        go.Scatter(
            x=values.index,
            y=values[seed],
            mode="lines",
            line=line,
            opacity=0.4,
            text=[str(seed)] * len(values),
            hovertemplate=hover,
        )
        for seed in values
    ]


def _band(band: pd.DataFrame, colour: str) -> list[go.Scatter]:
    outline = np.concatenate([band["ci_high"], band["ci_low"][::-1]])
    around = np.concatenate([band["step"], band["step"][::-1]])
    shade = {"fill": "toself", "fillcolor": _see_through(colour), "line": {"width": 0}, "hoverinfo": "skip"}
    ends = band[["ci_low", "ci_high"]].to_numpy()
    hover = "mean, step %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>"
    middle = {"line": {"color": colour, "width": 3}, "customdata": ends, "hovertemplate": hover}
    return [
        go.Scatter(x=around, y=outline, mode="lines", **shade),
        go.Scatter(x=band["step"], y=band["mean"], mode="lines", **middle),
    ]


def _see_through(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"

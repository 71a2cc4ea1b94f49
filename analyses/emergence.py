"""When readouts emerge in training, over seeds: medians with exact intervals, order, seeds that never get there."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from analyses.figures import INK, MUTED, look, plain, words
from analyses.result import Result
from interp.statistics import seed_interval
from tasks.errors import InputError


@dataclass(frozen=True, eq=False)
class Emergence(Result):
    """When each readout emerged in each seed.

    ``frame``: seed, readout, start (its first value), height (what it must reach), step (missing: never, so
    censored), after_step (the step measured before, at which it had not), last_step.

    Attributes:
        summary: a row per readout, the earliest first: gain (the median over seeds, which sets the heights),
            mean_gain with Student's interval over seeds (mean_gain_low, mean_gain_high), n_seeds, n_censored, and the
            median step with its exact interval. A missing end or median lies beyond the last step.
        order: a row per pair: in how many seeds the one came before the other, at the same step, or after it; seeds in
            which neither came are left out of ``share_before``, and ties count as not before. p_value is that of a
            sign test of before against after, times the number of pairs (Bonferroni).
    """

    summary: pd.DataFrame = field(default_factory=pd.DataFrame)
    order: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "emergence"

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Every seed, the summary and the pairs."""
        return {"emergence": self.frame, "emergence_summary": self.summary, "emergence_order": self.order}

    def plot(self) -> go.Figure:
        """A mark for every seed (an open triangle at the end: never), and the median with its interval."""
        return self.drawn({})

    def drawn(self, colours: Mapping[str, str]) -> go.Figure:
        """As ``plot``, in these colours."""
        figure = go.Figure()
        last = float(self.frame["last_step"].max())
        for place, row in enumerate(self.summary.to_dict("records")):
            colour = colours.get(row["readout"], MUTED)
            of_readout = self.frame[self.frame["readout"] == row["readout"]].sort_values("seed")
            never = of_readout["step"].isna()
            spread = np.linspace(-0.22, 0.22, len(of_readout))
            for mask, symbol in ((~never, "circle-open"), (never, "triangle-right-open")):
                some = of_readout[mask]
                marker = {"symbol": symbol, "size": 8, "color": colour, "line": {"width": 1.5}}
                figure.add_trace(
                    go.Scatter(
                        x=some["step"].astype(float).fillna(last * 1.04),
                        y=place + spread[mask.to_numpy()],
                        mode="markers",
                        marker=marker,
                        customdata=some["seed"],
                        hovertemplate="seed %{customdata}: step %{x}<extra></extra>",
                        showlegend=False,
                    )
                )
            if pd.notna(row["median_step"]):
                low = row["ci_low"] if pd.notna(row["ci_low"]) else np.nan
                high = row["ci_high"] if pd.notna(row["ci_high"]) else last * 1.04
                ends = {"type": "data", "symmetric": False, "array": [high - row["median_step"]], "color": INK}
                ends |= {"arrayminus": [row["median_step"] - low], "thickness": 2, "width": 6}
                known = pd.notna(low)
                marker = {"symbol": "line-ns", "size": 16, "line": {"width": 3, "color": INK}}
                figure.add_trace(
                    go.Scatter(
                        x=[row["median_step"]],
                        y=[place + 0.4],
                        mode="markers",
                        marker=marker,
                        error_x=ends if known else None,
                        hovertemplate="median: step %{x}<extra></extra>",
                        showlegend=False,
                    )
                )
        names = [plain(name) if name.startswith("W_") else words(name) for name in self.summary["readout"]]
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", zeroline=False)
        figure.update_xaxes(title_text="training step", range=[-0.02 * last, 1.08 * last])
        return figure.update_layout(template=look(), title=plain(self.title))


def emergence_of(values: Mapping[str, pd.DataFrame], share: float, settings: Mapping[str, Any]) -> Emergence:
    """``SeedDynamics.emergence``, of each readout's values [step, seed]."""
    if not 0 < share <= 1:
        raise InputError(f"share = {share}: expected a number above 0 and at most 1")
    frames, notes = [], []
    for readout, matrix in values.items():
        gains = (matrix.iloc[-1] - matrix.iloc[0]).to_numpy(dtype=float)
        interval = seed_interval(gains)
        gain = float(np.median(gains))
        if gain == 0 or interval.low <= 0 <= interval.high:
            around = f"mean {gains.mean():.3g}, {float(interval.low):.3g} to {float(interval.high):.3g}"
            notes.append(f"{readout} has no clear gain over its start ({around})")
            frames.append(_passings(readout, matrix, None))
        else:
            frames.append(_passings(readout, matrix, (matrix.iloc[0] + share * gain).tolist(), rising=gain > 0))
    title = f"Steps to {share:g} of the gain over initialisation"
    return _summarised(frames, values, title, {**settings, "share": share}, notes)


def passing_of(values: Mapping[str, pd.DataFrame], threshold: float, settings: Mapping[str, Any]) -> Emergence:
    """``SeedDynamics.first_passing``, of each readout's values [step, seed]."""
    if not np.isfinite(threshold):
        raise InputError(f"threshold = {threshold}: expected a number")
    frames = [_passings(readout, matrix, [threshold] * matrix.shape[1]) for readout, matrix in values.items()]
    return _summarised(frames, values, f"Steps to {threshold:g}", {**settings, "threshold": threshold}, [])


def _summarised(
    frames: Sequence[pd.DataFrame],
    values: Mapping[str, pd.DataFrame],
    title: str,
    settings: Mapping[str, Any],
    notes: Sequence[str],
) -> Emergence:
    rows = []
    for (readout, matrix), frame in zip(values.items(), frames, strict=True):
        gains = (matrix.iloc[-1] - matrix.iloc[0]).to_numpy(dtype=float)
        mean = seed_interval(gains)
        gain = {"gain": float(np.median(gains)), "mean_gain": float(mean.estimate)}
        gain |= {"mean_gain_low": float(mean.low), "mean_gain_high": float(mean.high)}
        rows.append({"readout": readout, **gain, **_median_of(frame)})
    summary = pd.DataFrame(rows).sort_values("median_step", kind="stable", na_position="last", ignore_index=True)
    frame = pd.concat(frames, ignore_index=True)
    return Emergence(frame, title, settings, tuple(notes), summary, _order(frame, summary))


def median_interval(values: Float[ndarray, "seeds"], confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and its exact interval from order statistics: no assumption but that seeds are independent.

    ``values`` may be infinite: later than was looked. The ends are values k and n + 1 − k in order, for the largest k
    with P(B < k) ≤ (1 − confidence) / 2, B binomial with n trials and probability ½; without such a k (fewer than 6
    seeds at 95%) they are NaN.

    Source: the sign test's confidence interval, Conover (1999), Practical Nonparametric Statistics (from memory).

    >>> median_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.inf]))
    (4.0, 1.0, inf)
    """
    ordered, n = np.sort(np.asarray(values, dtype=float)), len(values)
    middle = ordered[(n - 1) // 2 : n // 2 + 1]
    median = float(middle.mean()) if np.isfinite(middle).all() else float("inf")
    ranks = [k for k in range(1, n // 2 + 1) if stats.binom.cdf(k - 1, n, 0.5) <= (1 - confidence) / 2]
    if not ranks:
        return median, float("nan"), float("nan")
    return median, float(ordered[ranks[-1] - 1]), float(ordered[n - ranks[-1]])


def _passings(
    readout: str, matrix: pd.DataFrame, heights: Sequence[float] | None, *, rising: bool = True
) -> pd.DataFrame:
    """When each seed's curve first reaches its height, from below or (not ``rising``) from above; None: never."""
    steps = matrix.index.to_numpy()
    rows = []
    for place, (seed, curve) in enumerate(matrix.items()):
        row: dict[str, Any] = {"seed": seed, "readout": readout, "start": float(curve.iloc[0]), "height": None}
        row |= {"step": None, "after_step": None, "last_step": int(steps[-1])}
        if heights is not None:
            row["height"] = heights[place]
            there = (curve >= row["height"] if rising else curve <= row["height"]).to_numpy()
            if there.any():
                first = int(there.argmax())
                row |= {"step": int(steps[first]), "after_step": int(steps[first - 1]) if first else None}
        rows.append(row)
    return pd.DataFrame(rows).astype({"height": float, "step": "Int64", "after_step": "Int64"})


def _median_of(rows: pd.DataFrame) -> dict[str, Any]:
    steps = rows["step"].astype(float).fillna(np.inf).to_numpy()
    found = median_interval(steps)
    median, low, high = (value if np.isfinite(value) else None for value in found)
    n_censored = int(np.isinf(steps).sum())
    return {"n_seeds": len(steps), "n_censored": n_censored, "median_step": median, "ci_low": low, "ci_high": high}


def _order(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    steps = frame.pivot(index="seed", columns="readout", values="step").astype(float).fillna(np.inf)
    pairs = list(itertools.combinations(summary["readout"], 2))
    rows = []
    for one, other in pairs:
        first, second = steps[one].to_numpy(), steps[other].to_numpy()
        any_came = np.isfinite(first) | np.isfinite(second)
        before, after = int((first < second).sum()), int((first > second).sum())
        row: dict[str, Any] = {"readout": one, "other": other, "n_before": before, "n_after": after}
        row |= {"n_same_step": int((first == second)[any_came].sum()), "n_neither": int((~any_came).sum())}
        if any_came.any():
            test = stats.binomtest(before, int(any_came.sum()))
            ends = test.proportion_ci(method="exact")
            row |= {"share_before": before / any_came.sum(), "ci_low": float(ends.low), "ci_high": float(ends.high)}
        if before + after:
            p_value = float(stats.binomtest(before, before + after).pvalue)
            row["p_value"] = min(1.0, p_value * len(pairs))
        rows.append(row)
    columns = ["readout", "other", "n_before", "n_same_step", "n_after", "n_neither"]
    return pd.DataFrame(rows, columns=[*columns, "share_before", "ci_low", "ci_high", "p_value"])

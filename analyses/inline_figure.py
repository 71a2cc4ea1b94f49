"""A result's table as a notebook shows it offline: each row's value with its interval drawn beside it, as plain SVG."""

import html
import math
from collections.abc import Sequence

import pandas as pd

_WIDTH, _HEIGHT, _MARGIN = 180, 16, 6
_INK = "#0072B2"


def table_with_intervals(frame: pd.DataFrame, value: str) -> str:
    """An HTML table of the frame, with a last column that draws ``value`` from ci_low to ci_high on one scale.

    Needs no script and no network. A row without an interval shows its value alone; a frame without the column is
    shown as it is.

    >>> print(table_with_intervals(pd.DataFrame({"delta": [1.0], "ci_low": [0.0], "ci_high": [2.0]}), "delta")[:24])
    <table class="dataframe"
    """
    if value not in frame:
        return frame.to_html(index=False, escape=True, border=0)
    drawn = frame.assign(**{" ": ""}).copy()
    drawn[" "] = [f"@@{row}@@" for row in range(len(frame))]
    table = drawn.to_html(index=False, escape=True, border=0, float_format=lambda number: f"{number:.4g}")
    lows = frame["ci_low"] if "ci_low" in frame else frame[value]
    highs = frame["ci_high"] if "ci_high" in frame else frame[value]
    numbers = list(zip(*(column.astype(float).tolist() for column in (frame[value], lows, highs)), strict=True))
    scale = _Scale([number for row in numbers for number in row])
    for row, (centre, low, high) in enumerate(numbers):
        table = table.replace(f"@@{row}@@", _drawn(scale, centre, low, high))
    return table


class _Scale:
    """Numbers to pixels, zero included."""

    def __init__(self, numbers: Sequence[float]):
        finite = [number for number in numbers if math.isfinite(number)]
        self.low, self.high = min([0.0, *finite]), max([0.0, *finite])

    def __call__(self, number: float) -> float:
        span = self.high - self.low or 1.0
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (number - self.low) / span


def _drawn(scale: _Scale, centre: float, low: float, high: float) -> str:
    middle, zero = _HEIGHT / 2, scale(0.0)
    parts = [f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{_HEIGHT}" stroke="#868e98" stroke-width="1"/>']
    said = "no value"
    if math.isfinite(centre):
        said = f"{centre:.4g}"
        if math.isfinite(low) and math.isfinite(high):
            said += f" from {low:.4g} to {high:.4g}"
            ends = f'x1="{scale(low):.1f}" x2="{scale(high):.1f}"'
            parts.append(f'<line {ends} y1="{middle}" y2="{middle}" stroke="{_INK}" stroke-width="2"/>')
        parts.append(f'<circle cx="{scale(centre):.1f}" cy="{middle}" r="3.5" fill="{_INK}"/>')
    label = html.escape(said)
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'

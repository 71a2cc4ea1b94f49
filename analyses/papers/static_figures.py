"""A figure as an SVG of a few kilobytes, for places where no script runs: documentation, Markdown, print.

Drawn from the same Plotly figure that the page shows: scatter lines and points, heat maps, straight lines and notes, on
linear, logarithmic or categorical axes, in one panel or several. Anything else is refused, not left out.
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tasks.errors import InputError

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 46, 52
_INK, _GRID, _MUTED = "#30363d", "#e6e8eb", "#5b6570"
_DASHES = {"dash": "6 4", "dot": "2 3", "dashdot": "6 3 2 3", "longdash": "10 4", "longdashdot": "10 3 2 3"}
_DARK = 130  # brightness of 255 below which white text is read better
_RGB = tuple[float, float, float]
_CHARACTER = 6.6  # about how wide one is, in pixels


def svg_of(figure: go.Figure, title: str, *, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """The figure as an SVG document; ``title`` is read out in place of the picture.

    Raises:
        InputError: a trace or shape of a kind that this does not draw.

    >>> svg_of(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name="a")), "A line")[:4]
    '<svg'
    """
    drawn: Any = figure  # Plotly's attributes are made at run time
    for trace in drawn.data:
        if trace.type not in ("scatter", "heatmap"):
            raise InputError(f"a trace of type {trace.type!r} cannot be drawn as SVG: use scatter or heatmap")
    panels = _panels(drawn, width, height)
    parts = [*_legend(drawn)]
    for panel in panels.values():
        parts += panel.frame()
    for trace in drawn.data:
        panel = panels[(trace.xaxis or "x", trace.yaxis or "y")]
        parts += _scatter(trace, panel) if trace.type == "scatter" else _heatmap(trace, panel)
    for shape in drawn.layout.shapes:
        parts.append(_line(shape, panels))
    for note in drawn.layout.annotations:
        parts.append(_note(note, panels, width, height))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    head += 'font-family="system-ui, sans-serif" font-size="12">'
    body = "\n".join([f"<title>{html.escape(title)}</title>", '<rect width="100%" height="100%" fill="#fff"/>', *parts])
    return f"{head}\n{body}\n</svg>\n"


@dataclass(frozen=True)
class _Axis:
    """One axis: from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    categories: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    title: str

    def __call__(self, value: Any) -> float:
        if self.categories:
            value = self.categories.index(str(value)) if isinstance(value, str) else value
        number = math.log10(value) if self.log else float(value)
        return self.start + (self.end - self.start) * (number - self.low) / ((self.high - self.low) or 1)


@dataclass(frozen=True)
class _Panel:
    x: _Axis
    y: _Axis

    def frame(self) -> Iterator[str]:
        """Grid, ticks and titles."""
        bottom, top, left, right = self.y.start, self.y.end, self.x.start, self.x.end
        room = (right - left) / max(len(self.x.ticks), 1)
        lean = any(len(text) * _CHARACTER > room for _, text in self.x.ticks)
        for value, text in self.x.ticks:
            at = self.x(value)
            yield f'<path d="M{at:.1f} {bottom:.1f}V{top:.1f}" stroke="{_GRID}"/>'
            how = (
                f'text-anchor="end" transform="rotate(-20 {at:.1f} {bottom + 14:.1f})"'
                if lean
                else 'text-anchor="middle"'
            )
            yield f'<text x="{at:.1f}" y="{bottom + 16:.1f}" fill="{_INK}" {how}>{_text(text)}</text>'
        for value, text in self.y.ticks:
            at = self.y(value)
            yield f'<path d="M{left:.1f} {at:.1f}H{right:.1f}" stroke="{_GRID}"/>'
            yield f'<text x="{left - 6:.1f}" y="{at + 4:.1f}" fill="{_INK}" text-anchor="end">{_text(text)}</text>'
        middle_x, middle_y, at = (left + right) / 2, (bottom + top) / 2, left - 46
        yield _title(self.x.title, middle_x, bottom + 40, turned=False)
        yield _title(self.y.title, at, middle_y, turned=True)


def _title(text: str, x: float, y: float, *, turned: bool) -> str:
    how = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="middle"{how}>{_text(text)}</text>'


def _panels(figure: Any, width: int, height: int) -> dict[tuple[str, str], _Panel]:
    made = {}
    for pair in dict.fromkeys((trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data):
        traces = [trace for trace in figure.data if (trace.xaxis or "x", trace.yaxis or "y") == pair]
        layouts = [figure.layout[f"{name[0]}axis{name[1:]}"] for name in pair]
        spans = []
        for layout, (near, far) in zip(layouts, ((_LEFT, width - _RIGHT), (height - _BOTTOM, _TOP)), strict=True):
            low, high = layout.domain or (0.0, 1.0)
            spans.append((near + low * (far - near), near + high * (far - near)))
        axes = [
            _axis(layout, [getattr(trace, letter) for trace in traces], span, any(t.type == "heatmap" for t in traces))
            for letter, layout, span in zip("xy", layouts, spans, strict=True)
        ]
        made[pair] = _Panel(*axes)
    return made


def _axis(layout: Any, values: Sequence[Any], span: tuple[float, float], cells: bool) -> _Axis:
    """The axis of some traces' values: what it shows, and where its ticks are."""
    flat = [one for each in values if each is not None for one in each]
    title = (layout.title.text or "") if layout.title else ""
    silent = layout.showticklabels is False
    if any(isinstance(one, str) for one in flat) or layout.type == "category" or cells:
        names = tuple(dict.fromkeys(str(one) for one in flat))
        low, high = -0.5, len(names) - 0.5
        if layout.autorange == "reversed":
            low, high = high, low
        return _Axis(
            low,
            high,
            *span,
            False,
            names,
            () if silent else tuple((float(at), name) for at, name in enumerate(names)),
            title,
        )
    log = layout.type == "log"
    numbers = np.array([float(one) for one in flat if one is not None and math.isfinite(float(one))])
    numbers = np.log10(numbers) if log else numbers
    if layout.range is not None:
        low, high = (float(end) for end in layout.range)
    else:
        low, high = float(numbers.min()), float(numbers.max())
        margin = 0.05 * (high - low) or 0.5
        low, high = low - margin, high + margin
    if layout.tickvals is not None:
        texts = layout.ticktext if layout.ticktext is not None else [f"{value:g}" for value in layout.tickvals]
        ticks = tuple((float(value), str(text)) for value, text in zip(layout.tickvals, texts, strict=True))
    elif log:
        ticks = tuple((10.0**power, f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1))
    else:
        ticks = tuple((value, f"{value:.6g}") for value in _round_numbers(low, high))
    return _Axis(low, high, *span, log, (), () if silent else ticks, title)


def _round_numbers(low: float, high: float) -> list[float]:
    """About five round numbers in between.

    >>> _round_numbers(0.0, 1.03)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = min((factor * unit for factor in (1, 2, 5, 10)), key=lambda one: abs(one - rough))
    first = math.ceil(low / step)
    return [float(round(index * step, 10)) for index in range(first, math.floor(high / step) + 1)]


def _scatter(trace: Any, panel: _Panel) -> Iterator[str]:
    points = [(panel.x(x), panel.y(y)) for x, y in zip(trace.x, trace.y, strict=True)]
    mode, opacity = trace.mode or "lines", 1.0 if trace.opacity is None else trace.opacity
    if "lines" in mode:
        dash = _DASHES.get(trace.line.dash or "solid")
        stroke = f'stroke="{trace.line.color or _INK}" stroke-width="{trace.line.width or 2:g}"'
        stroke += f' stroke-dasharray="{dash}"' if dash else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" {stroke} opacity="{opacity:g}"/>'
    if "markers" in mode:
        colour = trace.marker.color or _INK
        hollow = "open" in str(trace.marker.symbol or "")
        fill = "#fff" if hollow else colour
        for x, y in points:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.8"/>'


def _heatmap(trace: Any, panel: _Panel) -> Iterator[str]:
    z = np.asarray(trace.z, dtype=float)
    low = np.nanmin(z) if trace.zmin is None else trace.zmin
    high = np.nanmax(z) if trace.zmax is None else trace.zmax
    scale = [(float(at), _rgb(colour)) for at, colour in trace.colorscale]
    wide = abs(panel.x(1) - panel.x(0)) if len(panel.x.categories) > 1 else abs(panel.x.end - panel.x.start)
    tall = abs(panel.y(1) - panel.y(0)) if len(panel.y.categories) > 1 else abs(panel.y.end - panel.y.start)
    names = panel.x.categories, panel.y.categories
    texts = trace.text if trace.text is not None else None
    for row, y in enumerate(trace.y):
        for column, x in enumerate(trace.x):
            value = z[row, column]
            if math.isnan(value):
                continue
            share = float(np.clip((value - low) / ((high - low) or 1), 0, 1))
            colour = _between(scale, share)
            at_x, at_y = panel.x(names[0].index(str(x))), panel.y(names[1].index(str(y)))
            place = f'x="{at_x - wide / 2:.1f}" y="{at_y - tall / 2:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
            yield f'<rect {place} fill="rgb({", ".join(f"{part:.0f}" for part in colour)})"/>'
            said = str(texts[row][column]) if texts is not None else f"{value:.2g}"
            ink = "#fff" if _is_dark(colour) else _INK
            yield f'<text x="{at_x:.1f}" y="{at_y + 4:.1f}" fill="{ink}" text-anchor="middle">{_text(said)}</text>'


def _is_dark(colour: _RGB) -> bool:
    red, green, blue = colour
    return 0.3 * red + 0.59 * green + 0.11 * blue < _DARK


def _rgb(colour: str) -> _RGB:
    """A colour of a scale, on white.

    >>> _rgb("rgba(0, 100, 200, 0.5)"), _rgb("#ff0000")
    ((127.5, 177.5, 227.5), (255.0, 0.0, 0.0))
    """
    if colour.startswith("#"):
        red, green, blue = (float(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
        return red, green, blue
    numbers = [float(part) for part in colour.partition("(")[2].removesuffix(")").split(",")]
    share = numbers[3] if len(numbers) > 3 else 1.0
    red, green, blue = (share * part + (1 - share) * 255 for part in numbers[:3])
    return red, green, blue


def _between(scale: Sequence[tuple[float, _RGB]], share: float) -> _RGB:
    places = [at for at, _ in scale]
    red, green, blue = (float(np.interp(share, places, [colour[k] for _, colour in scale])) for k in range(3))
    return red, green, blue


def _line(shape: Any, panels: dict[tuple[str, str], _Panel]) -> str:
    if shape.type != "line":
        raise InputError(f"a shape of type {shape.type!r} cannot be drawn as SVG: use lines")
    x_name, y_name = (ref.partition(" ")[0] for ref in (shape.xref or "x", shape.yref or "y"))
    panel = panels.get((x_name, y_name)) or next(iter(panels.values()))
    ends = []
    for axis, ref, pair in (
        (panel.x, shape.xref or "x", (shape.x0, shape.x1)),
        (panel.y, shape.yref or "y", (shape.y0, shape.y1)),
    ):
        inside = ref.endswith("domain") or ref == "paper"
        ends.append([axis.start + (axis.end - axis.start) * end if inside else axis(end) for end in pair])
    (x0, x1), (y0, y1) = ends
    dash = _DASHES.get(shape.line.dash or "solid")
    stroke = f'stroke="{shape.line.color or _INK}" stroke-width="{shape.line.width or 1:g}"'
    stroke += f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" {stroke}/>'


def _note(note: Any, panels: dict[tuple[str, str], _Panel], width: int, height: int) -> str:
    if (note.xref or "x") == "paper":
        x = _LEFT + note.x * (width - _LEFT - _RIGHT)
        y = height - _BOTTOM - note.y * (height - _BOTTOM - _TOP) - 4
    else:
        panel = panels.get((note.xref or "x", note.yref or "y")) or next(iter(panels.values()))
        x, y = panel.x(note.x), panel.y(note.y) - (note.yshift or 0) + 4
    anchor = {"right": "end", "left": "start"}.get(note.xanchor or "center", "middle")
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_MUTED}" text-anchor="{anchor}">{_text(note.text)}</text>'


def _legend(figure: Any) -> Iterator[str]:
    """The names of the traces in one or two rows over the figure."""
    at, row = float(_LEFT), 0
    for trace in figure.data:
        if trace.type != "scatter" or trace.showlegend is False or not trace.name:
            continue
        wide = 34 + _CHARACTER * len(html.unescape(trace.name)) + 14
        if at > _LEFT and at + wide > _WIDTH - _RIGHT:
            at, row = float(_LEFT), row + 1
        y = 14 + 17 * row
        colour = (trace.line.color if "lines" in (trace.mode or "lines") else trace.marker.color) or _INK
        dash = _DASHES.get(trace.line.dash or "solid")
        stroke = f'stroke="{colour}" stroke-width="3"' + (f' stroke-dasharray="{dash}"' if dash else "")
        yield f'<path d="M{at:.1f} {y}h28" {stroke}/>'
        yield f'<text x="{at + 34:.1f}" y="{y + 4}" fill="{_INK}">{_text(trace.name)}</text>'
        at += wide


def _text(text: Any) -> str:
    """A label that Plotly reads as HTML, as plain text of an SVG."""
    return html.escape(html.unescape(str(text).replace("<br>", " ")), quote=False)

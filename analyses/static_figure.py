"""A figure of this project on paper: SVG, PDF or PNG, drawn by matplotlib from the Plotly figure, without a browser."""

import html
import math
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from analyses.figures import INK, MUTED
from tasks.errors import InputError

StaticFormat = Literal["svg", "pdf", "png"]
STATIC_FORMATS = ("svg", "pdf", "png")
_DOTS_PER_INCH = 96  # a pixel of the screen is a 96th of an inch on paper
_WIDTH, _HEIGHT = 760, 420
_LEFT, _BOTTOM, _WIDE, _HIGH = 0.08, 0.14, 0.9, 0.68  # where Plotly's domain from 0 to 1 lies on the page
_LEGEND_COLUMNS = 4
_DIGITS_ON_AXIS = 50  # of the numbers along a horizontal axis, all together
_LETTERS_ON_AXIS = 60  # and of names
_DASHES = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x-thin": "x",
    "star": "*",
    "line-ns": "|",
}
_MARKERS |= {"cross": "P", "x": "X", "triangle-down": "v", "pentagon": "p", "line-ew": "_"}
_MARKERS |= {"triangle-left": "<", "triangle-right": ">"}
_FONTS = ("DejaVu Sans", "Verdana")  # as wide as each other
_DARK = 0.5  # brightness from 0 to 1 below which white is read better
_TAG = re.compile(r"<[^>]+>")


def static_figure(figure: go.Figure, kind: StaticFormat) -> bytes:
    """The figure as a file's content; the same figure gives the same bytes.

    It draws what this project's figures are made of: bars, lines, markers, bands, maps of cells, straight lines and
    words, on linear, logarithmic and category axes.

    Raises:
        InputError: the figure holds a kind of trace that is drawn in the browser only.

    >>> static_figure(go.Figure(go.Bar(x=["L0H0", "L1H0"], y=[0.1, 0.9])), "svg")[:5]
    b'<?xml'
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout: Any = figure.layout
    _refuse_other_traces(figure)
    width, height = layout.width or _WIDTH, layout.height or _HEIGHT
    style: dict[Any, Any] = {"font.size": 9, "font.sans-serif": _FONTS, "axes.edgecolor": MUTED}
    style |= {"svg.hashsalt": "interp", "svg.fonttype": "none"}  # words stay words: found, copied, read out
    style |= {
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
    }
    style |= {"axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e8eb", "axes.axisbelow": True}
    with mpl.rc_context(style):
        page = Figure(figsize=(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
        FigureCanvasAgg(page)
        panels = _panels(figure)
        for panel in panels:
            panel.draw(page)
        _share_axes(panels)
        if layout.title.text:
            above = 1.0 + 0.06 * max(panel.legend_rows for panel in panels)
            page.suptitle(_plain(layout.title.text), x=0.01, y=above, ha="left", fontsize=11, fontweight="bold")
        content = BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
        page.savefig(content, format=kind, bbox_inches="tight", metadata=dates, dpi=2 * _DOTS_PER_INCH)
    return content.getvalue()


class _Panel:
    """One pair of axes with its traces, shapes and words."""

    def __init__(self, figure: go.Figure, name: str, traces: Sequence[Any]):
        self.layout: Any = figure.layout
        self.name, self.traces = name, traces
        self.x_axis, self.y_axis = (self.layout[f"{letter}axis{name}"] for letter in "xy")
        self.legend_rows = 0
        self.x = _Places(self.x_axis, [trace.x for trace in traces])
        self.y = _Places(self.y_axis, [trace.y for trace in traces])

    def draw(self, page: Any) -> None:
        left, right = self.x_axis.domain or (0.0, 1.0)
        bottom, top = self.y_axis.domain or (0.0, 1.0)
        left, right = _LEFT + _WIDE * left, _LEFT + _WIDE * right
        self.axes = page.add_axes((left, _BOTTOM + _HIGH * bottom, right - left, _HIGH * (top - bottom)))
        bars = [trace for trace in self.traces if trace.type == "bar"]
        for index, trace in enumerate(self.traces):
            self._drawer(trace)(trace, bars, index)
        self._draw_shapes()
        for which, axis, places in (("x", self.x_axis, self.x), ("y", self.y_axis, self.y)):
            self._dress(which, axis, places)
        self._draw_words()
        handles, labels = self.axes.get_legend_handles_labels()
        if handles and (self.layout.showlegend or (self.layout.showlegend is None and len(handles) > 1)):
            self.legend_rows = math.ceil(len(handles) / _LEGEND_COLUMNS)
            # matplotlib fills columns first, a reader reads rows
            order = [at for column in range(_LEGEND_COLUMNS) for at in range(column, len(handles), _LEGEND_COLUMNS)]
            self.axes.legend(
                [handles[at] for at in order], [labels[at] for at in order], loc="lower left",
                bbox_to_anchor=(0, 1.06), ncols=min(_LEGEND_COLUMNS, len(handles)), frameon=False, fontsize=8,
            )  # fmt: skip

    def _drawer(self, trace: Any) -> Callable[[Any, Sequence[Any], int], None]:
        return {"bar": self._draw_bars, "scatter": self._draw_points, "heatmap": self._draw_map}[trace.type]

    def _draw_bars(self, trace: Any, bars: Sequence[Any], _index: int) -> None:
        flat = trace.orientation == "h"
        places, values = (self.y(trace.y), trace.x) if flat else (self.x(trace.x), trace.y)
        values = np.asarray(values, dtype=float)
        width = trace.width if trace.width is not None else 0.8 / (len(bars) if self.layout.barmode == "group" else 1)
        if trace.offset is None and self.layout.barmode == "group" and len(bars) > 1:
            rank = next(i for i, bar in enumerate(bars) if bar is trace)
            places = places + (rank - (len(bars) - 1) / 2) * width
        error, ends = (trace.error_x, {"xerr": None}) if flat else (trace.error_y, {"yerr": None})
        ends = dict.fromkeys(ends, _spread(error))
        colours = _colours(trace.marker.color, len(values))
        hatched = bool(trace.marker.pattern.shape)
        look: dict[str, Any] = {"color": "none" if hatched else colours, "hatch": "////" if hatched else None}
        look |= {
            "edgecolor": colours if hatched else "none",
            "linewidth": 1 if hatched else 0,
            "label": self._label(trace),
        }
        look |= ends | {"ecolor": INK, "capsize": 2, "error_kw": {"elinewidth": 1}}
        if flat:
            self.axes.barh(places, values, height=width, **look)
        else:
            self.axes.bar(places, values, width=width, **look)

    def _draw_points(self, trace: Any, _bars: Sequence[Any], _index: int) -> None:
        x, y = self.x(trace.x), self.y(trace.y)
        mode = trace.mode or "lines"
        alpha = 1.0 if trace.opacity is None else trace.opacity
        if trace.fill in ("toself", "tonexty", "tozeroy") and trace.fillcolor:
            self.axes.fill(x, y, color=_rgba(trace.fillcolor), linewidth=0, label=self._label(trace))
            return
        if "lines" in mode and trace.line.width != 0:
            line = {
                "color": _rgba(trace.line.color or INK),
                "linewidth": (trace.line.width or 2) * 0.75,
                "alpha": alpha,
            }
            style = _DASHES.get(trace.line.dash or "solid", "-")
            label = self._label(trace)
            self.axes.plot(x, y, linestyle=style, label=label, **line)
        if "markers" in mode:
            symbol = str(trace.marker.symbol or "circle")
            colours = _colours(trace.marker.color or trace.line.color, len(x))
            faces = "none" if symbol.endswith("-open") else colours
            size = trace.marker.size if isinstance(trace.marker.size, int | float) else 7
            kind = _MARKERS.get(symbol.removesuffix("-open"), "o")
            label = None if "lines" in mode else self._label(trace)
            thin = kind in "x|_"
            look: dict[str, Any] = {"color": colours} if thin else {"facecolors": faces, "edgecolors": colours}
            look["alpha"] = alpha if trace.marker.opacity is None else alpha * trace.marker.opacity
            self.axes.scatter(x, y, s=(size * 0.75) ** 2, marker=kind, label=label, zorder=3, **look)
        ends = {"xerr": _spread(trace.error_x), "yerr": _spread(trace.error_y)}
        if any(end is not None for end in ends.values()):
            colour = _rgba(trace.error_y.color or trace.error_x.color or INK)
            self.axes.errorbar(x, y, **ends, fmt="none", ecolor=colour, elinewidth=1, capsize=2, zorder=2)
        if "text" in mode:
            for place, height, text in zip(x, y, trace.text, strict=True):
                offset = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                self.axes.annotate(_plain(text), (place, height), **offset)

    def _draw_map(self, trace: Any, _bars: Sequence[Any], _index: int) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        values = np.asarray(trace.z, dtype=float)
        shared = self.layout.coloraxis if trace.coloraxis else None
        scale = (shared.colorscale if shared is not None else trace.colorscale) or ((0, "#ffffff"), (1, INK))
        low, high = (shared.cmin, shared.cmax) if shared is not None else (trace.zmin, trace.zmax)
        colours = LinearSegmentedColormap.from_list("cells", [(float(at), _rgba(colour)) for at, colour in scale])
        x, y = (
            _edges(places(at), n)
            for places, at, n in zip((self.x, self.y), (trace.x, trace.y), values.shape[::-1], strict=True)
        )
        cells = self.axes.pcolormesh(x, y, values, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=1)
        self.axes.grid(visible=False)
        if shared is not None and shared.showscale is not False and self.name == "":
            # right of all panels, as in the browser: beside its own it would lie on the next one
            beside = self.axes.figure.add_axes((_LEFT + _WIDE + 0.02, _BOTTOM, 0.02, _HIGH))
            bar = self.axes.figure.colorbar(cells, cax=beside)
            beside.grid(visible=False)
            bar.set_label(_plain(shared.colorbar.title.text or ""))
        if trace.texttemplate and trace.text is not None:
            middles = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
            for row, line in enumerate(trace.text):
                for column, text in enumerate(line):
                    where = (middles[0][column], middles[1][row])
                    ink = trace.textfont.color or _readable_on(cells.to_rgba(values[row, column]))
                    self.axes.text(*where, _plain(text), ha="center", va="center", fontsize=7, color=ink)

    def _draw_shapes(self) -> None:
        for shape in self.layout.shapes:
            if (
                str(shape.yref or "y").split()[0] != f"y{self.name}"
                and str(shape.xref or "x").split()[0] != f"x{self.name}"
            ):
                continue
            look = {"color": _rgba(shape.line.color or INK), "linewidth": (shape.line.width or 1) * 0.75}
            look |= {"linestyle": _DASHES.get(shape.line.dash or "solid", "-")}
            if "domain" in str(shape.yref):
                self.axes.axvline(float(self.x([shape.x0])[0]), **look)
            elif "domain" in str(shape.xref):
                self.axes.axhline(float(self.y([shape.y0])[0]), **look)
            elif shape.type == "line":
                self.axes.plot(self.x([shape.x0, shape.x1]), self.y([shape.y0, shape.y1]), **look)
            elif shape.type == "rect":
                (x0, x1), (y0, y1) = self.x([shape.x0, shape.x1]), self.y([shape.y0, shape.y1])
                self.axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], **look)

    def _draw_words(self) -> None:
        for words in self.layout.annotations:
            look = {"ha": words.xanchor if words.xanchor in ("left", "right") else "center", "fontsize": 9}
            shift = tuple(72 / _DOTS_PER_INCH * (pixels or 0) for pixels in (words.xshift, words.yshift))
            look |= {"va": "center", "textcoords": "offset points", "xytext": shift} if any(shift) else {}
            if words.xref == "paper":  # the title of a panel
                low, high = self.x_axis.domain or (0.0, 1.0)
                top = (self.y_axis.domain or (0.0, 1.0))[1]
                if low <= words.x <= high and abs(words.y - top) < 0.02:
                    self.axes.set_title(_plain(words.text), fontsize=10)
            elif (words.xref or "x") == f"x{self.name}":
                self.axes.annotate(_plain(words.text), (self.x([words.x])[0], self.y([words.y])[0]), **look)

    def _dress(self, which: str, axis: Any, places: "_Places") -> None:
        of = getattr(self.axes, f"{which}axis")
        limits = getattr(self.axes, f"set_{which}lim")
        if axis.type == "log":
            getattr(self.axes, f"set_{which}scale")("log")
        if places.categories:
            names = [_plain(name) for name in places.categories]
            numbered = all(name.isdecimal() for name in names)  # of numbers, every so-and-so-many-th will do
            step = math.ceil(len("".join(names)) / _DIGITS_ON_AXIS) if which == "x" and numbered else 1
            of.set_ticks(range(0, len(names), step), names[::step], **_slanted(which, names))
        elif axis.tickvals is not None:
            names = [_plain(text) for text in axis.ticktext or axis.tickvals]
            of.set_ticks(list(axis.tickvals), names, **_slanted(which, names))
        if axis.range is not None and None not in axis.range:
            limits(*(10.0 ** np.asarray(axis.range) if axis.type == "log" else axis.range))
        elif axis.rangemode == "tozero":
            low, high = getattr(self.axes, f"get_{which}lim")()
            limits(min(0.0, low), max(0.0, high))
        if axis.autorange == "reversed":
            getattr(self.axes, f"invert_{which}axis")()
        if axis.showticklabels is False:
            of.set_tick_params(labelleft=False, labelbottom=False)
        if axis.title.text:
            of.set_label_text(_plain(axis.title.text))

    @staticmethod
    def _label(trace: Any) -> str | None:
        return _plain(trace.name) if trace.name and trace.showlegend is not False else None


def _slanted(which: str, names: Sequence[str]) -> dict[str, Any]:
    """How names are written that would not fit beside each other along an axis."""
    long = which == "x" and len("".join(names)) > _LETTERS_ON_AXIS and not all(name.isdecimal() for name in names)
    return {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}


class _Places:
    """Where an axis puts a value: categories by their number, in the order in which they first appear."""

    def __init__(self, axis: Any, series: Sequence[Any]):
        values = [value for one in series if one is not None for value in one]
        worded = axis.type == "category" or any(isinstance(value, str) for value in values)
        self.categories = list(dict.fromkeys(values)) if worded else []

    def __call__(self, values: Any) -> np.ndarray:
        if not self.categories:
            return np.asarray(values, dtype=float)
        return np.asarray([self._place(value) for value in values], dtype=float)

    def _place(self, value: Any) -> float:
        return float(self.categories.index(value)) if value in self.categories else float(value)


def _traces(figure: go.Figure) -> tuple[Any, ...]:
    return figure.data  # pyright: ignore[reportReturnType] — Plotly's own types leave them open


def _refuse_other_traces(figure: go.Figure) -> None:
    for trace in _traces(figure):
        if trace.type not in ("bar", "scatter", "heatmap"):
            raise InputError(f"a {trace.type} is drawn in the browser only: export this figure as .html")


def _panels(figure: go.Figure) -> list[_Panel]:
    names = [str(trace.xaxis or "x")[1:] for trace in _traces(figure)]
    return [
        _Panel(
            figure, name, [trace for trace, its_name in zip(_traces(figure), names, strict=True) if its_name == name]
        )
        for name in dict.fromkeys(names)
    ]


def _share_axes(panels: Sequence[_Panel]) -> None:
    """Give panels whose axes match the same limits, so that their curves can be compared."""
    for letter in "xy":
        groups: dict[str, list[Any]] = {}
        for panel in panels:
            axis = panel.x_axis if letter == "x" else panel.y_axis
            groups.setdefault(axis.matches or f"{letter}{panel.name}", []).append(panel.axes)
        for group in groups.values():
            limits = np.array([getattr(axes, f"get_{letter}lim")() for axes in group])
            low, high = limits.min(), limits.max()
            backwards = limits[0, 0] > limits[0, 1]
            for axes in group if len(group) > 1 else ():
                getattr(axes, f"set_{letter}lim")(*((high, low) if backwards else (low, high)))


def _edges(middles: np.ndarray, n: int) -> np.ndarray:
    """The borders of cells round their middles."""
    middles = np.arange(n, dtype=float) if len(middles) != n else middles
    if n == 1:
        return np.array([middles[0] - 0.5, middles[0] + 0.5])
    between = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[2 * middles[0] - between[0]], between, [2 * middles[-1] - between[-1]]])


def _spread(error: Any) -> np.ndarray | None:
    if error.array is None:
        return None
    above = np.asarray(error.array, dtype=float)
    below = above if error.arrayminus is None else np.asarray(error.arrayminus, dtype=float)
    return np.clip(np.stack([below, above]), 0.0, None)


def _colours(colour: Any, n: int) -> list[Any]:
    if colour is None or isinstance(colour, str):
        return [_rgba(colour or INK)] * n
    return [_rgba(one) for one in colour]


def _rgba(colour: Any) -> Any:
    """Plotly's rgba(r, g, b, a) or rgb(r, g, b) as matplotlib takes it; names and #rrggbb as they are."""
    found = re.fullmatch(r"rgba?\(([^)]*)\)", str(colour))
    if found is None:
        return colour
    numbers = [float(part) for part in found.group(1).split(",")]
    return (*(number / 255 for number in numbers[:3]), *numbers[3:])


def _readable_on(cell: Sequence[float]) -> str:
    red, green, blue, opacity = cell
    brightness = opacity * (0.299 * red + 0.587 * green + 0.114 * blue) + 1.0 - opacity
    return INK if brightness > _DARK else "#ffffff"


def _plain(text: object) -> str:
    """A label without Plotly's markup; a dollar would begin mathematics."""
    lines = str(text).replace("<br>", "\n")
    return html.unescape(_TAG.sub("", lines)).replace("$", r"\$")

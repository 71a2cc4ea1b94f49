"""A circuit as an SVG picture made of text alone: layers from bottom to top, one colour per head."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from analyses.edges import INPUTS_OF_HEADS, Anatomy, edges_in
from analyses.figures import INK, INK_ON_DARK, MUTED, component_colour
from analyses.path_runs import OUTPUT

_BOX_WIDTH, _BOX_HEIGHT, _GAP = 84.0, 34.0, 26.0
_ROW_GAP, _MARGIN, _HEADER = 58.0, 24.0, 44.0
_THINNEST, _WIDEST, _PLAIN = 1.0, 6.0, 1.8
_LETTER = 8.5  # of the title, at most
_LANE = 4  # between edges that pass through one gap
_SHOW_UNUSED = 8  # heads per layer up to which those that the circuit leaves out are shown, pale
_LIGHT, _DARK = "#ffffff", "#16191d"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"

_Edge = tuple[str, str, str]


def drawn(edges: Sequence[_Edge], anatomy: Anatomy, scores: Mapping[Any, float], *, title: str) -> str:
    """The picture as SVG; ``edges`` are (sender, receiver, input), ``scores`` theirs, where there are some."""
    layout = _Layout.of(edges, anatomy, least_width=2 * _MARGIN + _LETTER * len(title))
    widest = max((abs(scores[edge]) for edge in edges if edge in scores), default=0.0)
    # The weakest are drawn first, so that the strong lie on top.
    ranked = sorted(edges, key=lambda edge: abs(scores.get(edge, 0.0)))
    lines = [layout.edge(edge, scores.get(edge), widest) for edge in ranked]
    boxes = [layout.box(name) for name in layout.boxes]
    said = "wider: larger |score|" if widest else ""
    said += "; dashed: below 0" if any(scores.get(edge, 0.0) < 0 for edge in edges) else ""
    described = f"Edges: {', '.join(_named(edge) for edge in edges)}" if edges else "It has no edges."
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html.escape(title)}" ',
        f'font-family="{_FONT}">',
        f"<title>{html.escape(title)}</title><desc>{html.escape(described)}</desc>",
        f"<style>{_STYLE}</style>",
        '<rect class="circuit-page" width="100%" height="100%"/>',
        f'<text class="circuit-ink" x="{_MARGIN}" y="{_MARGIN + 4}" font-size="15">{html.escape(title)}</text>',
        f'<text class="circuit-pale" x="{_MARGIN}" y="{_MARGIN + 20}" font-size="11">{said}</text>',
        *lines,
        *boxes,
        "</svg>",
    ]
    return "\n".join(parts)


def _style(page: str, ink: str) -> str:
    return f".circuit-page,.circuit-box{{fill:{page}}}.circuit-ink{{fill:{ink}}}.circuit-line{{stroke:{ink}}}"


_STYLE = f".circuit-pale{{fill:{MUTED}}}{_style(_LIGHT, INK)}"
_STYLE += f"@media (prefers-color-scheme:dark){{{_style(_DARK, INK_ON_DARK)}}}"


@dataclass(frozen=True)
class _Box:
    """A component: the middle of its box, and its colour (None: the ink's)."""

    x: float
    row: int
    colour: str | None
    has_inputs: bool
    used: bool


@dataclass(frozen=True)
class _Layout:
    """Where everything stands. Rows count from the bottom."""

    boxes: Mapping[str, _Box]
    n_rows: int
    width: float
    height: float
    lanes: dict[tuple[int, int], int]
    """How many edges already pass through a gap of a row."""

    @classmethod
    def of(cls, edges: Sequence[_Edge], anatomy: Anatomy, least_width: float) -> "_Layout":
        used = {name for edge in edges for name in edge[:2]} | {OUTPUT}
        rows = _rows(used, anatomy)
        width = max(_MARGIN * 2 + len(row) * (_BOX_WIDTH + _GAP) - _GAP for row in rows)
        width = max(width + 2 * _GAP, least_width)
        boxes = {}
        for place, row in enumerate(rows):
            left = (width - len(row) * (_BOX_WIDTH + _GAP) + _GAP) / 2
            for column, name in enumerate(row):
                x = left + column * (_BOX_WIDTH + _GAP) + _BOX_WIDTH / 2
                boxes[name] = _Box(x, place, _colour(name, anatomy), "H" in name, name in used)
        height = _HEADER + 2 * _MARGIN + len(rows) * (_BOX_HEIGHT + _ROW_GAP) - _ROW_GAP
        return cls(boxes, len(rows), width, height, {})

    def top(self, row: int) -> float:
        """The upper end of a row's boxes."""
        return _HEADER + _MARGIN + (self.n_rows - 1 - row) * (_BOX_HEIGHT + _ROW_GAP)

    def box(self, name: str) -> str:
        """A component's box with its name and, for a head, its three inputs."""
        box, top = self.boxes[name], self.top(self.boxes[name].row)
        stroke = (
            'class="circuit-box circuit-line"' if box.colour is None else f'class="circuit-box" stroke="{box.colour}"'
        )
        parts = [f'<g opacity="{1 if box.used else 0.35}"><title>{html.escape(name)}</title>']
        corner = f'x="{box.x - _BOX_WIDTH / 2:.1f}" y="{top:.1f}"'
        size = f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" stroke-width="{2 if box.used else 1}"'
        parts.append(f"<rect {stroke} {corner} {size}/>")
        parts.append(_text(name, "ink", box.x, top + (15 if box.has_inputs else 21), 12))
        if box.has_inputs:
            letters = ((self._port(name, each), each) for each in INPUTS_OF_HEADS)
            parts += [_text(each, "pale", x, top + _BOX_HEIGHT - 4, 10) for x, each in letters]
        return "".join([*parts, "</g>"])

    def edge(self, edge: _Edge, score: float | None, widest: float) -> str:
        """The line of an edge, round all boxes between its ends."""
        sender, receiver = self.boxes[edge[0]], self.boxes[edge[1]]
        start = (sender.x, self.top(sender.row))
        end = (self._port(edge[1], edge[2]), self.top(receiver.row) + _BOX_HEIGHT)
        points = [start]
        for row in range(sender.row + 1, receiver.row):
            share = (row - sender.row) / (receiver.row - sender.row)
            x = self._free(row, start[0] + share * (end[0] - start[0]))
            points += [(x, self.top(row) + _BOX_HEIGHT), (x, self.top(row))]
        points.append(end)
        path = f"M{start[0]:.1f} {start[1]:.1f}"
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (y0 + y1) / 2
            bend = "" if x0 == x1 else f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} "
            path += f"{bend or 'L'}{x1:.1f} {y1:.1f}"
        stroke = 'class="circuit-line"' if sender.colour is None else f'stroke="{sender.colour}"'
        width, dash, said = _PLAIN, "", _named(edge)
        if score is not None and widest:
            width = _THINNEST + (_WIDEST - _THINNEST) * abs(score) / widest
            dash = ' stroke-dasharray="5 4"' if score < 0 else ""
            said += f": {score:.4g}"
        style = f'fill="none" stroke-width="{width:.2f}" stroke-opacity="0.8"{dash}'
        return f'<path d="{path}" {stroke} {style}><title>{html.escape(said)}</title></path>'

    def _port(self, name: str, each: str) -> float:
        """Where an edge enters a box."""
        if each not in INPUTS_OF_HEADS:
            return self.boxes[name].x
        return self.boxes[name].x + (INPUTS_OF_HEADS.index(each) - 1) * _BOX_WIDTH / 3.5

    def _free(self, row: int, x: float) -> float:
        """The place nearest to x where a line passes between the boxes of a row, beside those that do already."""
        middles = sorted(box.x for box in self.boxes.values() if box.row == row)
        half = (_BOX_WIDTH + _GAP) / 2
        gaps = [middles[0] - half, *(middle + half for middle in middles)]
        if x < gaps[0] or x > gaps[-1]:
            return x
        gap = min(range(len(gaps)), key=lambda place: abs(gaps[place] - x))
        n = self.lanes[row, gap] = self.lanes.get((row, gap), -1) + 1
        # 0, +1, −1, +2, −2, … lanes from the middle, as many as a gap holds
        n %= 2 * int((_GAP / 2 - _LANE) / _LANE) + 1
        return gaps[gap] + _LANE * ((n + 1) // 2) * (1 if n % 2 else -1)


def _rows(used: set[str], anatomy: Anatomy) -> list[list[str]]:
    """Names by row: embeddings, heads of layer 0, its MLP, …, the output; whole rows that are not used are left out."""
    rows: dict[tuple[int, int], list[str]] = {}
    for sender in edges_in(anatomy).senders:
        layer = -1 if sender.layer is None else sender.layer
        rows.setdefault((layer, 0 if sender.head is not None or layer < 0 else 1), []).append(sender.name)
    shown = [rows[key] for key in sorted(rows) if used & set(rows[key])]
    if anatomy.n_heads > _SHOW_UNUSED:
        shown = [[name for name in row if name in used] for row in shown]
    return [*shown, [OUTPUT]]


def _colour(name: str, anatomy: Anatomy) -> str | None:
    """Heads have their colour, what is no head is ink."""
    for sender in edges_in(anatomy).senders:
        if sender.name == name and sender.head is not None and sender.layer is not None:
            return component_colour(sender.layer, sender.head)
    return None


def _text(said: str, kind: str, x: float, y: float, size: int) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="middle"'
    return f'<text class="circuit-{kind}" {where}>{html.escape(said)}</text>'


def _named(edge: _Edge) -> str:
    return f"{edge[0]}->{edge[1]}" + ("" if edge[2] == "in" else f".{edge[2]}")

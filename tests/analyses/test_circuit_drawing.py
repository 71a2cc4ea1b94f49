"""The picture of a circuit: well-formed, complete, readable without colour and without overlap."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from analyses.circuit import Circuit, Edge, places
from analyses.circuit_drawing import _BOX_HEIGHT, _BOX_WIDTH, _Layout
from analyses.edges import Anatomy
from analyses.figures import component_colour

SMALL = Anatomy(2, 4, (0, 1), ("embed", "pos_embed"), False)
LARGE = Anatomy(12, 12, tuple(range(12)), ("embed", "pos_embed"), False)
SVG = "{http://www.w3.org/2000/svg}"


def drawn(anatomy, n, *, scored=True, seed=0):
    rng = np.random.default_rng(seed)
    every = list(places(anatomy))
    edges = [every[place] for place in rng.choice(len(every), n, replace=False)]
    scores = dict(zip(edges, rng.normal(size=n).tolist(), strict=True)) if scored else {}
    circuit = Circuit(tuple(edges), anatomy, scores)
    return circuit, ET.fromstring(circuit.draw())


@pytest.mark.parametrize(("anatomy", "n"), [(SMALL, 20), (SMALL, 0), (LARGE, 120)])
def test_every_edge_and_every_node_is_there_once_and_says_its_name(anatomy, n):
    circuit, picture = drawn(anatomy, n)
    said = [path.find(f"{SVG}title").text.partition(":")[0] for path in picture.iter(f"{SVG}path")]
    assert sorted(said) == sorted(str(edge) for edge in circuit)
    boxes = [group.find(f"{SVG}title").text for group in picture.iter(f"{SVG}g")]
    assert len(set(boxes)) == len(boxes)
    assert {*circuit.nodes, "output"} <= set(boxes)


@pytest.mark.parametrize(("anatomy", "n"), [(SMALL, 20), (LARGE, 120)])
def test_boxes_lie_within_the_picture_and_apart(anatomy, n):
    _, picture = drawn(anatomy, n)
    corners = [(float(box.get("x")), float(box.get("y"))) for box in picture.iter(f"{SVG}rect") if box.get("x")]
    width, height = float(picture.get("width")), float(picture.get("height"))
    for x, y in corners:
        assert 0 <= x <= width - _BOX_WIDTH
        assert 0 <= y <= height - _BOX_HEIGHT
    for (x0, y0), (x1, y1) in combinations(corners, 2):
        assert abs(x0 - x1) >= _BOX_WIDTH or abs(y0 - y1) >= _BOX_HEIGHT


@pytest.mark.parametrize(("anatomy", "n"), [(SMALL, 60), (LARGE, 120)])
def test_edges_pass_between_the_boxes_of_other_rows(anatomy, n):
    circuit, picture = drawn(anatomy, n)
    layout = _Layout.of(list(circuit.edges), anatomy, least_width=0.0)
    rows = {layout.top(row): [box.x for box in layout.boxes.values() if box.row == row] for row in range(layout.n_rows)}
    for path in picture.iter(f"{SVG}path"):
        points = re.findall(r"(-?[\d.]+) (-?[\d.]+)(?=[CL]|$)", path.get("d"))
        for x, y in points[1:-1]:
            for top, middles in rows.items():
                if float(y) in (top, top + _BOX_HEIGHT):
                    assert min(abs(float(x) - middle) for middle in middles) > _BOX_WIDTH / 2


def test_heads_have_the_colour_they_have_in_every_figure():
    edges = (Edge("L1H2", "output", "in"), Edge("L0.mlp", "output", "in"))
    picture = ET.fromstring(Circuit(edges, SMALL).draw())
    strokes = {path.find(f"{SVG}title").text: path.get("stroke") for path in picture.iter(f"{SVG}path")}
    assert strokes == {"L1H2->output": component_colour(1, 2), "L0.mlp->output": None}


def test_wider_is_stronger_and_dashed_is_negative():
    edges = [Edge(f"L1H{head}", "output", "in") for head in range(3)]
    scores = dict(zip(edges, [2.0, -1.0, 0.0], strict=True))
    picture = ET.fromstring(Circuit(tuple(edges), SMALL, scores).draw())
    lines = {path.find(f"{SVG}title").text: path for path in picture.iter(f"{SVG}path")}
    width = {name.partition(":")[0]: float(line.get("stroke-width")) for name, line in lines.items()}
    assert width["L1H0->output"] == 6
    assert width["L1H0->output"] > width["L1H1->output"] > width["L1H2->output"]
    dashed = [name for name, line in lines.items() if line.get("stroke-dasharray")]
    assert dashed == ["L1H1->output: -1"]
    plain = ET.fromstring(Circuit(tuple(edges), SMALL).draw())
    assert len({line.get("stroke-width") for line in plain.iter(f"{SVG}path")}) == 1


def test_the_picture_needs_nothing_from_outside_and_says_what_it_shows():
    circuit = Circuit((Edge("embed", "output", "in"),), SMALL)
    text = circuit.draw(title="<b> & co")
    picture = ET.fromstring(text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == "<b> & co"
    assert picture.find(f"{SVG}desc").text == "Edges: embed->output"
    assert "prefers-color-scheme:dark" in text
    assert circuit._repr_svg_() == circuit.draw()

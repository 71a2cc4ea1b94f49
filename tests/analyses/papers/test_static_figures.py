import re
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import pytest

from analyses.papers.seed_figures import seed_curves, seed_points
from analyses.papers.static_figures import svg_of
from tasks.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figure: go.Figure, title: str = "A figure") -> ET.Element:
    return ET.fromstring(svg_of(figure, title))


def texts(picture: ET.Element) -> list[str]:
    return [one.text or "" for one in picture.iter(f"{SVG}text")]


def test_every_seed_and_the_mean_are_drawn():
    x = np.array([0.0, 1.0, 2.0])
    picture = drawn(seed_curves({"a": [(x, x + seed) for seed in range(5)]}, x="step", y="value"))
    lines = list(picture.iter(f"{SVG}polyline"))
    assert [float(line.get("stroke-width") or 0) for line in lines] == [1, 1, 1, 1, 1, 3]
    assert texts(picture)[0] == "a"
    assert {"step", "value"} <= set(texts(picture))


def test_what_is_twice_as_far_is_drawn_twice_as_far_and_up_is_more():
    figure = go.Figure(go.Scatter(x=[0, 1, 3], y=[0, 10, 20], mode="lines"))
    line = next(drawn(figure).iter(f"{SVG}polyline")).get("points") or ""
    points = np.array([[float(part) for part in pair.split(",")] for pair in line.split()])
    across, up = np.diff(points[:, 0]), -np.diff(points[:, 1])
    assert across[1] / across[0] == pytest.approx(2, rel=0.01)
    assert up[0] == pytest.approx(up[1], rel=0.01)
    assert (up > 0).all()


def test_logarithmic_axes_have_equal_factors_equally_far_apart():
    figure = go.Figure(go.Scatter(x=[1, 10, 100], y=[1, 2, 3], mode="markers")).update_xaxes(type="log")
    picture = drawn(figure)
    x = [float(one.get("cx") or 0) for one in picture.iter(f"{SVG}circle")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert {"1", "10", "100"} <= set(texts(picture))


def test_a_heat_map_has_a_cell_and_a_number_for_each_value_that_exists():
    figure = go.Figure(go.Heatmap(x=["a", "b"], y=["c"], z=[[0.0, np.nan]], colorscale="Blues", zmin=0, zmax=1))
    picture = drawn(figure)
    assert len(list(picture.iter(f"{SVG}rect"))) == 2  # the background and one cell
    assert "0" in texts(picture)


def test_reference_lines_and_their_names_are_drawn():
    picture = drawn(seed_points({"one": [0.2] * 5, "two": [0.9] * 5}, y="accuracy", marks={"chance": 0.1}))
    dashed = [one for one in picture.iter(f"{SVG}path") if one.get("stroke-dasharray")]
    assert len(dashed) == 1
    assert "chance" in texts(picture)
    assert len(list(picture.iter(f"{SVG}circle"))) == 10


def test_names_are_text_and_nothing_else():
    hostile = "</title><script>alert(1)</script>"
    source = svg_of(seed_points({hostile: [0.0] * 5}, y=hostile, marks={hostile: 0.5}), hostile)
    assert "<script" not in source
    assert hostile in texts(ET.fromstring(source))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="a trace of type 'pie' cannot be drawn as SVG: use scatter or heatmap"):
        svg_of(go.Figure(go.Pie(values=[1])), "A pie")
    with pytest.raises(InputError, match="a shape of type 'rect' cannot be drawn"):
        svg_of(go.Figure(go.Scatter(x=[0, 1], y=[0, 1])).add_shape(type="rect", x0=0, x1=1, y0=0, y1=1), "A box")

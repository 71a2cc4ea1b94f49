import re
import xml.etree.ElementTree as ET

import plotly.graph_objects as go
import pytest
import torch
from plotly.subplots import make_subplots

from analyses import ablate_heads
from analyses.static_figure import static_figure
from interp import HookedTransformer, HookedTransformerConfig, InputError
from tasks import Prompts

PNG, PDF = b"\x89PNG", b"%PDF"


def paths_of(svg: bytes, colour: str) -> list[str]:
    """The outlines that are filled with a colour."""
    return re.findall(rf'<path d="([^"]+)"[^>]*fill: {colour}', svg.decode())


def heights_of_bars(svg: bytes, colour: str) -> list[float]:
    heights = []
    for outline in paths_of(svg, colour):
        ys = [float(pair[1]) for pair in re.findall(r"([-\d.]+) ([-\d.]+)", outline)]
        heights.append(max(ys) - min(ys))
    return heights


def result():
    config = HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=6, d_vocab=5, attn_only=True, seed=0)
    tokens = torch.randint(5, (40, 6), generator=torch.Generator().manual_seed(0))
    return ablate_heads(HookedTransformer(config), Prompts.from_tensors(tokens), method="zero")


def test_bars_are_as_high_as_their_values():
    figure = go.Figure(go.Bar(x=["a", "b"], y=[1.0, 3.0], marker={"color": "#123456"}))
    low, high = heights_of_bars(static_figure(figure, "svg"), "#123456")
    assert high / low == pytest.approx(3.0, rel=1e-3)


def test_grouped_bars_stand_beside_each_other():
    bars = [go.Bar(x=["a"], y=[1.0], marker={"color": colour}) for colour in ("#110000", "#002200")]
    svg = static_figure(go.Figure(bars).update_layout(barmode="group"), "svg")
    (left,), (right,) = paths_of(svg, "#110000"), paths_of(svg, "#002200")
    ends = [[float(pair[0]) for pair in re.findall(r"([-\d.]+) ([-\d.]+)", outline)] for outline in (left, right)]
    assert max(ends[0]) <= min(ends[1]) + 1e-3


@pytest.mark.parametrize(("shared", "ratio"), [(True, 3.0), (False, 1.0)])
def test_panels_that_share_an_axis_have_the_same_limits(shared, ratio):
    figure = make_subplots(rows=1, cols=2, shared_yaxes=shared)
    for column, (colour, height) in enumerate([("#123456", 1.0), ("#654321", 3.0)], start=1):
        figure.add_trace(go.Bar(x=["a"], y=[height], marker={"color": colour}), row=1, col=column)
    svg = static_figure(figure, "svg")
    (low,), (high,) = heights_of_bars(svg, "#123456"), heights_of_bars(svg, "#654321")
    assert high / low == pytest.approx(ratio, rel=1e-3)


def test_seeds_that_never_get_there_are_triangles_and_not_circles():
    def drawn(symbol):
        return static_figure(go.Figure(go.Scatter(x=[1], y=[1], mode="markers", marker={"symbol": symbol})), "svg")

    assert drawn("triangle-right-open") != drawn("circle-open")


@pytest.mark.parametrize(("kind", "magic"), [("png", PNG), ("pdf", PDF), ("svg", b"<?xml")])
def test_every_format_is_what_its_name_says(kind, magic):
    assert static_figure(result().plot(), kind).startswith(magic)


def test_the_same_figure_gives_the_same_bytes():
    figure = result().plot()
    assert static_figure(figure, "svg") == static_figure(figure, "svg")


def test_a_kind_of_trace_that_is_not_drawn_is_refused_by_name():
    with pytest.raises(InputError, match=r"a scatter3d is drawn in the browser only: export this figure as \.html"):
        static_figure(go.Figure(go.Scatter3d(x=[0], y=[0], z=[0])), "svg")


def test_maps_lines_bands_and_log_axes_are_drawn():
    figure = make_subplots(rows=1, cols=3)
    figure.add_trace(
        go.Heatmap(x=["a", "b"], y=["c"], z=[[0.0, 1.0]], colorscale=[[0, "#ffffff"], [1, "#000000"]]), 1, 1
    )
    figure.add_trace(go.Scatter(x=[1, 10, 100], y=[1, 2, 3], mode="lines+markers", line={"dash": "dot"}), 1, 2)
    band = {"fill": "toself", "fillcolor": "rgba(10, 20, 30, 0.5)", "line": {"width": 0}}
    figure.add_trace(go.Scatter(x=[0, 1, 1, 0], y=[0, 0, 1, 1], **band), 1, 3)
    figure.update_xaxes(type="log", col=2)
    svg = static_figure(figure, "svg")
    ET.fromstring(svg)
    assert b"#0a141e" in svg
    assert b"stroke-dasharray" in svg


def test_a_result_is_exported_in_each_format_and_nothing_is_written_over(tmp_path):
    found = result()
    for ending in ("html", "svg", "pdf", "png"):
        assert found.export(tmp_path / f"figure.{ending}").stat().st_size > 1000
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    with pytest.raises(InputError, match=r"figure\.svg exists: choose another name"):
        found.export(tmp_path / "figure.svg")


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in '\.jpg': end it in \.html, \.svg, \.pdf or \.png"):
        result().export(tmp_path / "figure.jpg")
    assert list(tmp_path.iterdir()) == []


def test_the_colour_bar_of_several_maps_lies_right_of_them_all():
    figure = make_subplots(rows=1, cols=2)
    for column in (1, 2):
        figure.add_trace(go.Heatmap(x=["a"], y=["b"], z=[[0.5]], coloraxis="coloraxis"), 1, column)
    figure.update_layout(coloraxis={"colorscale": [[0, "#ffffff"], [1, "#00ff00"]], "cmin": 0, "cmax": 1})
    svg = static_figure(figure, "svg").decode()
    background = r'<g id="axes_\d">\s*<g id="patch_\d+">\s*<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+)'
    spans = [tuple(map(float, ends)) for ends in re.findall(background, svg)]
    (bar_left, _), *panels = sorted(spans, key=lambda span: span[1] - span[0])
    assert len(panels) == 2
    assert all(right < bar_left for _, right in panels)


def test_numbers_along_an_axis_are_thinned_and_names_are_not():
    for labels, shown in (([f"{n}" for n in range(64)], 22), ([f"L{n}" for n in range(64)], 64)):
        figure = go.Figure(go.Heatmap(x=labels, y=["a"], z=[[0.0] * 64]))
        svg = static_figure(figure, "svg").decode()
        assert len(re.findall(r'<g id="xtick_', svg)) == shown


def test_a_marker_that_is_not_to_be_seen_is_not_drawn_and_its_whisker_keeps_its_colour():
    error = {"type": "data", "array": [1.0], "color": "#123456"}
    trace = go.Scatter(x=[1], y=[2], mode="markers", marker={"opacity": 0, "color": "#654321"}, error_y=error)
    svg = static_figure(go.Figure(trace), "svg").decode()
    assert "stroke: #123456" in svg
    assert "opacity: 0" in re.search(r"#654321[^\"]*", svg).group()


def words_of(svg: bytes) -> dict[str, ET.Element]:
    """The elements of text by what they say."""
    return {one.text or "": one for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_words_stay_words_whatever_they_say():
    hostile = "</title><script>alert(1)</script> $x$"
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name="a")).update_xaxes(title_text=hostile)
    figure.add_annotation(x=0, y=1, text="a note", showarrow=False)
    words = words_of(static_figure(figure, "svg"))
    assert "a note" in words
    assert "alert(1) $x$" in words  # Plotly's markup is left out here as it is there
    assert b"<script" not in static_figure(figure, "svg")


def test_words_beside_a_line_keep_their_distance_from_it():
    def height(shift):
        figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1])).update_yaxes(range=[0, 1])
        figure.add_annotation(x=0.5, y=0.5, text="chance", showarrow=False, yshift=shift)
        return float(words_of(static_figure(figure, "svg"))["chance"].get("y") or 0)

    points = 72 / 96  # a pixel of the screen in the file's unit
    assert height(9) - height(29) == pytest.approx(20 * points, abs=0.01)


@pytest.mark.parametrize(("opacity", "inks"), [(1, ["#30363d", "#ffffff"]), (0.2, ["#30363d", "#30363d"])])
def test_numbers_in_cells_are_read_on_dark_and_on_light_ones(opacity, inks):
    scale = [[0, "#ffffff"], [1, f"rgba(0, 0, 0, {opacity})"]]
    cells = {"z": [[0.0, 1.0]], "zmin": 0, "zmax": 1, "text": [["low", "high"]], "texttemplate": "%{text}"}
    words = words_of(static_figure(go.Figure(go.Heatmap(x=["a", "b"], y=["c"], colorscale=scale, **cells)), "svg"))
    found = [re.search(r"fill: (#\w+)", words[name].get("style") or "") for name in ("low", "high")]
    assert [one and one.group(1) for one in found] == inks


def test_an_axis_without_labels_has_none():
    figure = go.Figure(go.Bar(x=["a", "b"], y=[1, 2]))
    assert {"a", "b"} <= words_of(static_figure(figure, "svg")).keys()
    figure.update_xaxes(showticklabels=False)
    assert words_of(static_figure(figure, "svg")).keys().isdisjoint({"a", "b"})


@pytest.mark.parametrize(("name", "angle"), [("one", 0), ("a name of some length indeed", 35)])
def test_names_that_would_not_fit_beside_each_other_are_slanted(name, angle):
    names = [f"{name} {k}" for k in range(4)]
    by_category = go.Figure(go.Bar(x=names, y=[1, 2, 3, 4]))
    by_tick = go.Figure(go.Bar(x=[0, 1, 2, 3], y=[1, 2, 3, 4])).update_xaxes(tickvals=[0, 1, 2, 3], ticktext=names)
    for figure in (by_category, by_tick):
        turned = words_of(static_figure(figure, "svg"))[names[0]].get("transform") or ""
        assert abs(int(re.search(r"rotate\((-?\d+)", turned).group(1))) == angle

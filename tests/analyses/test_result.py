import json

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from analyses.result import Result, notes_on_intervals
from tasks.errors import InputError


class Example(Result):
    """Two layers of two heads, under two metrics."""

    @property
    def name(self):
        return "example"

    def plot(self):
        return go.Figure()


def frame_of(heads, **columns):
    rows = [
        {
            "layer": layer,
            "head": head,
            "component": f"L{layer}H{head}",
            "metric": metric,
            "delta": 10 * layer + head + add,
        }
        for metric, add in (("loss", 0.0), ("kl", 0.5))
        for layer, head in heads
    ]
    return pd.DataFrame(rows).assign(**columns).astype({"head": "Int64"})


EVERY = [(1, 1), (0, 0), (1, 0), (0, 1)]  # in no order


@pytest.fixture
def result():
    return Example(frame_of(EVERY, ci_low=[0.0] * 7 + [None]), "A <title>", {"seed": 3}, ("mind the <gap>",))


def test_an_entry_of_the_matrix_is_its_layer_and_head(result):
    assert torch.equal(result.matrix(metric="loss"), torch.tensor([[0.0, 1.0], [10.0, 11.0]], dtype=torch.float64))
    assert result.matrix("delta", metric="kl")[1, 0] == 10.5


def test_rows_of_no_single_head_are_left_out_of_the_matrix():
    frame = pd.concat([frame_of(EVERY), frame_of([(0, 0)]).assign(head=None, component="L0.mlp")])
    assert Example(frame, "").matrix(metric="loss").shape == (2, 2)


@pytest.mark.parametrize("heads", [[(1, 0), (1, 1)], [(0, 1), (1, 1)], [(0, 0), (0, 1), (1, 0)]])
def test_a_matrix_with_missing_heads_is_refused(heads):
    with pytest.raises(InputError, match="some heads have no delta: matrix needs every head of every layer"):
        Example(frame_of(heads), "").matrix(metric="loss")


def test_a_matrix_that_is_not_one_value_per_head_is_refused(result):
    for how, message in (
        ({}, "several rows per head: choose one by metric=…"),
        ({"metric": "los"}, "no row of a single head with {'metric': 'los'}"),
        ({"metrik": "loss"}, "no column 'metrik': choose from layer, head"),
        ({"column": "effect"}, "no column 'effect'"),
        ({"column": "ci_low", "metric": "kl"}, "some heads have no ci_low"),
    ):
        with pytest.raises(InputError) as refusal:
            result.matrix(**how)
        assert message in str(refusal.value)


def test_a_result_is_saved_as_a_table_and_what_it_means(result, tmp_path):
    folder = result.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["example.csv", "example.json"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "example.csv"), result.frame, check_dtype=False)
    about = json.loads((folder / "example.json").read_text())
    assert about == {"title": "A <title>", "settings": {"seed": 3}, "notes": ["mind the <gap>"]}


def test_every_table_of_a_result_is_saved(result, tmp_path):
    class Two(Example):
        @property
        def tables(self):
            return super().tables | {"example_more": pd.DataFrame({"x": [1, 2]})}

    Two(result.frame, result.title).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example.csv", "example.json", "example_more.csv"]
    assert pd.read_csv(tmp_path / "example_more.csv")["x"].tolist() == [1, 2]


@pytest.mark.parametrize("existing", ["example.csv", "example.json"])
def test_saving_writes_nothing_over(result, tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(InputError, match=f"{existing} exists"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_html_is_escaped_and_cut_with_a_count(result):
    html = Example(pd.concat([result.frame] * 3), result.title, result.settings, result.notes)._repr_html_()
    assert "A &lt;title&gt;" in html
    assert "mind the &lt;gap&gt;" in html
    assert "… and 12 more rows in .frame" in html
    assert "more rows" not in result._repr_html_()


def test_rows_without_an_interval_are_noted(result):
    assert notes_on_intervals(result.frame) == ("1 of 8 rows have no interval: fewer than 2 prompts score there",)
    assert notes_on_intervals(result.frame.fillna(0.0)) == ()

"""The report of many seeds: what it says, draws, writes and refuses."""

import json

import pandas as pd
import pytest

from analyses import write_report, write_seeds_report
from analyses.memory_readouts import recall_readouts
from interp import TrainConfig, cli, train_many
from interp.evaluation import evaluate
from interp.presets import preset
from tasks import BigramICL, InputError, SparseRegression

FAST = TrainConfig(steps=4, batch_size=4, checkpoint_every=2, log_every=2, eval_prompts=8, lr=0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    task = BigramICL(seq_len=12)
    config, _ = preset("bietti-simplified", task, {"d_model": 8})
    out = tmp_path_factory.mktemp("seeds") / "runs"
    readouts = recall_readouts(task)
    return train_many(task, config, FAST, seeds=range(6), out=out, how="stacked", readouts=readouts, progress=False)


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    return write_seeds_report(runs, tmp_path_factory.mktemp("report") / "report").parent


def table(folder, name):
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def test_every_seed_is_in_the_tables_and_censored_ones_are_counted(folder):
    every = table(folder, "emergence")
    assert sorted(every["seed"].unique()) == list(range(6))
    summary = table(folder, "emergence_summary").set_index("readout")
    assert set(summary.index) == {"W_O2", "W_K1", "W_K2"}
    for readout, rows in every.groupby("readout"):
        assert summary.loc[readout, "n_seeds"] == 6
        assert summary.loc[readout, "n_censored"] == rows["step"].isna().sum()
    facts = json.loads((folder / "report.json").read_text())
    never = {one["numbers"]["readout"] for one in facts["findings"] if "never has" in one["sentence"]}
    assert never == set(summary.index[summary["n_censored"] > 0])
    assert len(table(folder, "emergence_order")) == 3


def test_bands_are_those_of_the_histories(folder, runs):
    bands = table(folder, "recall_bands")
    last = bands[(bands["readout"] == "W_O2") & (bands["step"] == 4)]
    expected = runs.history.query("step == 4")["recall_W_O2"].mean()
    assert last["mean"].item() == pytest.approx(expected)
    assert last["n_seeds"].item() == 6


def test_the_last_checkpoints_are_measured_on_the_same_fresh_prompts(folder, runs):
    end = table(folder, "end").set_index("seed")
    prompts = runs.task.sample(512, seed=(2, 0, 1_380_274_260))
    assert end.loc[3, "loss"] == pytest.approx(evaluate(runs[3].model, prompts, 4)["loss"])
    assert "the mean over 6 seeds" in (folder / "report.md").read_text()


def test_the_way_of_training_is_said(folder):
    assert table(folder, "how")["way"].tolist() == ["stacked"] * 6


def test_figures_have_a_line_for_every_seed(folder):
    page = (folder / "report.html").read_text()
    data = json.loads(page.split('type="application/json"', 1)[1].split(">", 1)[1].split("</script>", 1)[0])
    curves = data["figures"]["figure-memories-0"]["data"]
    assert len(curves) == 3 * (6 + 2)


def test_a_regression_is_reported_by_its_risk(tmp_path):
    task = SparseRegression(d=3, sparsity=1, n_context=5)
    config, _ = preset("chen-2-linear", task, {"d_model": 8})
    runs = train_many(task, config, FAST, seeds=range(5), out=tmp_path / "runs", how="stacked", progress=False)
    folder = write_seeds_report(runs, tmp_path / "report").parent
    assert "At the end the excess risk is" in (folder / "report.md").read_text()
    assert not (folder / "tables" / "emergence.csv").exists()


def test_the_command_reports_a_folder_of_seeds(runs, tmp_path, capsys):
    assert cli.run(["report", str(runs.path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert cli.run(["report", str(runs.path), "--out", str(tmp_path / "out")]) == 2
    assert "holds a report already" in capsys.readouterr().err


def test_too_few_seeds_and_unfinished_ones_are_refused(runs, tmp_path):
    task = runs.task
    few = train_many(task, runs[0].config, FAST, seeds=range(2), out=tmp_path / "few", how="alone", progress=False)
    with pytest.raises(InputError, match="2 seeds are too few for intervals over seeds: train at least 5"):
        write_seeds_report(few, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    assert write_report(few[1], tmp_path / "one").exists()  # each is a run like any other

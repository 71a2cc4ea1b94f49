"""A regression run's report: whole, honest about an untrained model, and without what does not apply."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analyses import write_report
from analyses.report.regression_report import AS_TRAINED, BAYES, RIDGE_BOUND, shifted_tasks
from interp import HookedTransformer, Run, TrainConfig, train
from interp.presets import preset
from tasks import SparseRegression

TASK = SparseRegression(d=4, sparsity=2, n_context=8, n_queries=2)
TABLES = {
    *("risk", "gap_closed", "effective_heads", "head_assessment", "pruning", "coordinate_map", "probes"),
    *("steps_needed", "preprocessing_probe", "algorithm_distances", "layer_distances", "history"),
}


def trained(task: SparseRegression, out: Path, **model) -> Run:
    config, _ = preset("chen-2-linear", task, {"d_model": 8, "n_layers": 2, **model})
    return train(task, config, TrainConfig(steps=1, eval_prompts=8), out=out, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = trained(TASK, tmp_path_factory.mktemp("runs") / "small")
    return write_report(run, tmp_path_factory.mktemp("reports") / "first", n_prompts=40).parent


def test_the_page_has_its_tables_beside_it(folder: Path):
    assert {path.stem for path in (folder / "tables").iterdir()} == TABLES
    assert "<h2" in (folder / "report.html").read_text(encoding="utf-8")


def test_an_untrained_model_is_credited_with_nothing(folder: Path):
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["findings"]
    assert [one["key"] for one in found] == ["risk", "heads", "algorithm"]
    assert not found[0]["claims"]
    assert found[0]["numbers"]["model"]["ci_low"] <= found[0]["numbers"]["model"]["value"]


def test_every_set_of_prompts_has_the_risk_of_every_algorithm(folder: Path):
    risk = pd.read_csv(folder / "tables" / "risk.csv")
    sources = risk.groupby("prompts")["source"].agg(set)
    assert {"model", "zero", "lasso", RIDGE_BOUND, BAYES} <= sources[AS_TRAINED]
    assert all(of_set == sources[AS_TRAINED] for of_set in sources)
    assert (risk.loc[risk["source"] == "zero", "value"] > 0).all()


def test_shifts_change_one_thing_each():
    model = HookedTransformer(preset("chen-1-linear", TASK)[0])
    lengths, tasks = shifted_tasks(model, TASK)
    assert tasks[AS_TRAINED] == TASK
    for name, task in tasks.items():
        changed = [key for key, value in task.config().items() if value != TASK.config()[key]]
        if name == AS_TRAINED:
            assert changed == []
        elif name in lengths:
            assert changed == ["n_context"]
        else:
            assert changed in (["noise"], ["sparsity"], ["covariance", "covariance_exponent"])
    assert len(set(lengths.values())) == len(lengths)


def test_a_model_with_positions_is_not_asked_for_longer_contexts():
    model = HookedTransformer(preset("chen-1-linear", TASK, {"positional_embedding_type": "standard"})[0])
    assert max(shifted_tasks(model, TASK)[0].values()) == TASK.n_context


@pytest.mark.parametrize(
    ("task", "model", "missing"),
    [
        (replace(TASK, layout="interleaved", n_context=4, n_queries=1), {}, {"coordinate_map"}),
        (replace(TASK, noise=0.0), {"n_heads": 1}, {"gap_closed", "pruning"}),
        (replace(TASK, sparsity=4), {"n_layers": 1}, {"pruning"}),
    ],
    ids=["interleaved", "noiseless and one head", "dense and one layer"],
)
def test_what_does_not_apply_is_left_out_and_said(task, model, missing, tmp_path):
    page = write_report(trained(task, tmp_path / "run", **model), tmp_path / "report", n_prompts=30)
    assert {path.stem for path in (page.parent / "tables").iterdir()} == TABLES - missing
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    assert ("No map of heads and coordinates" in markdown) == ("coordinate_map" in missing)
    assert ("No pruning" in markdown) == ("pruning" in missing)

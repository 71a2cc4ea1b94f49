import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from analyses import write_comparison
from interp import HookedTransformerConfig, Run, TrainConfig, train
from tasks import BigramICL, InputError


@pytest.fixture(scope="module")
def shipped():
    return Run.shipped("bietti-full-2x4")


@pytest.fixture(scope="module")
def short(shipped, tmp_path_factory):
    settings = TrainConfig(steps=2, batch_size=4, eval_prompts=8, lr=1e-3)
    return train(shipped.task, shipped.config, settings, out=tmp_path_factory.mktemp("runs") / "short", progress=False)


def test_the_better_run_is_named_with_the_paired_difference(shipped, short, tmp_path):
    page = write_comparison(short, shipped, tmp_path / "out", n_prompts=64)
    (finding,) = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["findings"]
    assert finding["sentence"].startswith("bietti-full-2x4 has the lower loss")
    table = pd.read_csv(page.parent / "tables" / "performance.csv")
    assert set(table["source"]) == {"short", "bietti-full-2x4"}
    assert finding["numbers"]["ci_high"] < 0


def test_a_run_and_its_copy_do_not_differ(short, tmp_path):
    shutil.copytree(short.path, tmp_path / "copy")
    page = write_comparison(short, Run.load(tmp_path / "copy"), tmp_path / "out", n_prompts=16)
    (finding,) = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["findings"]
    assert finding["claims"] is False
    assert finding["numbers"]["loss_of_second_minus_first"] == 0


def test_runs_that_cannot_be_compared_are_refused(short, tmp_path):
    with pytest.raises(InputError, match="given twice"):
        write_comparison(short, short, tmp_path / "out")
    task = BigramICL(seq_len=16)
    config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=16, d_vocab=task.d_vocab, attn_only=True)
    settings = TrainConfig(steps=1, batch_size=2, eval_prompts=4, lr=0.1)
    other = train(task, config, settings, out=tmp_path / "other", progress=False)
    with pytest.raises(InputError, match="differ in n_ctx"):
        write_comparison(short, other, tmp_path / "out")


def test_runs_are_judged_only_where_both_were_trained(shipped, tmp_path):
    """The shipped run was trained on every position; a run trained in context is not blamed for the others."""
    task = replace(shipped.task, scored="in_context")
    settings = TrainConfig(steps=2, batch_size=4, eval_prompts=8, lr=1e-3)
    other = train(task, shipped.config, settings, out=tmp_path / "other", progress=False)
    page = write_comparison(shipped, other, tmp_path / "out", n_prompts=32)
    (finding,) = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["findings"]
    assert "differ in scored (all and in_context)" in finding["sentence"]
    table = pd.read_csv(page.parent / "tables" / "performance.csv")
    assert set(table["segment"]) == {"in_context"}

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analyses import ablate, write_ablation_report
from analyses.report.seeds import REPORT_STREAM
from interp import Run
from tasks import InputError

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "ablations.toml"


@pytest.fixture(scope="module")
def run():
    return Run.shipped("bietti-full-2x4")


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    spec = tmp_path_factory.mktemp("spec") / "two.toml"
    spec.write_text(
        'n_prompts = 64\n[[ablation]]\nname = "all of layer 1"\nsites = ["L1H0", "L1H1", "L1H2", "L1H3"]\n'
        'method = "zero"\nmetric = ["loss", "accuracy"]\nby = "segment"\n'
        '[[ablation]]\nname = "<b>one</b>"\nsites = "L0H2"\nreference_seed = 5\n',
        encoding="utf-8",
    )
    return write_ablation_report(run, spec, tmp_path_factory.mktemp("out") / "report")


def test_the_table_holds_what_the_analysis_gives(run, page):
    table = pd.read_csv(page.parent / "tables" / "ablations.csv")
    prompts = run.task.sample(64, seed=(run.train_config.eval_seed, 0, REPORT_STREAM))
    sites = [[f"L1H{head}" for head in range(4)]]
    direct = ablate(run.model, prompts, sites, method="zero", metric=["loss", "accuracy"], by="segment").frame
    rows = table[table["name"] == "all of layer 1"]
    assert rows["part"].tolist() == direct["segment"].tolist()
    assert rows["delta"].tolist() == pytest.approx(direct["delta"].tolist())
    assert rows["ci_low"].tolist() == pytest.approx(direct["ci_low"].tolist())


def test_losing_a_whole_layer_is_the_largest_effect_and_said_first(page):
    facts = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    (finding,) = facts["findings"]
    assert finding["claims"] is True
    assert "all of layer 1" in finding["sentence"]
    assert facts["settings"]["ablations"]["<b>one</b>"]["reference_seed"] == 5


def test_a_name_is_shown_and_never_read_as_html(page):
    assert "<b>one</b>" not in page.read_text(encoding="utf-8")


def test_a_head_the_model_has_not_leaves_nothing_behind(run, tmp_path):
    spec = tmp_path / "bad.toml"
    spec.write_text('[[ablation]]\nname = "a"\nsites = ["L7H0"]\n', encoding="utf-8")
    with pytest.raises(InputError, match="L7H0 does not exist"):
        write_ablation_report(run, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_published_example_is_valid_for_the_demo_model():
    from analyses.ablation_spec import read_ablation_spec

    assert [one.sites for one in read_ablation_spec(EXAMPLE).ablation] == [("L0H0",), ("L1H0",), ("L0H0", "L1H0")]


def test_an_occupied_folder_is_refused(run, page, tmp_path):
    shutil.copytree(page.parent, tmp_path / "there")
    with pytest.raises(InputError, match="holds a report already"):
        write_ablation_report(run, EXAMPLE, tmp_path / "there")

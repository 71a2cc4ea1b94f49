import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

from analyses import write_report
from analyses.report.page import json_for_html, shown
from interp import HookedTransformerConfig, Run, TrainConfig, train
from tasks import BigramICL, BigramStatistics
from tasks.errors import InputError
from tasks.prompts import Prompts, Seed

VOCAB = ("\n", " ", "<b>", "`", "a", "b", "|")
FILES = {"report.html", "report.json", "report.md", "tables"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    counts = torch.randint(1, 9, (7, 7), generator=torch.Generator().manual_seed(0)).numpy()
    task = BigramICL(BigramStatistics(VOCAB, counts), n_triggers=2, seq_len=16, scored="all")
    return _trained(task, tmp_path_factory.mktemp("runs") / "small", d_vocab=len(VOCAB))


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run, tmp_path_factory.mktemp("reports") / "first", n_prompts=32).parent


def test_the_report_is_a_page_with_its_tables_beside_it(folder: Path):
    assert {path.name for path in folder.iterdir()} == FILES
    linked = set(re.findall(r'href="(tables/[^"]+)"', (folder / "report.html").read_text(encoding="utf-8")))
    assert linked == {f"tables/{path.name}" for path in (folder / "tables").iterdir()}
    for path in (folder / "tables").iterdir():
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        assert rows
        assert {len(row) for row in rows} == {len(header)}


def test_it_leads_with_three_sentences_and_says_that_an_untrained_model_learned_nothing(folder: Path):
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["findings"]
    assert [one["key"] for one in found] == ["copying", "heads", "memories"]
    assert [one["claims"] for one in found] == [False, False, False]
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\d\. (Nothing was found)", markdown, flags=re.MULTILINE) == ["Nothing was found"] * 3


def test_the_json_holds_what_it_takes_to_measure_again(run: Run, folder: Path):
    settings = json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"]
    assert settings["report"]["n_prompts"] == 32
    seeds = settings["report"]["prompts_seed"]
    again = run.task.sample(32, seed=tuple(seeds))
    evaluated = run.task.sample(32, seed=run.train_config.eval_seed)
    assert not torch.equal(again.inputs, evaluated.inputs)
    assert settings["seeds"]["init_seed"] == run.train_config.init_seed
    assert set(settings["versions"]) >= {"icl-interp", "torch", "plotly", "circuitsvis"}


def test_the_same_seed_gives_the_same_numbers(run: Run, folder: Path, tmp_path: Path):
    again = write_report(run, tmp_path / "again", n_prompts=32).parent
    for name in ("report.json", "report.md", *(f"tables/{path.name}" for path in (folder / "tables").iterdir())):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_that_holds_anything_is_refused_and_left_as_it_was(run: Run, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="taken is not empty: choose another folder"):
        write_report(run, taken)
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_earlier_report_is_not_written_over(run: Run, folder: Path):
    before = (folder / "report.html").stat().st_mtime_ns
    with pytest.raises(InputError, match="holds a report already"):
        write_report(run, folder)
    assert (folder / "report.html").stat().st_mtime_ns == before


def test_a_file_in_the_way_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        write_report(run, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(run, tmp_path / "file" / "below", n_prompts=2)


def test_an_empty_folder_is_filled(run: Run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert write_report(run, tmp_path / "empty", n_prompts=8) == tmp_path / "empty" / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


@pytest.mark.parametrize(("wrong", "message"), [({"seed": -1}, "seed = -1"), ({"n_prompts": 1}, "n_prompts = 1")])
def test_wrong_numbers_are_refused_before_anything_is_measured(
    run: Run, tmp_path: Path, wrong: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        write_report(run, tmp_path / "new", **wrong)


def test_the_page_allows_scripts_by_their_hash_alone(folder: Path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/=]{44}'", source) for source in rules["script-src"].split())
    assert len(rules["script-src"].split()) == 3
    assert len((folder / "report.html").read_bytes()) < 8_000_000


def test_tokens_are_escaped_in_markdown(folder: Path):
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"(`+) .*? \1|```json.*?```", "", markdown, flags=re.DOTALL)
    assert "<b>" in markdown
    assert "<b>" not in outside_code


def test_json_for_html_is_json_and_no_html():
    hostile = {"</script>": ["<!--", "&amp;", "\u2028\u2029"]}
    written = json_for_html(hostile)
    assert json.loads(written) == hostile
    assert not set("<>&\u2028\u2029") & set(written)


def test_cells_without_a_value_are_shown_as_such():
    assert shown(float("nan")) == "–"
    assert shown("a\nb") == "a↵b"


def test_a_task_of_ones_own_gets_a_generic_report(tmp_path: Path):
    run = _trained(Parity(), tmp_path / "run", d_vocab=2)
    folder = write_report(run, tmp_path / "report", n_prompts=16).parent
    assert {path.name for path in folder.iterdir()} == FILES
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert facts["findings"] == []
    assert set(facts["tables"]) == {"model", "ablation_zero", "ablation_mean", "ablation_mlp", "history"}


def test_a_generic_report_speaks_of_nothing_that_its_task_has_not(tmp_path: Path):
    run = _trained(Parity(), tmp_path / "run", d_vocab=2)
    page = write_report(run, tmp_path / "report", n_prompts=16)
    html = page.read_text(encoding="utf-8")
    assert 'class="token right"' in html
    assert "in context</span>" not in html
    assert 'href="#found"' not in html
    assert set(pd.read_csv(page.parent / "tables" / "model.csv")["metric"]) == {"loss", "accuracy"}


@dataclass(frozen=True)
class Parity:
    """Random bits, each position judged by the parity so far: a task that only follows the protocol."""

    name: ClassVar[str] = "parity"
    n_ctx: int = 8
    d_vocab: int | None = 2
    d_in: ClassVar[None] = None

    def at_step(self, step: int) -> "Parity":  # noqa: ARG002
        return self

    def sample(self, n: int, *, seed: Seed) -> Prompts:
        mixed = sum(part * 31**k for k, part in enumerate(seed)) if isinstance(seed, tuple) else seed
        bits = torch.randint(2, (n, self.n_ctx), generator=torch.Generator().manual_seed(mixed))
        return Prompts.from_tensors(bits, targets=bits.cumsum(dim=1) % 2, seed=seed)

    def counterfactual(self, prompts: Prompts, *, seed: Seed) -> Prompts:
        return self.sample(len(prompts), seed=seed)

    def config(self) -> dict[str, Any]:
        return {"n_ctx": self.n_ctx, "d_vocab": self.d_vocab}

    def files(self) -> Mapping[str, bytes]:
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> "Parity":  # noqa: ARG003
        return cls(**config)


def _trained(task: Any, out: Path, d_vocab: int) -> Run:
    config = HookedTransformerConfig(n_layers=2, d_model=16, n_ctx=task.n_ctx, d_vocab=d_vocab)
    return train(task, config, TrainConfig(steps=1, eval_prompts=8), out=out, progress=False)

"""Nothing of ours reads or writes pickles: the sources name none, and a demo that is watched calls none."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from interp import cli

PACKAGES = [Path(__file__).parents[2] / name for name in ("interp", "tasks", "analyses")]
FILES = [path for package in PACKAGES for path in package.rglob("*.py")]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "np.load", "np.save", "numpy.load", "numpy.save"}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Attribute) and (
            ast.unparse(node) in FORBIDDEN_CALLS or node.attr in ("to_pickle", "read_pickle")
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source", ["import pickle", "from joblib import dump", "torch.save(x, y)", "frame.to_pickle(p)"]
)
def test_the_search_finds_what_it_looks_for(source):
    assert len(offences(source)) == 1


def test_no_file_of_ours_uses_pickle():
    assert len(FILES) > 20
    assert {path.name: found for path in FILES if (found := offences(path.read_text(encoding="utf-8")))} == {}


WATCHED = [(pickle, "load"), (pickle, "loads"), (pickle, "dump"), (torch, "load"), (torch, "save")]


@pytest.fixture
def watched(monkeypatch) -> list[str]:
    """The calls made, from now on, of what reads or writes pickles in files."""
    calls: list[str] = []

    def watch(module, name):
        real = getattr(module, name)

        def call(*arguments, **options):
            calls.append(f"{module.__name__}.{name}")
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in WATCHED:
        watch(module, name)
    return calls


def test_the_watch_sees_what_it_watches_for(watched, tmp_path):
    with (tmp_path / "file").open("wb") as file:
        pickle.dump([1], file)
    torch.save(torch.ones(1), tmp_path / "tensor")
    torch.load(tmp_path / "tensor", weights_only=True)
    assert {"pickle.dump", "torch.save", "torch.load"} <= set(watched)


def test_training_resuming_and_a_report_touch_no_pickle(watched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--set", "d_model=8", "--set", "seq_len=12", "--set", "batch_size=4", "--set", "eval_prompts=8"]
    for _ in range(2):
        assert cli.run(["train", "bigram", *small, "--steps", "4", "--out", "run"]) == 0
        (tmp_path / "run" / "checkpoints" / "step-000004.safetensors").unlink()
    assert cli.run(["train", "bigram", *small, "--steps", "4", "--out", "run"]) == 0
    assert cli.run(["report", "run", "--prompts", "16"]) == 0
    assert watched == []


@pytest.mark.slow
def test_the_whole_demo_touches_no_pickle(watched, tmp_path):
    assert cli.run(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert (tmp_path / "demo" / "report" / "report.html").exists()
    assert watched == []

"""The Python examples of the README and of the docs run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


DOCS = README.parent / "docs"


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readme_examples_run(tmp_path, monkeypatch, capsys):
    first, second, third = examples(README)
    assert "steps=300" in first
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for example in (first.replace("steps=300", "steps=60"), second, third):
        exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "L1H0" in printed
    assert "W_K2" in printed
    assert "lasso" in printed
    assert "effective_heads" in printed
    assert (tmp_path / "runs" / "first" / "config.json").is_file()


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not page.relative_to(DOCS).parts[0].startswith("_")]


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for example in examples(page):
        exec(compile(example, str(page), "exec"), names)


@pytest.mark.parametrize("command", ["demo", "train", "report", "ablate", "sweep", "reproduce"])
def test_the_readme_shows_commands_that_exist(command):
    from typer.main import get_command

    from interp.cli import app

    assert f"interp {command}" in README.read_text(encoding="utf-8")
    assert command in get_command(app).commands

"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "steps=300" in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("steps=300", "steps=30"), str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "L1H0" in printed
    assert "W_K2" in printed
    assert (tmp_path / "runs" / "first" / "config.json").is_file()


@pytest.mark.parametrize("command", ["demo", "train", "report"])
def test_the_readme_shows_commands_that_exist(command):
    from typer.main import get_command

    from interp.cli import app

    assert f"interp {command}" in README.read_text(encoding="utf-8")
    assert command in get_command(app).commands

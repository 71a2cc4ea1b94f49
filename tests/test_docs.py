"""The docs name everything that is public, and their list of errors is the source's."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def error_messages():
    spec = importlib.util.spec_from_file_location("error_messages", ROOT / "scripts" / "error_messages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", ["tasks", "interp", "analyses"])
def test_every_public_name_has_a_page_in_the_reference(package):
    pages = [path.read_text(encoding="utf-8").split() for path in (ROOT / "docs" / "api").glob("*.md")]
    listed = {word.rpartition(".")[2] for words in pages for word in words}
    missing = [name for name in importlib.import_module(package).__all__ if name not in listed]
    assert not missing


def test_what_the_reference_lists_exists():
    for path in (ROOT / "docs" / "api").glob("*.md"):
        for word in path.read_text(encoding="utf-8").split():
            owner, _, name = word.rpartition(".")
            if owner.partition(".")[0] in ("tasks", "interp", "analyses"):
                assert hasattr(importlib.import_module(owner), name), word


def test_every_refusal_is_one_line_that_ends_where_its_remedy_does():
    found = list(error_messages().refusals())
    assert len(found) > 300
    assert [one.message for one in found if "\n" in one.message or one.message.endswith(".")] == []


def test_a_message_shows_its_values_in_braces(tmp_path):
    (tmp_path / "tasks").mkdir()
    source = '"""About."""\n\n\ndef f(n):\n    raise InputError(f"n = {n!r}: give a number")\n'
    (tmp_path / "tasks" / "one.py").write_text(source)
    (found,) = error_messages().refusals(tmp_path)
    assert found == ("tasks.one", "About.", "n = {n}: give a number")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
    assert any(cell["cell_type"] == "markdown" for cell in cells)

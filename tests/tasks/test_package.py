"""The package's face: names are imported when used, and every name there is leads somewhere."""

import subprocess
import sys

import pytest

import tasks
from tasks.bigram import BigramICL


def test_every_public_name_resolves():
    assert all(getattr(tasks, name) is not None for name in tasks.__all__)


def test_the_table_of_names_is_the_public_face():
    assert set(tasks.__all__) == {"TASKS", *tasks._MODULE_OF}


def test_every_task_is_found_by_its_own_name():
    assert tasks.TASKS["bigram"] is BigramICL
    assert all(tasks.TASKS[name].name == name for name in tasks.TASKS)


def test_an_unknown_name_is_missing():
    with pytest.raises(AttributeError, match="no attribute 'BigramICK'"):
        tasks.BigramICK  # noqa: B018
    with pytest.raises(KeyError):
        tasks.TASKS["trigram"]


def test_importing_the_package_imports_no_torch():
    code = "import sys, tasks; list(tasks.TASKS); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

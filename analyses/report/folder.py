"""A report's folder: there whole or not at all, and never written over."""

import json
import os
import shutil
from pathlib import Path

from analyses.report.contents import Report
from analyses.report.markdown import markdown_of
from analyses.report.page import page_of
from interp.atomic_files import write_atomically
from tasks.errors import InputError

PAGE = "report.html"
TABLES = "tables"


def refuse_occupied(folder: Path) -> None:
    """Raise InputError if something is already there, an earlier report included."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "holds a report already" if (folder / PAGE).exists() else "is not empty"
        what = what if folder.is_dir() else "is no folder"
        raise InputError(f"{folder} {what}: choose another folder for the report, or remove it first")


def write_folder(folder: Path, report: Report) -> None:
    """Build every file in memory, write them to a folder beside the wanted one, and rename it.

    Raises:
        InputError: the place is taken, or cannot be written.
    """
    files = files_of(report)
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.unfinished")
    try:
        beside.mkdir(parents=True)
        for name, content in files.items():
            (beside / name).parent.mkdir(exist_ok=True)
            write_atomically(beside / name, content)
        refuse_occupied(folder)
        if folder.is_dir():
            folder.rmdir()  # empty: not every system renames onto an existing folder
        beside.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another folder") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def files_of(report: Report) -> dict[str, bytes]:
    """Every file of a report, by its path in the folder."""
    tables = report.tables
    names = [table.name for table in tables]
    assert len(set(names)) == len(names), f"two tables share a name: {names}"
    about = {table.name: {"title": table.title, "settings": table.settings, "notes": table.notes} for table in tables}
    facts = {
        "title": report.title,
        "findings": [
            {"key": one.key, "claims": one.claims, "sentence": one.sentence, "numbers": one.numbers}
            for one in report.findings
        ],
        "settings": report.settings,
        "tables": about,
    }
    files = {f"{TABLES}/{table.name}.csv": table.frame.to_csv(index=False).encode() for table in tables}
    files["report.json"] = (json.dumps(facts, indent=2, default=_plain) + "\n").encode()
    files["report.md"] = markdown_of(report).encode()
    files[PAGE] = page_of(report).encode()
    return files


def _plain(value: object) -> object:
    """Numbers of numpy's as Python's; anything else in words."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)

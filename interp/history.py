"""A run's history.csv: one row per logged step."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from interp.atomic_files import write_atomically
from tasks.errors import InputError

HISTORY_FILE = "history.csv"
Row = Mapping[str, int | float]
_WHOLE = ("step", "tokens")


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write the whole history; an empty cell is a figure that does not exist, such as step 0's training loss."""
    write_atomically(folder / HISTORY_FILE, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


def read_history(folder: Path) -> pd.DataFrame:
    """The history as it was written, digit for digit.

    Raises:
        InputError: the file is missing or is no table of numbers with a column of steps.
    """
    return pd.DataFrame(read_rows(folder))


def read_rows(folder: Path) -> list[Row]:
    """The rows of the history, as ``write_history`` was given them.

    Raises:
        InputError: the file is missing or is no table of numbers with a column of steps.
    """
    path = folder / HISTORY_FILE
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
        columns, cells = lines[0], lines[1:]
        rows: list[Row] = [
            {name: _number(name, cell) for name, cell in zip(columns, line, strict=True)} for line in cells
        ]
    except OSError:
        raise InputError(f"{path} is missing: restore it, or train again in another folder") from None
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} is no table of numbers ({error}): restore it") from None
    if not rows or "step" not in columns:
        raise InputError(f"{path} has no rows of steps: restore it")
    return rows


def _number(column: str, cell: str) -> int | float:
    if column in _WHOLE:
        return int(cell)
    return float(cell) if cell else math.nan

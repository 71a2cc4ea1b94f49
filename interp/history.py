"""A run's history.csv: one row per logged step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp.atomic_files import write_atomically
from tasks.errors import InputError

HISTORY_FILE = "history.csv"


def write_history(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the whole history; an empty cell is a figure that does not exist, such as step 0's training loss."""
    write_atomically(folder / HISTORY_FILE, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


def read_rows(folder: Path, last: int) -> list[dict[str, Any]]:
    """The history's rows up to step ``last``: later ones are of steps that a crash undid."""
    frame = read_history(folder)
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    return [row for row in rows if row["step"] <= last]


def read_history(folder: Path) -> pd.DataFrame:
    """The history as it was written, digit for digit.

    Raises:
        InputError: the file is missing or is no table with a column of steps.
    """
    path = folder / HISTORY_FILE
    try:
        frame = pd.read_csv(path, float_precision="round_trip", encoding="utf-8")
    except OSError:
        raise InputError(f"{path} is missing: restore it, or train again in another folder") from None
    except ValueError as error:  # pandas' parser and decoder both raise kinds of it
        raise InputError(f"{path} is no CSV table ({str(error).strip()}): restore it") from None
    if "step" not in frame or not pd.api.types.is_integer_dtype(frame["step"]):
        raise InputError(f"{path} has no column of whole steps: restore it")
    return frame

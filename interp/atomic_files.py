"""Files that are either there in full or not at all, whenever the power goes."""

import os
from pathlib import Path

_UNFINISHED = ".unfinished"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new one, never a part.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _flush_folder(path.parent)


def is_unfinished(path: Path) -> bool:
    """Whether this is what a crash in the middle of ``write_atomically`` leaves behind."""
    return path.name.endswith(_UNFINISHED)


def _flush_folder(folder: Path) -> None:
    # The rename itself lasts only once the folder is on the disk. Windows cannot open a folder, and need not.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are either there in full or not at all, whenever the power goes."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from tasks.errors import InputError

_UNFINISHED = ".unfinished"
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new one, never a part.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed.

    Raises:
        InputError: the disk is full, the place may not be written to, or the like. The path then holds what it held.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)  # a full disk needs the room
        raise _unwritable(path, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def is_unfinished(path: Path) -> bool:
    """Whether this is what a crash in the middle of ``write_atomically`` leaves behind."""
    return path.name.endswith(_UNFINISHED)


def remove_unfinished(folder: Path) -> None:
    """Take away what crashes have left in a folder; only for one who knows that nobody else is writing there."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_unfinished(path):
                path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror or error}): make room or choose another folder, then say the same "
        "again"
    )


def _flush_folder(folder: Path) -> None:
    # The rename itself lasts only once the folder is on the disk. Windows cannot open a folder, and need not.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:  # some network file systems know no flushing of folders
            raise
    finally:
        os.close(descriptor)

"""One writer per run folder: a lock that the operating system frees when its holder ends, however it ends."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tasks.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"


class RunWarning(UserWarning):
    """Something about a run folder that training goes on in spite of, and that its owner should know."""


class LockedError(InputError):
    """Somebody else writes the folder just now."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only one who writes this folder, for a with-block.

    The lock is flock's on the file ``.lock``: a process that is killed loses it at once, and the next one takes it.
    On a file system or operating system without such locks a RunWarning says so, and the block runs unprotected.

    Raises:
        LockedError: another process, or another thread, holds the lock.
        InputError: the file cannot be made.
    """
    file = _locked(folder)
    try:
        yield
    finally:
        if file is not None:
            with file:  # unlinked while still held, so that whoever waits for the old file sees that it is gone
                (folder / LOCK_FILE).unlink(missing_ok=True)


def _locked(folder: Path) -> TextIO | None:
    """The lock's file, held; None where there are no locks."""
    if fcntl is None:
        return _without_locks(folder, f"{platform.system()} has no flock")
    while True:
        try:
            file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{folder / LOCK_FILE} cannot be written ({error.strerror}): make room or choose another folder"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise LockedError(
                    f"{folder} is being trained by another process ({_holder(file)}): wait until it ends, or choose "
                    "another folder"
                ) from None
        except OSError as error:
            file.close()
            return _without_locks(folder, f"{error.strerror}")
        if _is_there(file, folder):
            with suppress(OSError):  # a full disk; who holds the lock is only a courtesy
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
            return file
        file.close()  # its holder took it away between our opening and our locking it


def _without_locks(folder: Path, why: str) -> None:
    message = f"{folder} cannot be locked ({why}): see to it that no second training writes there"
    warnings.warn(message, RunWarning, stacklevel=2)


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(200).strip() or "it has just begun"


def _is_there(file: TextIO, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
    except FileNotFoundError:
        return False

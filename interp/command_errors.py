"""How a command ends: exit 0, 2 with one line if the input was wrong, 1 with a saved traceback if we were."""

import errno
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import typer

from tasks.errors import InputError

DONE, OUR_ERROR, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

LONGEST_WORD = 240
"""Characters without a space that a message repeats: room for a path, not for whatever was pasted."""

# Typer raises its usage errors as kinds of click's ClickException, which it keeps in a private module.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command; say in one line on standard error why it failed, if it did; and return its exit code."""
    try:
        return command() or DONE
    except InputError as error:
        _say(f"error: {error}")
        return WRONG_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except _UsageError as error:
        _say(f"error: {error.format_message()}")  # pyright: ignore[reportAttributeAccessIssue]
        return WRONG_INPUT
    except Exception as error:  # the last stop before the user
        if _means_too_large(error):
            _say("error: there is not enough memory for these sizes: make the batch, the context or the model smaller")
            return WRONG_INPUT
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _say(f"error: the name {str(error.filename)[:40]}… is too long for this file system: choose a shorter one")
            return WRONG_INPUT
        path = save_traceback(error)
        _say(f"internal error: {type(error).__name__}: {error} (this is a bug; the traceback is in {path})")
        return OUR_ERROR


def _means_too_large(error: Exception) -> bool:
    """Whether the sizes exceed the machine's memory, or even its integers: PyTorch and numpy have ways of their own."""
    words = ("allocate", "overflow", "array is too big", "maximum allowed dimension")
    own_way = isinstance(error, RuntimeError | TypeError | ValueError)
    return isinstance(error, MemoryError | OverflowError) or (
        own_way and any(word in str(error).lower() for word in words)
    )


def save_traceback(error: Exception) -> Path:
    """Write an error's traceback to a new file in the current folder, or in a temporary one if need be."""
    name = f"interp-error-{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
    text = "".join(traceback.format_exception(error))
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            continue
        return folder / name
    return Path("no file: neither the current nor the temporary folder can be written")


def _say(message: str) -> None:
    words = [word if len(word) <= LONGEST_WORD else word[: LONGEST_WORD // 2] + "…" for word in message.split()]
    sys.stderr.write(" ".join(words) + "\n")

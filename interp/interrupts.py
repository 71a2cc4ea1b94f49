"""Ctrl-C and the polite kill, taken at a moment of our choosing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what ``kill``, a shutdown or a cluster's scheduler sends first."""


class Interrupted(KeyboardInterrupt):
    """Work that was asked to end and has ended at a point from which it can go on.

    Attributes:
        signal_number: of the signal that asked.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 and the signal's number, 130 for Ctrl-C and 143 for SIGTERM."""
        return 128 + self.signal_number


class InterruptNote(threading.Event):
    """Set by the first signal, whose number it keeps."""

    signal_number: int = signal.SIGINT


@contextmanager
def deferred_interrupt() -> Iterator[InterruptNote]:
    """Within the block Ctrl-C or SIGTERM sets the event, so that a step in progress can end; a second one raises.

    A signal that the process was started to ignore (by ``nohup``, say) stays ignored. Outside the main thread, where
    Python delivers no signals, the event is never set.
    """
    asked = InterruptNote()

    def note(number: int, _frame: object) -> None:
        if asked.is_set():
            raise Interrupted("stopped at once: the same call continues from the last checkpoint", number)
        asked.signal_number = number
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

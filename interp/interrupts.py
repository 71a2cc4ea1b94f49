"""Ctrl-C, taken at a moment of our choosing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Within the block Ctrl-C sets the event, so that a step in progress can end; a second one raises at once.

    Outside the main thread, where Python delivers no signals, the event is never set.
    """
    asked = threading.Event()

    def note(*_) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)

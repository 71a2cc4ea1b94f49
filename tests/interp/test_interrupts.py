"""Ctrl-C at a moment of our choosing."""

import signal
import threading

import pytest

from interp.interrupts import deferred_interrupt


def test_the_first_ctrl_c_is_noted_and_the_second_raises():
    with deferred_interrupt() as interrupted:
        assert not interrupted.is_set()
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_ctrl_c_is_what_it_was():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_train_too():
    seen = []

    def work():
        with deferred_interrupt() as interrupted:
            seen.append(interrupted.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]

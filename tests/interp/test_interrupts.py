"""Ctrl-C and SIGTERM at a moment of our choosing."""

import signal
import threading

import pytest

from interp.interrupts import SIGNALS, Interrupted, deferred_interrupt


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_raises(number, exit_code):
    with deferred_interrupt() as interrupted:
        assert not interrupted.is_set()
        signal.raise_signal(number)
        assert interrupted.is_set()
        assert interrupted.signal_number == number
        with pytest.raises(Interrupted, match="stopped at once") as error:
            signal.raise_signal(number)
        assert error.value.exit_code == exit_code


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not interrupted.is_set()
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_afterwards_both_signals_are_what_they_were():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_may_train_too():
    seen = []

    def work():
        with deferred_interrupt() as interrupted:
            seen.append(interrupted.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]

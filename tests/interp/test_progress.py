"""Progress: a line now and then where there is no terminal, and the last step always."""

import pytest

from interp import progress
from interp.progress import counted_progress, training_progress

ROW = {"step": 5, "loss": 1.25, "accuracy": 0.5, "lr": 0.1}


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end(clock, capsys):
    with training_progress(9, 0) as show:
        show(1, ROW)
        clock[0] = 31.0
        show(2, None)
        show(5, ROW)
        show(6, ROW)
        show(9, ROW)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "step 5/9  loss 1.250  accuracy 0.500\nstep 9/9  loss 1.250  accuracy 0.500\n"


def test_a_terminal_gets_a_bar_with_the_figures(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with training_progress(9, 3) as show:
        show(4, None)
        show(5, ROW)
    bar = capsys.readouterr().err
    assert "5/9" in bar
    assert "loss 1.250" in bar


def test_switched_off_it_is_silent(clock, capsys):
    with training_progress(9, 0, enabled=False) as show:
        clock[0] = 31.0
        show(9, ROW)
    assert capsys.readouterr() == ("", "")


def test_what_is_counted_says_now_and_then_how_far_it_is(clock, capsys):
    with counted_progress("edges", 9) as show:
        show(1)
        clock[0] = 31.0
        show(4)
        show(5)
    with counted_progress("edges", 9, enabled=False) as show:
        clock[0] = 99.0
        show(4)
    assert capsys.readouterr() == ("", "edges 4/9\n")


def test_what_is_counted_is_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with counted_progress("edges", 9) as show:
        show(4)
    assert "4/9" in capsys.readouterr().err

"""What a person sees while a model trains, or is searched: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from interp.history import Row

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_A_BAR = 2.0

Show = Callable[[int, Row | None], None]
"""Called after every step with its number and, if the step was logged, its row of the history."""


@contextmanager
def training_progress(total: int, done: int, enabled: bool = True) -> Iterator[Show]:
    """How far training is, with the time left and the last logged figures, on standard error."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda *_: None
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("training", total=total, completed=done, figures="")

            def move(step: int, row: Row | None) -> None:
                if row is None:
                    bar.update(task, completed=step)
                else:
                    bar.update(task, completed=step, figures=_figures(row))

            yield move
    else:
        yield _occasional_lines(console, total)


def say_line(line: str, enabled: bool = True) -> None:
    """A line for people, on standard error: which of several trainings begins, say."""
    Console(stderr=True, quiet=not enabled).print(line, soft_wrap=True, highlight=False)


@contextmanager
def counted_progress(what: str, total: int, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """How many of ``total`` equal steps are done, on standard error: a bar that goes when all is done, or lines."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda _done: None
    elif console.is_terminal:
        with _bar(console, transient=True) as bar:
            task = bar.add_task(what, total=total, figures="")
            yield lambda done: bar.update(task, completed=done)
    else:
        last = time.monotonic()

        def say(done: int) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                console.print(f"{what} {done}/{total}", soft_wrap=True, highlight=False)

        yield say


@contextmanager
def patient_progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Counts steps, and shows how many are done only in a terminal and only if the work takes long.

    >>> with patient_progress("passes", 2) as step:
    ...     step()
    """
    start, done = time.monotonic(), 0
    tell: Callable[[int], None] | None = None

    def step() -> None:
        nonlocal done, tell
        done += 1
        if tell is None and time.monotonic() - start > SECONDS_BEFORE_A_BAR:
            try:
                tell = shown.enter_context(counted_progress(what, total, Console(stderr=True).is_terminal))
            except LiveError:  # someone else's bar is there already, and says more
                tell = _silent
        if tell is not None:
            tell(done)

    with ExitStack() as shown:
        yield step


def _silent(_done: int) -> None:
    pass


def _bar(console: Console, *, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=transient,
    )


def _occasional_lines(console: Console, total: int) -> Show:
    last = time.monotonic()

    def say(step: int, row: Row | None) -> None:
        nonlocal last
        if row is not None and (time.monotonic() - last > SECONDS_BETWEEN_LINES or step == total):
            last = time.monotonic()
            console.print(f"step {step}/{total}  {_figures(row)}", soft_wrap=True, highlight=False)

    return say


def _figures(row: Row) -> str:
    shown = {name: value for name, value in row.items() if name == "loss" or name.startswith("accuracy")}
    return "  ".join(f"{name} {value:.3f}" for name, value in shown.items())

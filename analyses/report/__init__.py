"""A run's report: measured anew, led by what was found, written as one page with its tables beside it."""

from collections.abc import Callable
from pathlib import Path

from analyses.report.bigram_report import measure_bigram
from analyses.report.bigram_sections import BIGRAM_METHOD, bigram_sections
from analyses.report.contents import Report
from analyses.report.folder import PAGE, refuse_occupied, write_folder
from analyses.report.generic_report import GENERIC_METHOD, generic_sections
from analyses.report.provenance import facts_of, settings_of
from analyses.report.regression_report import measure_regression
from analyses.report.regression_sections import REGRESSION_METHOD, regression_sections
from analyses.report.seeds import REPORT_STREAM, check_n_prompts
from interp.run import Run
from tasks.bigram import BigramICL
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.sparse_regression import SparseRegression


def write_report(run: Run, out: str | Path, *, seed: int = 0, n_prompts: int = 512) -> Path:
    """Take a run's model apart and write down what was found; returns the page.

    The folder gets report.html (one file that opens from the disk, without a network), report.md, report.json
    (findings, settings, seeds, versions) and tables/*.csv. It appears whole or not at all: everything is built in
    memory, written to a folder beside it and renamed. Nothing is ever written over: a folder that holds anything is
    refused, an earlier report of the same run too.

    Args:
        out: a folder that does not exist yet, or an empty one.
        seed: draws the prompts (with the run's eval_seed, and never those of its training or evaluation) and the
            resamples of the intervals.
        n_prompts: how many prompts are drawn.

    Raises:
        InputError: the folder is not empty or cannot be written, a task without a report, or a run that cannot be
            read.
    """
    folder = Path(out)
    refuse_occupied(folder)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed = {seed!r}: expected a whole number of at least 0")
    check_n_prompts(n_prompts)
    prompts = run.task.sample(n_prompts, seed=(run.train_config.eval_seed, seed, REPORT_STREAM))
    report = _REPORTS.get(run.task.name, _generic)(run, prompts, seed)
    write_folder(folder, report)
    return folder / PAGE


def _bigram(run: Run, prompts: Prompts, seed: int) -> Report:
    task = run.task
    if not isinstance(task, BigramICL):
        raise InputError(f"the task calls itself 'bigram' but is a {type(task).__name__}: give it a name of its own")
    measured = measure_bigram(run.model, task, prompts, seed=seed)
    sections = bigram_sections(measured, run.model, run.history)
    return Report(
        "In-context bigrams: what the model learned",
        facts_of(run, prompts),
        measured.findings,
        sections,
        settings_of(run, prompts, seed),
        method=BIGRAM_METHOD,
    )


def _regression(run: Run, prompts: Prompts, seed: int) -> Report:
    task = run.task
    if not isinstance(task, SparseRegression):
        raise InputError(
            f"the task calls itself 'sparse-regression' but is a {type(task).__name__}: give it a name of its own"
        )
    measured = measure_regression(run.model, task, prompts, seed, run.train_config.eval_seed)
    return Report(
        "Sparse regression in context: what the model learned",
        facts_of(run, prompts),
        measured.findings,
        regression_sections(measured, run.history),
        settings_of(run, prompts, seed),
        method=REGRESSION_METHOD,
    )


def _generic(run: Run, prompts: Prompts, seed: int) -> Report:
    sections = generic_sections(run.model, prompts, run.history, seed=seed)
    title = f"{run.task.name}: what the model's parts do"
    return Report(title, facts_of(run, prompts), (), sections, settings_of(run, prompts, seed), method=GENERIC_METHOD)


_REPORTS: dict[str, Callable[[Run, Prompts, int], Report]] = {"bigram": _bigram, "sparse-regression": _regression}
"""The report of each task by name; any other task gets the generic one."""

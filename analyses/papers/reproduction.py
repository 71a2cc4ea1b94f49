"""``interp reproduce``: every claim of a paper at one scale, into a folder from which it can go on."""

import importlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from analyses.papers.claims import Claim, Examined, Scale, examine
from analyses.papers.jobs import describe
from analyses.papers.paper_markdown import markdown_files
from analyses.papers.paper_page import page_files
from analyses.papers.verdicts import CONFIDENCE, Judgement
from analyses.papers.workers import do_jobs, one_thread
from interp.atomic_files import is_unfinished, write_atomically
from tasks.errors import InputError

RESULTS_FILE = "results.json"
RUNS_FOLDER = "runs"
CLAIM_FILE = "reproduction.json"
_PACKAGES = ("icl-interp", "torch", "numpy", "scipy", "transformer-lens", "scikit-learn", "plotly")


@dataclass(frozen=True)
class Paper:
    """A paper whose claims can be reproduced.

    Attributes:
        key: its name on the command line.
        title, citation: for the page.
        claims: one function for each claim, in the order of the page.
        about: paragraphs on the setting that all claims share; ``quick`` and ``full`` said in numbers.
    """

    key: str
    title: str
    citation: str
    claims: tuple[Callable[[Scale], Claim], ...]
    about: Callable[[Scale], Sequence[str]]


PAPERS: Mapping[str, str] = {"bietti2023": "analyses.papers.bietti2023", "chen2024": "analyses.papers.chen2024"}
"""Papers by key, and the package that holds each as ``PAPER``."""


def reproduce(
    paper: str, *, scale: Scale = "quick", out: str | Path, workers: int | None = None, progress: bool = True
) -> Path:
    """Measure every claim of a paper and write results.json, tables, figures and a page; returns the page's path.

    Called again with the same folder it goes on where it stopped; what was computed is not computed again. Same
    versions, same machine, same numbers, whatever the number of workers.

    Args:
        paper: a key of ``PAPERS``.
        scale: "quick" (minutes on two cores) or "full" (hours).
        out: a new or empty folder, or one of the same paper and scale.
        workers: processes of one thread each; None for as many as this machine has cores.
        progress: whether to say on standard error how far it is.

    Raises:
        InputError: an unknown paper or scale, fewer than one worker, or a folder that holds something else.
    """
    chosen = find_paper(paper)
    if scale not in get_args(Scale):
        raise InputError(f"scale = {scale!r} is unknown: choose from {', '.join(get_args(Scale))}")
    claims = [claim(scale) for claim in chosen.claims]
    folder = Path(out)
    _claim_folder(folder, {"paper": paper, "scale": scale})
    runs = folder / RUNS_FOLDER
    do_jobs(
        [job for claim in claims for job in claim.jobs],
        runs,
        workers=_cores() if workers is None else workers,
        progress=progress,
    )
    with one_thread():
        findings = list(_examined(claims, runs, Console(stderr=True, quiet=not progress)))
    results = results_of(chosen, scale, findings)
    about = chosen.about(scale)
    files = page_files(chosen.title, chosen.citation, about, findings, results)
    files |= markdown_files(chosen.title, chosen.citation, about, findings, results)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomically(folder / name, content)
    write_atomically(folder / RESULTS_FILE, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return folder / "report.html"


def _examined(claims: Sequence[Claim], runs: Path, console: Console) -> Iterator[Examined]:
    for number, claim in enumerate(claims, start=1):
        console.print(f"measuring {claim.name} ({number} of {len(claims)} claims)", soft_wrap=True, highlight=False)
        yield examine(claim, runs)


def find_paper(key: str) -> Paper:
    """The paper of that key.

    Raises:
        InputError: there is none.
    """
    if key not in PAPERS:
        raise InputError(f"there is no paper {key!r} to reproduce: choose from {', '.join(PAPERS)}")
    return importlib.import_module(PAPERS[key]).PAPER


def results_of(paper: Paper, scale: Scale, findings: Sequence[Examined]) -> dict[str, Any]:
    """What results.json holds.

    A claim's value, interval and criterion are those of the criterion that decides it (see ``verdicts.deciding``);
    ``criteria`` holds all of them, and ``control`` the same for the negative control.
    """
    return {
        "paper": paper.key,
        "scale": scale,
        "command": f"interp reproduce {paper.key} --scale {scale} --out DIR",
        "confidence": CONFIDENCE,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": _machine(),
        "claims": [_row(finding) for finding in findings],
        "runs": [describe(job) for job in {job.key: job for one in findings for job in one.claim.jobs}.values()],
    }


def _row(finding: Examined) -> dict[str, Any]:
    claim = finding.claim
    row = {"name": claim.name, **_judged(finding.deciding), "verdict": finding.verdict}
    control = {"what": claim.control, "passed": finding.control_passed, **_judged(finding.null)}
    return row | {
        "control": control,
        "sentence": claim.sentence,
        "source": claim.source,
        "criteria": [_judged(one) for one in finding.judgements],
        "control_criteria": [_judged(one) for one in finding.null_judgements],
    }


def _judged(one: Judgement) -> dict[str, Any]:
    return {
        "criterion": one.criterion.text,
        "value": one.value,
        "ci_low": one.ci_low,
        "ci_high": one.ci_high,
        "verdict": one.verdict,
        "n_seeds": len(one.values),
        "values": list(one.values),
        "seeds_to_settle": one.seeds_to_settle,
        "denies_nothing_because": one.silent_because or None,
    }


def _claim_folder(folder: Path, what: Mapping[str, str]) -> None:
    """Make the folder this reproduction's, or see that it already is.

    Raises:
        InputError: it holds another reproduction or something else, or cannot be made.
    """
    path = folder / CLAIM_FILE
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): choose another folder") from None
        if there != what:
            raise InputError(f"{folder} holds a reproduction of {there}, not of {dict(what)}: choose another folder")
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder")
    if folder.exists() and any(not is_unfinished(one) for one in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no reproduction: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(what).encode())
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another folder") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> dict[str, Any]:
    """What kind of machine this is; the digits of a result can depend on it."""
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        names = [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"system": platform.system(), "architecture": platform.machine(), "processor": model, "cores": _cores()}

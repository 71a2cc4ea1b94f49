"""A claim of a paper: what must be so, what is run to see it, and what is run to see that it could fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analyses.papers.jobs import Arms, Job
from analyses.papers.verdicts import Criterion, Judgement, Verdict, deciding, judge_all
from analyses.report.contents import FigureOf, TableOf

Scale = Literal["quick", "full"]

Outcomes = Mapping[str, Sequence[Any]]
"""What the jobs of each arm gave: a Run or a table for each seed, in the order of the jobs."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an experiment says.

    Attributes:
        values: for each criterion by name, one value per seed.
        figures: every seed drawn.
        tables: the numbers behind them.
        text: what else a reader must know: where the claim holds and where not, what limits it.
        silent: by a criterion's name, why values short of its margin deny nothing (they are lower bounds, or the margin
            was out of reach in this experiment); empty where they deny it.
    """

    values: Mapping[str, Sequence[float]]
    figures: Sequence[FigureOf] = ()
    tables: Sequence[TableOf] = ()
    text: Sequence[str] = ()
    silent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Claim:
    """One claim at one scale. Nothing in it depends on an outcome.

    Attributes:
        name: short name, in results.json and as the section's address.
        sentence: the claim, in our words.
        source: the paper's section with the tag that says how sure we are of it.
        question: what is asked of the experiment.
        criteria: all must hold.
        measured: how, in a few sentences.
        arms: what is run, by setting.
        measure: from the outcomes of arms to the evidence.
        control: what the negative control is: something in which the claim must fail.
        null_arms: what is run for it, under the names of ``arms``; it passes through the same ``measure``.
    """

    name: str
    sentence: str
    source: str
    question: str
    criteria: tuple[Criterion, ...]
    measured: str
    arms: Arms
    measure: Callable[[Outcomes], Evidence]
    control: str
    null_arms: Arms

    @property
    def jobs(self) -> list[Job]:
        """Everything to be run, the control's share included."""
        return [job for arms in (self.arms, self.null_arms) for arm in arms.values() for job in arm]


@dataclass(frozen=True, eq=False)
class Examined:
    """A claim with what was found of it and of its negative control."""

    claim: Claim
    evidence: Evidence
    judgements: tuple[Judgement, ...]
    null_judgements: tuple[Judgement, ...] = field(repr=False)

    @property
    def deciding(self) -> Judgement:
        """The criterion that decides the claim."""
        return deciding(self.judgements)

    @property
    def verdict(self) -> Verdict:
        """Whether the claim was reproduced."""
        return self.deciding.verdict

    @property
    def null(self) -> Judgement:
        """What denies the negative control: the claim's deciding criterion if it does so, else the first that does."""
        same = next(one for one in self.null_judgements if one.criterion == self.deciding.criterion)
        return same if same.verdict == "not reproduced" else deciding(self.null_judgements)

    @property
    def control_passed(self) -> bool:
        """Whether the control, where the claim must fail, failed it."""
        return self.null.verdict == "not reproduced"


def examine(claim: Claim, folder: Path) -> Examined:
    """Measure a claim and its control from the folder in which their jobs were done.

    Raises:
        InputError: a job that was not done, or evidence that does not answer the criteria.
    """
    evidence = claim.measure(_outcomes(claim.arms, folder))
    null = claim.measure(_outcomes(claim.null_arms, folder))
    judgements = judge_all(claim.criteria, evidence.values, evidence.silent)
    return Examined(claim, evidence, judgements, judge_all(claim.criteria, null.values))


def _outcomes(arms: Arms, folder: Path) -> Outcomes:
    return {name: [job.outcome(folder / job.key) for job in arm] for name, arm in arms.items()}

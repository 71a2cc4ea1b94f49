"""What the page and its Markdown twin say alike."""

from collections.abc import Sequence

from analyses.papers.claims import Examined
from analyses.papers.verdicts import Judgement

METHOD = (
    (
        "Every criterion and its margin was written down in the code before the runs measured here. A criterion "
        "has one value for each seed (initial weights, training prompts and evaluation "
        "prompts are all drawn from it); its interval is Student's t at 95 % over seeds. A claim is "
        "reproduced if the interval of every one of its criteria lies wholly on the claimed side of the "
        "margin, not reproduced if the interval of one lies wholly on the other, and inconclusive otherwise; "
        "then stands how many seeds of the same mean and spread would settle it. Where values short of a margin "
        "can deny nothing (a curve that had not come halfway when training ended gives a lower bound; or the "
        "margin was out of reach), a criterion is inconclusive too, and the reason stands there. Where criteria "
        "are several, the number given first is that of the first that decides, or of all reproduced ones that of the "
        "one nearest its margin, in half-widths of its interval. Margins marked [ours] are ours: "
        "the paper gives none. An interval of Student's knows no bounds, so that one of a share may pass 1."
    ),
    (
        "Every claim has a negative control: something in which it must fail, measured by the same function. "
        "It passes if one criterion at least denies it; the others are given beside it, and one that a control "
        "meets shows nothing alone. A control that is not judged 'not reproduced' is said to have failed, and the "
        "claim's verdict is then worth nothing."
    ),
    (
        "Tags: [code] read in the paper's published code, [abs] in its abstract, [mem] from memory of the "
        "paper, [ours] our choice, [here] measured by us on another occasion."
    ),
)


def in_numbers(one: Judgement) -> str:
    """A judgement in words."""
    criterion = one.criterion
    said = f"{capital(criterion.statistic)}: {one.value:.3g} [{one.ci_low:.3g}, {one.ci_high:.3g}] "
    said += f"(95 % over {len(one.values)} seeds; claimed: {criterion.side} {criterion.threshold:g})"
    if one.silent_because:
        return f"{said}. This denies nothing: {one.silent_because}."
    if one.verdict != "inconclusive":
        return f"{said}."
    n = one.seeds_to_settle
    return f"{said}; {'no number of seeds' if n is None else f'{n} seeds'} of this mean and spread would settle it."


def in_control(finding: Examined) -> str:
    """What denied the negative control, for a table: named where it is another criterion than the claim's own."""
    null, of = finding.null, finding.null.criterion
    where = "" if of == finding.deciding.criterion else f" for {of.statistic}"
    return f"{null.verdict} ({null.value:.3g}{where})"


def where_it_holds(judgements: Sequence[Judgement]) -> str:
    """Which criteria held, where not all came out alike; empty where they did."""
    by_verdict: dict[str, list[str]] = {}
    for one in judgements:
        by_verdict.setdefault(one.verdict, []).append(one.criterion.statistic)
    if len(by_verdict) < 2:
        return ""
    return ". ".join(capital(f"{verdict}: {'; '.join(parts)}") for verdict, parts in by_verdict.items()) + "."


def capital(text: str) -> str:
    """The text with a capital letter first, and every other letter as it is (unlike str.capitalize)."""
    return text[:1].upper() + text[1:]

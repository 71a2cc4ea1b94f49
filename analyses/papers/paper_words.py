"""What the page and its Markdown twin say alike."""

from collections.abc import Sequence

from analyses.papers.verdicts import Judgement

METHOD = (
    (
        "Every criterion was written down in the code before anything was run, and no setting depends on an "
        "outcome. A criterion has one value for each seed (initial weights, training prompts and evaluation "
        "prompts are all drawn from it); its interval is Student's t at 95 % over seeds. A claim is "
        "reproduced if the interval of every one of its criteria lies wholly on the claimed side of the "
        "margin, not reproduced if the interval of one lies wholly on the other, and inconclusive otherwise; "
        "then stands how many seeds of the same mean and spread would settle it. Where criteria are several, "
        "the number given first is that of the one that decides. Margins marked [ours] are ours: the paper "
        "gives none."
    ),
    (
        "Every claim has a negative control: something in which it must fail, measured by the same function. "
        "A control that is not judged 'not reproduced' is said to have failed, and the claim's verdict is "
        "then worth nothing."
    ),
    (
        "Tags: [code] read in the paper's published code, [abs] in its abstract, [mem] from memory of the "
        "paper, [ours] our choice."
    ),
)


def in_numbers(one: Judgement) -> str:
    """A judgement in words."""
    criterion = one.criterion
    said = f"{capital(criterion.statistic)}: {one.value:.3g} [{one.ci_low:.3g}, {one.ci_high:.3g}] "
    said += f"(95 % over {len(one.values)} seeds; claimed: {criterion.side} {criterion.threshold:g})"
    if one.verdict != "inconclusive":
        return f"{said}."
    n = one.seeds_to_settle
    return f"{said}; {'no number of seeds' if n is None else f'{n} seeds'} of this mean and spread would settle it."


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

"""The three sentences a bigram report leads with, each computed from numbers and able to say that nothing was found."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from scipy import stats

from analyses.report.skill import Estimate, Skill

FAMILY_LEVEL = 0.05
"""Chance that a finding claims something of a model that learned nothing; divided among the tests it makes."""
CLEAR = 0.99
"""Confidence with which a model must beat chance before anything is claimed: all three findings rest on it."""
HALF = 0.5
_NAMED_HEADS = 3
_ROLES = {
    "induction_at_trigger": "induction head",
    "induction": "induction head",
    "previous_token_after_trigger": "previous-token head",
    "previous_token": "previous-token head",
    "duplicate": "duplicate-token head",
    "first_token": "first-token head",
}
_MEMORIES = (
    ("W_O2", "all tokens", "copying", "tokens"),
    ("W_K2", "triggers, keys of the whole vocabulary", "matching", "triggers"),
    ("W_K2", "all tokens", "matching", "tokens"),
    ("W_K1", "all positions", "looking one back", "positions"),
)


@dataclass(frozen=True)
class Finding:
    """One sentence, whether it claims something, and the numbers it was made of.

    Attributes:
        key: short name in report.json, and the section that holds the evidence.
        claims: False if the sentence says that nothing was found.
        sentence: for a reader, with intervals.
        numbers: the same for a program.
        label: what stands over the sentence.
    """

    key: str
    claims: bool
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def shown_label(self) -> str:
        """The label, or whether anything was found."""
        return self.label or ("found" if self.claims else "nothing found")


def find_copying(skill: Skill) -> Finding:
    """Does the model predict in context, beyond what the current token tells, and beyond counting tokens?"""
    model, chance, counting, optimal = (skill.accuracy(s) for s in ("model", "chance", "counting", "optimal"))
    over_chance, over_counting = (skill.gain(source, confidence=CLEAR) for source in ("chance", "counting"))
    seen = "of the outputs that the prompt has already shown"
    by_chance = f"the current token alone allows {_percent(chance)}"
    by_counting = f"counting over-represented tokens, {_percent(counting)}"
    best = f"the Bayes-optimal predictor, {_percent(optimal)}"
    if not over_chance.is_positive:
        sentence = (
            f"Nothing was found about copying: the model predicts {_percent(model)} {seen}, no more than chance, "
            f"as {by_chance}; {best}."
        )
    elif not over_counting.is_positive:
        sentence = (
            f"The model uses its context but need not copy: it predicts {_percent(model)} {seen}, where {by_chance}, "
            f"{by_counting}, and {best}."
        )
    else:
        sentence = (
            f"The model copies in context: it predicts {_percent(model)} {seen}, where {by_chance}, "
            f"{by_counting}, and {best}."
        )
    numbers: dict[str, Any] = {
        "beats_chance": over_chance.is_positive,
        "copies": over_chance.is_positive and over_counting.is_positive,
    }
    estimates = {"model": model, "chance": chance, "in_context_unigram": counting, "bayes_optimal": optimal}
    estimates |= {"gain_over_chance": over_chance, "gain_over_in_context_unigram": over_counting}
    numbers |= {name: estimate.as_dict() for name, estimate in estimates.items()}
    numbers["confidence_of_gains"] = CLEAR
    return Finding("copying", over_chance.is_positive, sentence, numbers)


def find_heads(skill: Skill, attention: pd.DataFrame) -> Finding:
    """Which heads' removal takes at least half of the skill above chance, or all of it?

    A head counts if the whole interval of the share that goes with it, corrected for the number of heads
    (Bonferroni), lies at or above one half; it brings the model to chance if that interval reaches 1 as well.
    """
    if not skill.gain("chance", confidence=CLEAR).is_positive:
        sentence = "Nothing was found about heads: the model has no skill above chance that a head could carry."
        return Finding("heads", False, sentence, {"heads": []})
    confidence = 1 - FAMILY_LEVEL / max(1, len(skill.ablated))
    heads = []
    for head in skill.ablated:
        share = skill.share_lost(head, confidence=confidence)
        carries = share.low >= HALF
        heads.append(
            {
                "head": head,
                "carries": carries,
                "to_chance": carries and share.high >= 1,
                "role": role_of(head, attention),
                "share_of_skill_lost": share.as_dict() | {"confidence": confidence},
                "accuracy_without": skill.accuracy(head, ablated=True).as_dict(),
            }
        )
    heads.sort(key=lambda one: -one["share_of_skill_lost"]["value"])
    carriers = [one for one in heads if one["carries"]]
    numbers: dict[str, Any] = {"heads": heads, "confidence_per_head": confidence}
    if not carriers:
        return Finding("heads", False, _no_head(heads), numbers)
    named = "; ".join(_without(one) for one in carriers[:_NAMED_HEADS])
    more = len(carriers) - _NAMED_HEADS
    rest = f"; {more} more {'costs' if more == 1 else 'cost'} at least half" if more > 0 else ""
    who = _listed([one["head"] for one in carriers]) if more <= 0 else f"{len(carriers)} heads"
    verb = "carries" if len(carriers) == 1 else "carry"
    return Finding("heads", True, f"{who} {verb} it: {named}{rest}.", numbers)


def role_of(head: str, attention: pd.DataFrame) -> str | None:
    """What a head looks at where it mostly looks at one thing, more than untrained heads do; None otherwise."""
    rows = attention.loc[(attention["component"] == head) & (attention["top"] >= HALF)]
    known = rows.loc[rows["significant"].fillna(value=False).astype(bool)]
    if known.empty:
        return None
    return _ROLES[str(known.sort_values("score", ascending=False)["metric"].to_list()[0])]


def find_memories(recalls: pd.DataFrame | None, *, beats_chance: bool, n_choices: int, why_none: str) -> Finding:
    """Which associative memories do the weights hold, beyond what labels dealt at random would give?

    ``n_choices`` counts the circuits among which the one that was read was chosen: every p-value is held against
    the level divided by it and by the number of memories.
    """
    if recalls is None:
        sentence = f"Nothing was found about memories in the weights: {why_none}."
        return Finding("memories", False, sentence, {"memories": []})
    rows = [(row, role, keys) for name, where, role, keys in _MEMORIES for row in _rows(recalls, name, where)]
    level = FAMILY_LEVEL / max(1, len(rows) * n_choices)
    memories = []
    for row, role, queries in rows:
        interval = stats.binomtest(round(row["recall"] * row["n"]), int(row["n"])).proportion_ci(method="wilson")
        recall = Estimate(row["recall"], float(interval.low), float(interval.high))
        memories.append(
            {
                "memory": row["memory"],
                "component": row["component"],
                "role": role,
                "recall": recall.as_dict(),
                "n": int(row["n"]),
                "queries": queries,
                "chance": row["chance"],
                "p_value": row["p_value"],
                "level": level,
                "remembered": beats_chance and row["p_value"] <= level,
            }
        )
    kept = [one for one in memories if one["remembered"]]
    numbers: dict[str, Any] = {"memories": memories, "level": level}
    if not kept:
        shown = ", ".join(_recalled(one) for one in memories)
        excuse = "" if beats_chance else "; a model that does not beat chance is credited with none"
        sentence = f"Nothing was found about memories in the weights: {shown}{excuse}."
        return Finding("memories", False, sentence, numbers)
    parts = [_recalled(one) for one in kept]
    missing = [one for one in memories if not one["remembered"]]
    rest = f", but not {_listed([_recalled(one) for one in missing])}" if missing else ""
    largest = max(one["p_value"] for one in kept)
    sentence = f"The weights remember the circuit: {_listed(parts)}{rest}; p {_p_value(largest)} for each."
    return Finding("memories", True, sentence, numbers)


def _rows(recalls: pd.DataFrame, memory: str, index_set: str) -> list[dict[str, Any]]:
    rows = recalls.loc[(recalls["memory"] == memory) & (recalls["index_set"] == index_set)]
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def _no_head(heads: list[dict[str, Any]]) -> str:
    if not heads:
        return "Nothing was found about heads: the model has none."
    worst = heads[0]
    share = _share(worst["share_of_skill_lost"])
    return (
        f"Nothing was found about heads: no single one carries half of it; the costliest to zero is {worst['head']}, "
        f"with {share} of the skill above chance."
    )


def _without(one: dict[str, Any]) -> str:
    role = f", the {one['role']}," if one["role"] else ""
    accuracy, share = _share(one["accuracy_without"]), _share(one["share_of_skill_lost"])
    if one["to_chance"]:
        return f"without {one['head']}{role} accuracy falls to {accuracy}, which is chance"
    return f"without {one['head']}{role} it falls to {accuracy}, a loss of {share} of the skill above chance"


def _recalled(one: dict[str, Any]) -> str:
    recall, chance = _share(one["recall"]), f"{100 * one['chance']:.1f}%"
    return f"{one['memory']} ({one['role']}) recalls {recall} of {one['n']} {one['queries']} (chance {chance})"


def _percent(estimate: Estimate) -> str:
    return _share(estimate.as_dict())


def _share(numbers: dict[str, float]) -> str:
    """A share in percent with its interval.

    >>> _share({"value": 0.5, "ci_low": 0.45, "ci_high": 0.55})
    '50.0% [45.0, 55.0]'
    """
    low, high = (100 * numbers[end] for end in ("ci_low", "ci_high"))
    return f"{100 * numbers['value']:.1f}% [{low:.1f}, {high:.1f}]"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"≤ {p:.2g}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

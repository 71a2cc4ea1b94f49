import numpy as np
import pandas as pd
import pytest

from analyses.report.findings import find_copying, find_heads, find_memories, role_of
from analyses.report.skill import Skill

N = 200
COUNTS = np.full(N, 10.0)


def _hits(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).binomial(10, share, size=N).astype(float)


def _skill(model: float, *, chance: float = 0.05, counting: float = 0.4, **without: float) -> Skill:
    hits = {"model": _hits(model), "chance": _hits(chance, 1), "counting": _hits(counting, 2), "optimal": COUNTS}
    return Skill(hits, {head: _hits(share, 3 + k) for k, (head, share) in enumerate(without.items())}, COUNTS)


def _attention(**top: float) -> pd.DataFrame:
    rows = [
        {"component": head, "metric": "induction_at_trigger", "score": share, "top": share, "significant": True}
        for head, share in top.items()
    ]
    return pd.DataFrame(rows, columns=["component", "metric", "score", "top", "significant"])


def _recalls(**p_values: float) -> pd.DataFrame:
    sets = {"W_O2": "all tokens", "W_K1": "all positions", "W_K2": "triggers, keys of the whole vocabulary"}
    return pd.DataFrame(
        {
            "memory": name,
            "component": "L1H0",
            "index_set": sets[name],
            "recall": 0.5,
            "n": 10,
            "chance": 0.1,
            "p_value": p,
        }
        for name, p in p_values.items()
    )


def test_share_lost_is_what_is_lost_over_what_there_was_to_lose():
    skill = Skill(
        {"model": np.array([8.0, 8.0]), "chance": np.array([0.0, 0.0])},
        {"L0H0": np.array([6.0, 6.0])},
        np.full(2, 10.0),
    )
    assert skill.share_lost("L0H0").value == pytest.approx(0.25)
    assert skill.accuracy("model").value == pytest.approx(0.8)


def test_a_model_far_above_chance_and_counting_copies():
    finding = find_copying(_skill(0.95))
    assert finding.claims
    assert finding.numbers["copies"]
    assert finding.sentence.startswith("The model copies in context")


def test_a_model_no_better_than_counting_tokens_is_not_said_to_copy():
    finding = find_copying(_skill(0.4))
    assert finding.claims
    assert not finding.numbers["copies"]
    assert "need not copy" in finding.sentence


def test_a_model_at_chance_is_said_to_have_learned_nothing():
    finding = find_copying(_skill(0.05))
    assert not finding.claims
    assert finding.sentence.startswith("Nothing was found")


def test_every_finding_gives_an_interval_to_each_of_its_numbers():
    for finding in (find_copying(_skill(0.95)), find_heads(_skill(0.95, L1H0=0.05), _attention(L1H0=0.9))):
        assert finding.sentence.count("%") == finding.sentence.count("[")


def test_a_head_without_which_the_model_is_at_chance_is_named_with_its_role():
    finding = find_heads(_skill(0.95, L0H0=0.94, L1H0=0.05), _attention(L1H0=0.9))
    first, second = finding.numbers["heads"]
    assert finding.claims
    assert (first["head"], first["carries"], first["to_chance"]) == ("L1H0", True, True)
    assert (second["head"], second["carries"]) == ("L0H0", False)
    assert "L1H0, the induction head," in finding.sentence
    assert "L0H0" not in finding.sentence


def test_a_head_that_costs_most_but_not_all_is_not_said_to_bring_the_model_to_chance():
    (head,) = find_heads(_skill(0.95, L0H0=0.3), _attention()).numbers["heads"]
    assert head["carries"]
    assert not head["to_chance"]


def test_heads_that_cost_less_than_half_carry_nothing():
    finding = find_heads(_skill(0.95, L0H0=0.7, L0H1=0.8), _attention())
    assert not finding.claims
    assert "the costliest to zero is L0H0" in finding.sentence


def test_no_head_is_blamed_where_there_is_no_skill_to_lose():
    finding = find_heads(_skill(0.05, L0H0=0.0), _attention(L0H0=0.9))
    assert not finding.claims
    assert finding.numbers["heads"] == []


def test_more_heads_make_each_interval_wider():
    one = find_heads(_skill(0.95, L0H0=0.5), _attention()).numbers["heads"][0]["share_of_skill_lost"]
    many = find_heads(_skill(0.95, L0H0=0.5, **{f"L1H{k}": 0.9 for k in range(9)}), _attention()).numbers["heads"][0]
    assert many["head"] == "L0H0"
    assert many["share_of_skill_lost"]["ci_low"] < one["ci_low"]


def test_a_head_has_a_role_only_if_most_of_its_attention_lies_there():
    assert role_of("L1H0", _attention(L1H0=0.9)) == "induction head"
    assert role_of("L1H0", _attention(L1H0=0.4)) is None
    assert role_of("L1H0", _attention(L1H0=0.9).assign(significant=False)) is None


def test_memories_beyond_chance_are_named_and_the_others_are_not_claimed():
    finding = find_memories(_recalls(W_O2=1e-9, W_K1=0.5), beats_chance=True, n_choices=1, why_none="")
    assert finding.claims
    assert [one["remembered"] for one in finding.numbers["memories"]] == [True, False]
    assert "but not W_K1" in finding.sentence


def test_the_level_is_divided_among_memories_and_circuits():
    recalls = _recalls(W_O2=0.02, W_K1=0.9)
    assert find_memories(recalls, beats_chance=True, n_choices=1, why_none="").claims
    assert not find_memories(recalls, beats_chance=True, n_choices=4, why_none="").claims


def test_a_model_that_does_not_beat_chance_is_credited_with_no_memory():
    finding = find_memories(_recalls(W_O2=1e-9), beats_chance=False, n_choices=1, why_none="")
    assert not finding.claims


def test_a_model_without_memories_to_read_gets_the_reason():
    finding = find_memories(None, beats_chance=True, n_choices=1, why_none="the model has one layer")
    assert not finding.claims
    assert finding.sentence.endswith("the model has one layer.")

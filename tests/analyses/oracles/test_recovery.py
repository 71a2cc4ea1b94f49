import pytest

from analyses.oracles.recovery import ranking, recover, true_edges
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit


def pairs_ranked_rightly(scores, wanted):
    """The area under the ROC as it is defined: how often a true edge outranks another, ties counting half."""
    right = [abs(score) for edge, score in scores.items() if edge in wanted]
    wrong = [abs(score) for edge, score in scores.items() if edge not in wanted]
    won = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    return won / (len(right) * len(wrong))


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ({"a": 3.0, "b": -2.0, "c": 1.0, "d": 0.0}, {"a", "b"}),
        ({"a": 3.0, "b": -2.0, "c": 1.0, "d": 0.0}, {"b", "d"}),
        ({"a": 1.0, "b": 1.0, "c": -1.0, "d": 0.5}, {"a", "d"}),
    ],
)
def test_the_area_is_the_share_of_pairs_ranked_rightly(scores, wanted):
    assert ranking(scores, wanted)[0] == pytest.approx(pairs_ranked_rightly(scores, wanted))


def test_the_threshold_splits_true_from_false_edges_where_that_can_be():
    area, threshold = ranking({"a": 3.0, "b": -2.0, "c": 1.0, "d": 0.0}, {"a", "b"})
    assert (area, threshold) == (1.0, 2.0)


def test_rounding_ranks_with_nothing():
    assert ranking({"a": 1e-12, "b": 0.0}, {"a"})[0] == 0.5


@pytest.fixture
def few_steps(monkeypatch):
    """Of integrated gradients, which are exact on these circuits with any number."""
    monkeypatch.setattr("analyses.oracles.readings.N_STEPS", 3)


@pytest.mark.usefixtures("few_steps")
def test_exactly_the_true_edges_of_the_copy_circuit_are_found():
    found = recover(copy_circuit())
    assert set(found["verdict"]) == {"exact"}
    assert {"acdc, zero", "brute force on edges, zero", "brute force on nodes, zero"} <= set(found["method"])
    assert found["auroc"].dropna().tolist() == [1.0] * int(found["auroc"].notna().sum())


def test_only_edges_that_carry_a_difference_are_true_of_a_counterfactual():
    assert true_edges(copy_circuit(), "counterfactual") == {"embed->L0H0.v", "L0H0->output"}
    assert len(true_edges(copy_circuit(), "zero")) == 4


@pytest.mark.usefixtures("few_steps")
def test_the_backup_is_lost_by_acdc_and_shows_as_two_smallest_circuits():
    found = recover(backup_circuit()).set_index("method")
    assert found.loc["acdc, zero", ["verdict", "missed", "extra"]].tolist() == ["cannot", 5, 0]
    assert found.loc["brute force on nodes, zero", ["verdict", "n_circuits"]].tolist() == ["cannot", 2]

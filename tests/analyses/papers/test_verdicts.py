import math

import numpy as np
import pytest
from scipy import stats

from analyses.papers.paper_words import in_numbers, where_it_holds
from analyses.papers.verdicts import Criterion, deciding, judge, judge_all
from tasks.errors import InputError

ABOVE = Criterion("gain", "accuracy gained", 0.2)
BELOW = Criterion("loss", "accuracy lost", 0.2, "below", "[mem]")


@pytest.mark.parametrize(
    ("criterion", "centre", "verdict"),
    [
        (ABOVE, 0.5, "reproduced"),
        (ABOVE, 0.2, "inconclusive"),
        (ABOVE, -0.1, "not reproduced"),
        (BELOW, -0.1, "reproduced"),
        (BELOW, 0.2, "inconclusive"),
        (BELOW, 0.5, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_where_the_interval_lies(criterion, centre, verdict):
    judged = judge(criterion, [centre + noise for noise in (-0.04, -0.02, 0.0, 0.02, 0.04)])
    assert judged.verdict == verdict
    half = stats.t.ppf(0.975, 4) * np.std([-0.04, -0.02, 0.0, 0.02, 0.04], ddof=1) / math.sqrt(5)
    assert (judged.value, judged.ci_low, judged.ci_high) == pytest.approx((centre, centre - half, centre + half))


def test_an_interval_that_ends_on_the_margin_is_not_on_the_claimed_side():
    assert judge(ABOVE, [0.2] * 5).verdict == "not reproduced"
    assert judge(BELOW, [0.2] * 5).verdict == "not reproduced"
    assert judge(ABOVE, [0.2 + 1e-9] * 5).verdict == "reproduced"


def test_values_that_cannot_deny_are_inconclusive_short_of_the_margin_and_count_beyond_it():
    why = "the curve never got there"
    judged = judge(ABOVE, [-0.1] * 5, silent_because=why)
    assert (judged.verdict, judged.seeds_to_settle, judged.silent_because) == ("inconclusive", None, why)
    assert in_numbers(judged).endswith(f"This denies nothing: {why}.")
    assert judge(BELOW, [0.5] * 5, silent_because=why).verdict == "inconclusive"
    beyond = judge(ABOVE, [0.5] * 5, silent_because=why)
    assert (beyond.verdict, beyond.silent_because) == ("reproduced", "")
    open_ = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert judge(ABOVE, open_, silent_because=why) == judge(ABOVE, open_)
    denied, silent = judge_all((ABOVE, BELOW), {"gain": [-0.1] * 5, "loss": [0.5] * 5}, {"loss": why, "gain": ""})
    assert (denied.verdict, silent.verdict) == ("not reproduced", "inconclusive")
    with pytest.raises(InputError, match="silent names gian: the criteria are gain"):
        judge_all((ABOVE,), {"gain": [-0.1] * 5}, {"gian": why})


def test_the_number_of_seeds_asked_for_would_settle_it_and_one_fewer_would_not():
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    judged = judge(ABOVE, values)
    assert judged.verdict == "inconclusive"
    n = judged.seeds_to_settle
    assert n is not None
    spread = np.std(values, ddof=1)
    half = [stats.t.ppf(0.975, m - 1) * spread / math.sqrt(m) for m in (n - 1, n)]
    assert half[1] < np.mean(values) - 0.2 <= half[0]


def test_a_mean_on_the_margin_is_settled_by_no_number_of_seeds():
    judged = judge(ABOVE, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert (judged.verdict, judged.seeds_to_settle) == ("inconclusive", None)
    assert judge(ABOVE, [0.5] * 5).seeds_to_settle is None


def test_of_reproduced_criteria_the_one_nearest_its_margin_speaks():
    far, near = judge(ABOVE, [0.9, 0.91, 0.92, 0.93, 0.94]), judge(ABOVE, [0.4, 0.5, 0.6, 0.7, 0.8])
    exact = judge(BELOW, [0.1] * 5)
    assert {one.verdict for one in (far, near, exact)} == {"reproduced"}
    assert deciding([exact, far, near]) is near
    assert deciding([exact, far]) is far


def test_what_seeds_would_not_settle_speaks_before_what_they_would():
    open_, silent = judge(ABOVE, [0.1, 0.2, 0.3, 0.4, 0.5]), judge(ABOVE, [0.0] * 5, silent_because="a lower bound")
    assert deciding([open_, silent]) is silent
    assert deciding([open_, judge(ABOVE, [0.5] * 5)]) is open_
    assert deciding([open_, silent, judge(BELOW, [0.5] * 5)]).verdict == "not reproduced"


def test_a_claim_holds_only_if_each_of_its_criteria_does():
    good, open_, bad = ([x + d for d in (-0.1, -0.05, 0, 0.05, 0.1)] for x in (1.0, 0.2, -1.0))
    kinds = {"reproduced": good, "inconclusive": open_, "not reproduced": bad}
    for combined, chosen in (
        ("reproduced", ["reproduced", "reproduced"]),
        ("inconclusive", ["reproduced", "inconclusive"]),
        ("not reproduced", ["inconclusive", "not reproduced"]),
        ("not reproduced", ["not reproduced", "reproduced"]),
    ):
        assert deciding([judge(ABOVE, kinds[one]) for one in chosen]).verdict == combined


def test_a_true_null_is_seldom_called_reproduced():
    rng = np.random.default_rng(0)
    verdicts = [judge(ABOVE, rng.normal(0.2, 0.1, size=5).tolist()).verdict for _ in range(2000)]
    # one side of a 95 % interval
    assert 0.015 < np.mean([one == "reproduced" for one in verdicts]) < 0.035


def test_the_criterion_says_itself_with_its_source():
    assert BELOW.text == "accuracy lost is below 0.2 [mem]"


def test_a_claim_that_holds_in_part_says_in_which():
    good, bad = judge(ABOVE, [0.5] * 5), judge(BELOW, [0.5] * 5)
    assert where_it_holds([good, bad]) == "Reproduced: accuracy gained. Not reproduced: accuracy lost."
    assert where_it_holds([good, good]) == ""


def test_refusals_name_the_criterion():
    with pytest.raises(InputError, match="gain: 4 seeds are too few"):
        judge(ABOVE, [1.0] * 4)
    with pytest.raises(InputError, match="gain: a seed's value is not finite"):
        judge(ABOVE, [1.0, 1.0, 1.0, 1.0, math.nan])
    with pytest.raises(InputError, match="values of other were given for the criteria gain"):
        judge_all([ABOVE], {"other": [1.0] * 5})
    assert len(judge_all([ABOVE], {"gain": [1.0] * 5})) == 1

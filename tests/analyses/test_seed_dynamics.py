"""Analyses over seeds: one tidy table, bands of Student's t, and when readouts emerge in which order."""

import shutil
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses import analyse_seeds, memory_recall, seed_histories
from analyses.emergence import median_interval
from analyses.seed_dynamics import SeedDynamics
from interp import SeedRuns, TrainConfig, train_many
from interp.presets import preset
from tasks import BigramICL, InputError

STEPS = [0, 10, 20, 30]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    task = BigramICL(seq_len=12)
    config, _ = preset("bietti-simplified", task, {"d_model": 8})
    training = TrainConfig(steps=4, batch_size=4, checkpoint_every=2, log_every=2, eval_prompts=8, lr=0.1)
    out = tmp_path_factory.mktemp("seeds") / "runs"
    return train_many(task, config, training, seeds=range(5), out=out, how="alone", progress=False)


def by_hand(**curves: list[list[float]]) -> SeedDynamics:
    """Each readout's values, a list over STEPS for every seed."""
    rows = [
        {"seed": seed, "step": step, "readout": readout, "value": value}
        for readout, seeds in curves.items()
        for seed, values in enumerate(seeds)
        for step, value in zip(STEPS, values, strict=True)
    ]
    return SeedDynamics(pd.DataFrame(rows), "by hand", {})


RISES_EARLY = [[0.0, 0.6, 1.0, 1.0]] * 6
RISES_LATE = [[0.0, 0.1, 0.6, 1.0]] * 5 + [[0.0, 0.1, 0.2, 0.3]]
FALLS = [[4.0, 3.0, 2.5, 1.0]] * 6
STAYS = [[0.2, 0.3, 0.1, 0.2 + sign * 0.1] for sign in (-1, 1, -1, 1, -1, 1)]


def test_any_analysis_becomes_one_table_with_seed_and_step_in_front(runs):
    found = analyse_seeds(runs, lambda model: memory_recall(model, runs.task))
    assert found.frame.columns[:2].tolist() == ["seed", "step"]
    assert found.seeds == [0, 1, 2, 3, 4]
    alone = memory_recall(runs[3].at(2), runs.task).frame
    of_one = found.frame[(found.frame["seed"] == 3) & (found.frame["step"] == 2)]
    rest = of_one.drop(columns=["seed", "step"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, alone, check_dtype=False)
    curves = found.curves("recall", ["memory", "index_set"])
    assert curves.frame.columns.tolist() == ["seed", "step", "readout", "value"]
    assert len(curves.bands()) == len(curves.frame) / 5


def test_logged_columns_become_named_readouts(runs):
    found = seed_histories(runs, ["loss", "accuracy"])
    assert set(found.frame["readout"]) == {"loss", "accuracy"}
    row = found.frame.query("seed == 2 and step == 4 and readout == 'loss'")
    assert row["value"].item() == runs[2].history["loss"].iloc[-1]
    with pytest.raises(InputError, match="no column 'los'"):
        seed_histories(runs, ["los"])


def test_seeds_that_are_left_out_are_noted(runs, tmp_path):
    assert seed_histories(runs, ["loss"]).notes == ()
    shutil.copytree(runs.path, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "seed-004")
    for path in (tmp_path / "runs" / "seed-001" / "checkpoints").glob("*-000004.safetensors"):
        path.unlink()
    some = SeedRuns.load(tmp_path / "runs")
    for found in (seed_histories(some, ["loss"]), analyse_seeds(some, lambda model: {"layers": model.cfg.n_layers})):
        begun, stopped = found.notes
        assert begun.endswith("have not begun: seeds 4")
        assert stopped.endswith("are left out: seeds 1")


def test_bands_are_students_t_over_seeds():
    values = np.random.default_rng(0).normal(size=(7, 4))
    bands = by_hand(one=values.tolist()).bands(confidence=0.9)
    assert bands["n_seeds"].tolist() == [7] * 4
    for column, row in enumerate(bands.to_dict("records")):
        low, high = stats.t.interval(0.9, 6, values[:, column].mean(), stats.sem(values[:, column]))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high))


def test_bands_need_five_seeds_and_every_seed_at_every_step():
    with pytest.raises(InputError, match="4 seeds are too few"):
        by_hand(one=[[0.0, 1.0, 2.0, 3.0]] * 4).bands()
    found = by_hand(one=RISES_EARLY, other=RISES_EARLY)
    gap = SeedDynamics(found.frame.iloc[:-1], "gap", {})
    with pytest.raises(InputError, match="other is missing"):
        gap.bands()


def test_a_readout_emerges_where_it_has_half_of_its_gain():
    found = by_hand(early=RISES_EARLY, falls=FALLS).emergence()
    frame = found.frame.set_index(["readout", "seed"])
    assert frame.loc[("early", 0), "step"] == 10
    assert frame.loc[("early", 0), "after_step"] == 0
    assert frame.loc[("falls", 0), "height"] == 2.5
    assert frame.loc[("falls", 0), "step"] == 20
    assert by_hand(early=RISES_EARLY).emergence(share=0.9).frame["step"].tolist() == [20] * 6


def test_a_seed_that_never_gets_there_is_censored_and_not_dropped():
    found = by_hand(late=RISES_LATE).emergence()
    row = found.summary.iloc[0]
    assert (row["n_seeds"], row["n_censored"]) == (6, 1)
    assert row["median_step"] == 20
    assert row["ci_low"] == 20
    assert pd.isna(row["ci_high"])  # beyond the last step
    assert len(found.frame) == 6
    assert pd.isna(found.frame.set_index("seed").loc[5, "step"])


def test_half_of_little_does_not_date_a_seed_that_learned_only_little():
    found = by_hand(late=RISES_LATE).emergence()
    assert found.frame["height"].tolist() == [0.5] * 6  # half of the median gain of 1, not of the seed's own 0.3


def test_the_gain_in_the_summary_is_the_median_that_sets_the_height_and_the_interval_is_the_means():
    row = by_hand(late=RISES_LATE).emergence().summary.iloc[0]
    gains = [values[-1] - values[0] for values in RISES_LATE]
    assert row["gain"] == statistics.median(gains)
    assert row["mean_gain"] == pytest.approx(statistics.fmean(gains))
    half_width = stats.t.ppf(0.975, df=5) * statistics.stdev(gains) / 6**0.5
    assert row["mean_gain_high"] - row["mean_gain"] == pytest.approx(half_width)
    assert row["mean_gain"] - row["mean_gain_low"] == pytest.approx(half_width)


def test_the_time_to_a_threshold_counts_every_seed():
    found = by_hand(late=RISES_LATE, early=RISES_EARLY).first_passing(0.6)
    late = found.summary.set_index("readout").loc["late"]
    assert (late["n_seeds"], late["n_censored"], late["median_step"]) == (6, 1, 20)
    assert found.frame.query("readout == 'early'")["step"].tolist() == [10] * 6
    assert by_hand(falls=FALLS).first_passing(2.0).frame["step"].tolist() == [0] * 6  # above it from the start
    with pytest.raises(InputError, match="threshold = nan"):
        by_hand(early=RISES_EARLY).first_passing(float("nan"))


def test_a_readout_without_a_gain_emerges_nowhere_and_a_note_says_so():
    found = by_hand(stays=STAYS, early=RISES_EARLY).emergence()
    stays = found.summary.set_index("readout").loc["stays"]
    assert stays["n_censored"] == 6
    assert pd.isna(stays["median_step"])
    assert found.summary["readout"].tolist() == ["early", "stays"]
    assert any("stays has no clear gain" in note for note in found.notes)


def test_the_order_counts_seeds_before_with_and_after():
    first = [[0.0, 1.0, 1.0, 1.0]] * 5 + [[0.0, 0.0, 0.0, 1.0]]
    second = [[0.0, 0.0, 1.0, 1.0]] * 4 + [[0.0, 1.0, 1.0, 1.0]] * 2
    row = by_hand(first=first, second=second).emergence().order.iloc[0]
    assert (row["readout"], row["other"]) == ("first", "second")
    assert (row["n_before"], row["n_same_step"], row["n_after"], row["n_neither"]) == (4, 1, 1, 0)
    assert row["p_value"] == pytest.approx(stats.binomtest(4, 5).pvalue)
    ends = stats.binomtest(4, 6).proportion_ci()
    assert (row["share_before"], row["ci_low"], row["ci_high"]) == pytest.approx((4 / 6, ends.low, ends.high))


def test_a_censored_seed_counts_as_later():
    row = by_hand(early=RISES_EARLY, late=RISES_LATE).emergence().order.iloc[0]
    assert (row["n_before"], row["n_after"]) == (6, 0)


def test_p_values_are_corrected_for_the_number_of_pairs():
    seconds = [[0.0, 0.0, 1.0, 1.0]] * 6
    thirds = [[0.0, 0.0, 0.0, 1.0]] * 6
    order = by_hand(one=RISES_EARLY, two=seconds, three=thirds).emergence().order
    assert len(order) == 3
    assert order["p_value"].tolist() == pytest.approx([3 * 2 * 0.5**6] * 3)


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="share = "):
        by_hand(early=RISES_EARLY).emergence(share=share)


def test_the_medians_interval_covers_at_least_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n_covered, n = 0, 2000
    for _ in range(n):
        values = rng.exponential(size=8)
        _, low, high = median_interval(np.where(values > 1.5, np.inf, values))  # the latest are censored
        n_covered += low <= np.log(2) <= high
    assert n_covered / n >= 0.95  # exact: 1 − 2 · P(B ≤ 0) = 0.992 for 8 seeds


def test_the_medians_interval_of_ten_is_between_the_second_and_the_ninth():
    assert median_interval(np.arange(1.0, 11.0)) == (5.5, 2.0, 9.0)
    assert np.isnan(median_interval(np.arange(5.0))[1])
    assert median_interval(np.array([1.0, 2.0, np.inf, np.inf, np.inf, np.inf]))[0] == np.inf


def test_figures_draw_every_seed_the_mean_and_its_band():
    found = by_hand(early=RISES_EARLY, late=RISES_LATE)
    assert len(found.plot().data) == 2 * (6 + 1 + 1)
    drawn = found.emergence().plot()
    triangles = [trace for trace in drawn.data if trace.marker.symbol == "triangle-right-open"]
    assert sum(len(trace.x) for trace in triangles) == 1
    circles = [trace for trace in drawn.data if trace.marker.symbol == "circle-open"]
    assert sum(len(trace.x) for trace in circles) == 11


def test_tables_are_saved_under_their_names(tmp_path):
    by_hand(early=RISES_EARLY, late=RISES_LATE).emergence().save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert names == {"emergence.csv", "emergence_summary.csv", "emergence_order.csv"}


def test_a_table_without_named_readouts_says_what_to_do(runs):
    found = analyse_seeds(runs, lambda model: memory_recall(model, runs.task), steps=[0])
    with pytest.raises(InputError, match=r"\.curves\(value, per\)"):
        found.bands()

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analyses.papers.jobs import Calculation, Training, describe
from analyses.papers.workers import do_jobs
from interp.presets import preset
from interp.train_config import TrainConfig
from tasks import BigramICL
from tasks.errors import InputError


def squares(*, seed: int, upto: int) -> pd.DataFrame:
    return pd.DataFrame({"n": range(upto), "square": [seed + n * n for n in range(upto)]})


def refusing(*, seed: int) -> pd.DataFrame:
    raise InputError(f"seed {seed} is refused")


def small_training(seed: int = 0, **fields) -> Training:
    task = BigramICL(seq_len=8)
    model, given = preset("bietti-simplified", task, {"d_model": 8})
    how = TrainConfig.from_seed(seed, **{"steps": 3, "batch_size": 4, "eval_prompts": 16, "log_every": 1, **fields})
    return Training("small", seed, task, model, how.over(given))


def test_a_calculation_is_done_once_and_read_back(tmp_path: Path):
    job = Calculation("squares", 2, squares, {"upto": 3})
    do_jobs([job, job], tmp_path, workers=1, progress=False)
    assert job.is_done(tmp_path / job.key)
    assert job.outcome(tmp_path / job.key)["square"].tolist() == [2, 3, 6]
    (tmp_path / job.key / "rows.csv").write_text("n,square\n0,99\n")
    do_jobs([job], tmp_path, workers=1, progress=False)
    assert job.outcome(tmp_path / job.key)["square"].tolist() == [99]


def test_a_training_leaves_a_run_that_is_found_again(tmp_path: Path):
    job = small_training()
    assert not job.is_done(tmp_path / job.key)
    do_jobs([job], tmp_path, workers=1, progress=False)
    assert job.is_done(tmp_path / job.key)
    run = job.outcome(tmp_path / job.key)
    assert run.steps[-1] == 3
    assert run.train_config.init_seed == 0


def test_an_interrupted_training_counts_as_not_done(tmp_path: Path):
    job = small_training()
    do_jobs([job], tmp_path, workers=1, progress=False)
    for path in (tmp_path / job.key / "checkpoints").glob("step-000003*"):
        path.unlink()
    assert not job.is_done(tmp_path / job.key)
    do_jobs([job], tmp_path, workers=1, progress=False)
    assert job.is_done(tmp_path / job.key)


def test_what_decides_the_outcome_decides_the_key_and_the_label_does_not():
    job = small_training()
    assert job.key == replace(job, label="other words").key
    others = [small_training(1), small_training(lr=0.1), replace(job, task=BigramICL(seq_len=8, n_triggers=4))]
    assert len({job.key, *(other.key for other in others)}) == 4
    one = Calculation("squares", 0, squares, {"upto": 3})
    kinds = [one, replace(one, seed=1), replace(one, arguments={"upto": 4}), replace(one, version=2)]
    assert len({each.key for each in kinds}) == 4


def test_longer_work_is_expected_to_take_longer():
    assert small_training(steps=6).cost == 2 * small_training(steps=3).cost
    assert describe(small_training())["steps"] == 3


@pytest.mark.slow
def test_the_number_of_processes_changes_no_digit(tmp_path: Path):
    jobs = [small_training(seed) for seed in range(3)]
    for workers in (1, 2):
        do_jobs(jobs, tmp_path / str(workers), workers=workers, progress=False)
    for job in jobs:
        one, two = (job.outcome(tmp_path / str(workers) / job.key).history for workers in (1, 2))
        pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))


def test_what_a_job_refuses_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="seed 7 is refused"):
        do_jobs([Calculation("refusing", 7, refusing)], tmp_path, workers=1, progress=False)
    with pytest.raises(InputError, match="workers = 0: expected at least 1"):
        do_jobs([small_training()], tmp_path, workers=0)


def test_progress_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    jobs = [Calculation("squares", seed, squares, {"upto": 3}) for seed in range(3)]
    do_jobs(jobs[:1], tmp_path, workers=1, progress=False)
    assert capsys.readouterr().err == ""
    do_jobs(jobs, tmp_path, workers=1)
    assert capsys.readouterr().err.startswith("3 runs, 1 found done\n3 of 3 runs")

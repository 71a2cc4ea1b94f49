"""interp train --seeds: a folder of ordinary runs, and what does not go with it."""

import pytest

from interp import Run, SeedRuns, cli

TINY = ["--preset", "bietti-full", "--set", "d_model=8", "--set", "seq_len=12", "--set", "batch_size=4"]
TINY += ["--set", "eval_prompts=8", "--set", "log_every=5", "--set", "checkpoint_every=5", "--steps", "15"]


@pytest.fixture
def interp(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def interp(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return interp


def test_seeds_are_those_that_one_run_with_that_seed_would_have(interp, tmp_path):
    code, out, _ = interp("train", "bigram", *TINY, "--seeds", 3, "--how", "stacked", "--out", "runs")
    assert code == 0
    assert out == "runs: 3 seeds of 15 steps, 3 stacked\n"
    assert interp("train", "bigram", *TINY, "--seed", 2, "--out", "alone")[0] == 0
    runs, alone = SeedRuns.load(tmp_path / "runs"), Run.load(tmp_path / "alone")
    assert runs.seeds == [0, 1, 2]
    assert runs[2].train_config == alone.train_config
    assert runs[2].config == alone.config


def test_a_seed_field_that_is_set_is_the_same_for_all(interp, tmp_path):
    assert interp("train", "bigram", *TINY, "--seeds", 2, "--set", "eval_seed=9", "--out", "runs")[0] == 0
    assert [run.train_config.eval_seed for run in SeedRuns.load(tmp_path / "runs")] == [9, 9]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", 2, "--seed", 1], "--seed 1 and --seeds exclude each other"),
        (["--seeds", 2, "--initial", "x"], "--initial x and --seeds exclude each other"),
        (["--how", "stacked"], "--how stacked needs --seeds"),
        (["--seeds", 0], "--seeds 0: say from how many seeds to train, at least 1"),
        (["--seeds", -3], "--seeds -3: say"),
        (["--seeds", 99_999_999], "99999999 seeds are more than 10000"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(interp, tmp_path, arguments, says):
    code, out, err = interp("train", "bigram", *TINY, *arguments, "--out", "runs")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.refusal
def test_an_unknown_way_is_refused_in_one_line(interp, tmp_path):
    code, _, err = interp("train", "bigram", *TINY, "--seeds", 2, "--how", "fast", "--out", "runs")
    assert code == 2
    assert err == "error: how = 'fast' is unknown: choose 'measured', 'stacked' or 'alone'\n"


def test_a_report_of_seeds_looks_for_the_task_that_is_named(interp):
    assert interp("train", "bigram", *TINY, "--seeds", 2, "--out", "runs")[0] == 0
    code, _, err = interp("report", "runs", "--task", "nofile.py:Mine")
    assert (code, err) == (2, "error: nofile.py does not exist: give your task as file.py:Class\n")

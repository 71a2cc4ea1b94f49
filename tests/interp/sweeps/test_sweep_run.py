"""Sweeps: every trial once, whatever fails, dies or is stopped; the table; real workers, local and Ray's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from interp import Run, cli
from interp.sweeps import sweep_run
from interp.sweeps.sweep_run import run_sweep
from interp.sweeps.trial import Outcome, do_trial
from tasks import InputError

ROOT = Path(__file__).parents[3]


class InThisProcess:
    """A pool whose worker is the test; ``deaths`` says how often the worker of a label dies first."""

    n_slots = 2
    deaths: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, out, train_trial, **_):
        self.out, self.train_trial, self.waiting = out, train_trial, []

    def submit(self, trial):
        self.waiting.append(trial)

    def wait(self, _seconds):
        trial = self.waiting.pop(0)
        if self.deaths.get(trial.label, 0):
            self.deaths[trial.label] -= 1
            return [(trial, "signal SIGKILL")]
        do_trial(trial, self.out, self.train_trial)
        return [(trial, None)]

    def stop(self): ...


@pytest.fixture
def sweep(sweep_file, tmp_path, monkeypatch):
    """Run a sweep in this process: its table, and the labels of the trials that were trained."""
    monkeypatch.setattr(sweep_run, "LocalPool", InThisProcess)
    monkeypatch.setattr(InThisProcess, "deaths", {})

    def sweep(train=None, deaths=None, **replaced):
        done = []

        def noted(trial, folder):
            done.append(trial.label)
            return {"loss": trial.varied["lr"] * trial.seed} if train is None else train(trial, folder)

        InThisProcess.deaths = dict(deaths or {})
        return run_sweep(sweep_file(**replaced), noted, out=tmp_path / "out", progress=False), done

    return sweep


def table_of(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv", keep_default_na=False)


def test_the_table_has_every_trial_in_the_files_order_and_is_the_only_csv(sweep, tmp_path):
    table, done = sweep()
    assert table.columns.tolist() == ["trial", "d_model", "lr", "seed", "status", "error", "loss"]
    assert table["loss"].tolist() == [rate * seed for _ in (8, 16) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)]
    assert set(table["status"]) == {"done"}
    assert len(done) == 12
    assert [path.name for path in (tmp_path / "out").glob("*.csv")] == ["trials.csv"]
    assert {path.name for path in (tmp_path / "out" / "trials").iterdir()} == set(table["trial"])
    pd.testing.assert_frame_equal(table_of(tmp_path / "out"), table)


def test_what_has_ended_is_never_run_again(sweep, tmp_path):
    sweep()
    before = (tmp_path / "out" / "trials.csv").read_bytes()
    _, again = sweep()
    assert again == []
    assert (tmp_path / "out" / "trials.csv").read_bytes() == before


def test_a_file_that_has_grown_adds_trials(sweep):
    sweep()
    table, done = sweep(**{"[8, 16]": "[8, 16, 32]"})
    assert len(table) == 18
    assert all(label.startswith("d_model = 32") for label in done)
    assert len(done) == 6


def test_a_trial_that_fails_is_listed_with_its_error_and_stops_nothing(sweep, tmp_path):
    def train(trial, folder):
        if trial.seed == 1 and trial.varied["lr"] == 0.2:
            raise InputError("no luck:\ntry again")
        if trial.seed == 1 and trial.varied["lr"] == 0.3:
            raise ZeroDivisionError("by\nzero")
        return {"loss": 1.0}

    table, _ = sweep(train)
    assert table["status"].value_counts().to_dict() == {"done": 8, "failed": 4}
    errors = table[table["status"] == "failed"]["error"].tolist()
    assert errors == ["no luck: try again", "ZeroDivisionError: by zero"] * 2
    failed = table[table["error"].str.startswith("Zero")]["trial"].iloc[0]
    assert "raise ZeroDivisionError" in (tmp_path / "out" / "trials" / failed / "traceback.txt").read_text()
    _, again = sweep(train)
    assert again == []


def test_an_error_names_folders_as_seen_from_the_table(sweep):
    def train(trial, folder):
        raise InputError(f"the last checkpoint lies in {folder}: look there")

    table, _ = sweep(train)
    expected = [f"the last checkpoint lies in trials/{key}/run: look there" for key in table["trial"]]
    assert table["error"].tolist() == expected


def test_a_trial_whose_worker_died_is_run_again(sweep):
    table, done = sweep(deaths={"d_model = 8, lr = 0.2, seed = 0": 2})
    assert set(table["status"]) == {"done"}
    assert len(done) == len(set(done)) == 12


def test_a_trial_that_kills_every_worker_ends_as_failed(sweep):
    table, done = sweep(deaths={"d_model = 8, lr = 0.2, seed = 0": 9})
    failed = table[table["status"] == "failed"]
    assert failed["error"].tolist() == ["its worker died 3 times, at last of signal SIGKILL"]
    assert len(done) == 11


def test_an_interruption_stops_between_trials_and_the_same_call_continues(sweep, tmp_path):
    def train(trial, folder):
        if (trial.varied["d_model"], trial.varied["lr"], trial.seed) == (8, 0.2, 1):
            signal.raise_signal(signal.SIGINT)
        return {"loss": 1.0}

    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        sweep(train)
    assert table_of(tmp_path / "out")["status"].tolist() == ["done"] * 4 + ["open"] * 8
    _, rest = sweep()
    assert len(rest) == 8


def test_a_damaged_outcome_is_refused_by_name(sweep, tmp_path):
    table, _ = sweep()
    path = tmp_path / "out" / "trials" / table["trial"][0] / "outcome.json"
    whole = path.read_text()
    for damaged in (whole[:20], "[]", '{"status": "open"}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"outcome.json is damaged .* delete it, and the trial is run again"):
            sweep()
    path.unlink()
    assert len(sweep()[1]) == 1


@pytest.mark.refusal
@pytest.mark.parametrize("damaged", ['{"status": "won"}', '{"status": "done", "figures": 3}', '{"status": 1}'])
def test_an_outcome_of_wrong_types_is_refused_by_name(sweep, tmp_path, damaged):
    table, _ = sweep()
    (tmp_path / "out" / "trials" / table["trial"][0] / "outcome.json").write_text(damaged)
    with pytest.raises(InputError, match=r"outcome.json is damaged .* delete it, and the trial is run again"):
        sweep()


def test_folders_of_trials_that_changed_places_are_refused(sweep, tmp_path):
    table, _ = sweep()
    one, other = (tmp_path / "out" / "trials" / key for key in table["trial"][:2])
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(InputError, match=f"is the outcome of the trial {other.name}"):
        sweep()


def test_figures_of_one_trial_only_are_columns_too(sweep):
    table, _ = sweep(lambda trial, _: {"loss": 1.0} | ({"risk": 2.0, "step": 4} if trial.seed else {}))
    assert table["step"].tolist()[1::2] == [4] * 6
    assert str(table["step"].dtype) == "Int64"
    assert table["risk"].notna().tolist() == [False, True] * 6


def test_a_folder_of_something_else_is_refused(sweep, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        sweep()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", "0"], "workers = 0: expected at least 1"),
        (["--address", "auto"], "address = 'auto' is for the engine ray"),
        (["--engine", "ray", "--address", "auto", "--workers", "2"], "without workers"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(sweep_file, tmp_path, capsys, options, says):
    assert cli.run(["sweep", str(sweep_file()), *options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.refusal
def test_an_unknown_engine_is_refused_in_one_line(sweep_file, tmp_path, capsys):
    assert cli.run(["sweep", str(sweep_file()), "--engine", "slurm", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: engine = 'slurm' is unknown: choose 'local' or 'ray'\n"


def test_without_ray_one_line_says_what_to_install(sweep_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.run(["sweep", str(sweep_file()), "--engine", "ray", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said == "error: the engine ray needs Ray, which is not installed: pip install 'icl-interp[cluster]'\n"
    assert not (tmp_path / "out").exists()


def test_gpus_on_the_local_engine_are_refused(sweep_file, tmp_path):
    path = sweep_file(**{"[settings]": "[resources]\ngpus = 0.5\n[settings]"})
    with pytest.raises(InputError, match="only the engine ray shares GPUs out"):
        run_sweep(path, cli.train_trial, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_trial_that_wants_more_cores_than_there_are_is_refused(sweep_file, tmp_path):
    path = sweep_file(**{"[settings]": "[resources]\ncpus = 4096\n[settings]"})
    with pytest.raises(InputError, match=r"resources.cpus = 4096 but this machine has \d+"):
        run_sweep(path, cli.train_trial, out=tmp_path / "out", progress=False)


def test_two_sweeps_in_one_folder_at_a_time_are_refused(sweep, sweep_file, tmp_path):
    def train(trial, folder):
        with pytest.raises(InputError, match="by another process"):
            run_sweep(sweep_file(), lambda *_: {}, out=tmp_path / "out", progress=False)
        return {"loss": 1.0}

    assert set(sweep(train, **{"[8, 16]": "[8]", "[0.1, 0.2, 0.3]": "[0.1]"})[0]["status"]) == {"done"}


SLOW_TRIALS = """
import os, time
from pathlib import Path

def train_trial(trial, folder):
    log = Path(os.environ["TRIALS_LOG"])
    with log.open("a") as file:
        file.write(f"start {trial.key} {os.getpid()}\\n")
    time.sleep(0.4)
    with log.open("a") as file:
        file.write(f"end {trial.key} {os.getpid()}\\n")
    return {"loss": float(trial.seed)}
"""
DRIVER = """
import sys
from interp.sweeps.sweep_run import run_sweep
import slow_trials

if __name__ == "__main__":
    run_sweep(sys.argv[1], slow_trials.train_trial, out=sys.argv[2], engine=sys.argv[3], workers=2)
"""


CTRL_C_AT_A_YOUNG_WORKER = """
import multiprocessing, os, signal
from pathlib import Path
from interp.cli import train_trial
from interp.sweeps.local_pool import LocalPool
from interp.sweeps.trial import Trial

if __name__ == "__main__":
    pool = LocalPool(Path("out"), train_trial, workers=1, cpus=1, gpus=0)
    pool.submit(Trial("no-such-task", None, {}, 0))
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    ended = []
    while not ended:
        ended = pool.wait(0.5)
    pool.stop()
    print(ended[0][1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_killing_a_worker_and_then_the_driver_loses_no_finished_trial_and_repeats_none(sweep_file, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    (tmp_path / "slow_trials.py").write_text(SLOW_TRIALS)
    (tmp_path / "driver.py").write_text(DRIVER)
    log, out = tmp_path / "log", tmp_path / "out"
    log.write_text("")
    environment = {**os.environ, "TRIALS_LOG": str(log), "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, str(tmp_path / "driver.py"), str(sweep_file()), str(out), engine]

    def logged(kind):
        return [line.split()[1:] for line in log.read_text().splitlines() if line.startswith(kind)]

    def wait_for(condition):
        limit = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < limit
            time.sleep(0.05)

    driver = subprocess.Popen(command, env=environment)
    wait_for(lambda: len(logged("start")) >= 3)
    killed_key, worker = logged("start")[-1]
    os.kill(int(worker), signal.SIGKILL)
    wait_for(lambda: len([key for key, _ in logged("start") if key == killed_key]) == 2)  # it is run again
    wait_for(lambda: len(logged("end")) >= 6)
    driver.kill()
    driver.wait()
    ended = {path.parent.name: path.read_bytes() for path in out.glob("trials/*/outcome.json")}
    assert 4 <= len(ended) < 12

    assert subprocess.run(command, env=environment, check=False).returncode == 0
    table = table_of(out)
    assert table["status"].tolist() == ["done"] * 12
    assert table["loss"].tolist() == [0.0, 1.0] * 6
    for key, outcome in ended.items():
        assert (out / "trials" / key / "outcome.json").read_bytes() == outcome
        assert sum(key == one for one, _ in logged("end")) == 1


@pytest.mark.slow
def test_a_worker_that_is_still_importing_survives_ctrl_c(tmp_path):
    (tmp_path / "driver.py").write_text(CTRL_C_AT_A_YOUNG_WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "driver.py"], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


@pytest.mark.slow
def test_the_local_engine_and_ray_make_the_same_table(sweep_file, tmp_path):
    pytest.importorskip("ray")
    path = sweep_file()
    tables = {}
    for engine in ("local", "ray"):
        out = tmp_path / engine
        script = "from interp.cli import main\nif __name__ == '__main__': main()"
        (tmp_path / "interp_command.py").write_text(script)
        command = [sys.executable, "interp_command.py", "sweep", str(path), "--engine", engine, "--workers", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, "--out", str(out)], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0
        tables[engine] = (out / "trials.csv").read_bytes()
    assert tables["local"] == tables["ray"]
    table = table_of(tmp_path / "local")
    assert table["status"].tolist() == ["done"] * 12
    assert table["loss"].nunique() == 12
    run = Run.load(tmp_path / "ray" / "trials" / table["trial"][5] / "run")
    assert (run.config.d_model, run.train_config.lr, run.train_config.init_seed) == (8, 0.3, 3)
    outcome = Outcome.read(tmp_path / "ray" / "trials" / table["trial"][5])
    assert outcome is not None
    assert outcome.figures["loss"] == run.history["loss"].iloc[-1]
    assert json.loads((tmp_path / "ray" / "sweep.json").read_text())["format"] == 1

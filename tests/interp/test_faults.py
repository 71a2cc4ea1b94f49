"""What can go wrong with a run's folder: kills, full disks, two writers, swapped files, signals. Nothing is lost."""

import errno
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import interp.trainee
from interp import Run, TrainConfig, cli, train
from interp.checkpoints import CHECKPOINT_FOLDER, MANIFEST_FILE, read_tensors, state_path, weights_path
from interp.folder_lock import RunWarning, folder_lock
from tasks.errors import InputError

TRAINING = TrainConfig(steps=24, batch_size=4, eval_prompts=4, log_every=3, checkpoint_every=4)
EVERY_STEP = TrainConfig(steps=24, batch_size=4, eval_prompts=4, log_every=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def start(task, model_config) -> Callable[..., Run]:
    def start(folder: Path, config: TrainConfig = TRAINING, **options) -> Run:
        return train(task, model_config, config, out=folder, progress=False, **options)

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> Run:
    """The run that nothing happened to."""
    return start(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(whole.path, tmp_path / "run")


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same_run(one: Run, other: Run) -> None:
    assert one.steps == other.steps
    for step in one.steps:
        for path in (weights_path, state_path):
            here, _ = read_tensors(path(one.path, step))
            there, _ = read_tensors(path(other.path, step))
            assert here.keys() == there.keys()
            assert all(torch.equal(here[name], there[name]) for name in here), f"{path.__name__} of step {step}"
    histories = [run.history.drop(columns="seconds") for run in (one, other)]
    assert histories[0].equals(histories[1])
    assert set(other.verify()["verdict"]) == {"intact"}
    assert not [path.name for path in other.path.rglob("*") if path.name.endswith(".unfinished")]


def in_a_child(work: Callable[[], object]) -> int:
    """Start a process that does the work and nothing else; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """How a child ended: its exit code, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Kills


def kill_at_a_moment(start, folder: Path, config: TrainConfig, seconds: float) -> bool:
    """Whether a training could be killed so long after it began; afterwards the folder is readable, or not begun."""
    child = in_a_child(lambda: start(folder, config))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    if end_of(child) != -signal.SIGKILL:
        return False
    assert_readable(folder)
    return True


def assert_readable(folder: Path) -> None:
    if (folder / "config.json").exists() and list(folder.glob(f"{CHECKPOINT_FOLDER}/step-*")):
        run = Run.load(folder)
        assert all(run.at(step) is not None for step in run.steps)
        assert set(run.verify()["verdict"]) == {"intact"}


def kills_at_random_moments(start, tmp_path: Path, n_kills: int, seed: int) -> None:
    moments = random.Random(seed)
    whole = start(tmp_path / "whole", EVERY_STEP)
    began = time.perf_counter()
    assert end_of(in_a_child(lambda: start(tmp_path / "timed", EVERY_STEP))) == 0
    duration = time.perf_counter() - began
    kills = 0
    for attempt in range(20 * n_kills):
        folder = tmp_path / f"killed-{attempt}"
        # Every third is killed a second time, after it has gone on.
        for _ in range(2 if attempt % 3 == 0 else 1):
            kills += kill_at_a_moment(start, folder, EVERY_STEP, moments.uniform(0, duration))
        assert_same_run(whole, start(folder, EVERY_STEP))
        if kills >= n_kills:
            return
    pytest.fail(f"only {kills} of the trainings lived long enough to be killed")


def test_trainings_killed_at_3_random_moments_end_bit_for_bit_like_one_that_was_not(start, tmp_path):
    kills_at_random_moments(start, tmp_path, 3, seed=0)


@pytest.mark.slow
def test_trainings_killed_at_25_random_moments_end_bit_for_bit_like_one_that_was_not(start, tmp_path):
    kills_at_random_moments(start, tmp_path, 25, seed=1)


def killing_itself_at_call(k: int) -> Callable[[], None]:
    """Make the k-th call of what writes to the disk the process' last: each call dies before and after its work."""

    def prepare() -> None:
        calls = 0

        def dying(real):
            def call(*arguments):
                nonlocal calls
                calls += 1
                if calls == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = real(*arguments)
                calls += 1
                if calls == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return call

        os.fsync, Path.replace = dying(os.fsync), dying(Path.replace)  # pyright: ignore[reportAttributeAccessIssue]

    return prepare


def die_at_call(start, folder: Path, k: int) -> int:
    def work() -> None:
        killing_itself_at_call(k)()
        start(folder)

    return end_of(in_a_child(work))


@pytest.mark.parametrize("k", [3, 51, 88])
def test_a_training_killed_within_a_write_ends_bit_for_bit_like_one_that_was_not(start, whole, tmp_path, k):
    assert die_at_call(start, tmp_path / "run", k) == -signal.SIGKILL
    assert_readable(tmp_path / "run")
    assert_same_run(whole, start(tmp_path / "run"))


@pytest.mark.slow
def test_a_training_killed_at_any_call_that_writes_ends_bit_for_bit_like_one_that_was_not(start, whole, tmp_path):
    for k in range(1, 1000):
        ended = die_at_call(start, tmp_path / f"run-{k}", k)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        assert_readable(tmp_path / f"run-{k}")
        assert_same_run(whole, start(tmp_path / f"run-{k}"))
    # A write is two flushes and a renaming, each with a before and an after: config, corpus, rows, checkpoints.
    assert k == 1 + 6 * (1 + 1 + 9 + 3 * 7)


# A full disk


@pytest.mark.parametrize("failing_call", [1, 4, 7, 20, 40])
def test_a_disk_that_is_full_costs_no_checkpoint_and_the_same_call_continues(
    start, whole, tmp_path, monkeypatch, failing_call
):
    real, calls = os.fsync, 0

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls >= failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    message = refused(lambda: start(tmp_path / "run"))
    assert "cannot be written (No space left on device): make room" in message
    monkeypatch.undo()
    assert_readable(tmp_path / "run")
    assert_same_run(whole, start(tmp_path / "run"))


TINY = ["train", "bigram", "--preset", "bietti-full", "--set", "d_model=8", "--set", "seq_len=12"]
TINY += ["--set", "batch_size=4", "--set", "eval_prompts=8", "--set", "log_every=5", "--set", "checkpoint_every=5"]
TINY += ["--steps", "15", "--out", "run"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    err: str


def command(cwd: Path, prepare: Callable[[], object] = lambda: None) -> Ended:
    """``interp train`` in a process of its own, forked so that PyTorch need not be loaded again."""

    def work() -> None:
        os.chdir(cwd)
        sys.stdout = sys.stderr = (cwd / "said.txt").open("w", buffering=1)
        prepare()
        os._exit(cli.run(TINY))

    code = end_of(in_a_child(work))
    lines = (cwd / "said.txt").read_text().splitlines(keepends=True)
    return Ended(code, "".join(line for line in lines if not line.startswith("run: ")))


def test_a_write_that_the_system_refuses_ends_the_command_with_2_and_one_line(tmp_path):
    def small_files_only() -> None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (20_000, 20_000)
        )  # the optimiser's state is larger, from the first step on

    done = command(tmp_path, small_files_only)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot be written (File too large): make room" in done.err
    assert Run.load(tmp_path / "run").steps == [0]
    assert command(tmp_path).code == 0
    assert Run.load(tmp_path / "run").steps == [0, 5, 10, 15]


# Two writers


def test_a_second_training_in_the_folder_is_refused_and_the_first_goes_on(start, whole, tmp_path):
    calls = []

    def second(model, prompts):
        if len(calls) == 1:  # the first figures are measured before the folder is taken
            said = refused(lambda: start(tmp_path / "run", readouts={"meanwhile": lambda *_: 0.0}))
            assert f"{tmp_path / 'run'} is being trained by another process" in said
        calls.append(model)
        return 0.0

    run = start(tmp_path / "run", readouts={"meanwhile": second})
    assert len(calls) > 3
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), whole.model.parameters(), strict=True))


def test_a_locked_folder_ends_the_command_with_2_and_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with folder_lock(tmp_path / "run"):
        before = sorted(path.name for path in (tmp_path / "run").iterdir())
        code = cli.run(TINY)
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1)
        assert "is being trained by another process" in said
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    assert cli.run(TINY) == 0


# Files that are not what was written


def test_a_file_of_another_run_in_the_place_of_ones_own_is_recognised_by_its_checksum(start, folder, tmp_path):
    other = start(tmp_path / "other", TrainConfig(**{**vars_of(TRAINING), "train_seed": 77}))
    for path in (weights_path, state_path):
        shutil.copy(path(other.path, 20), path(folder, 20))
    weights_path(folder, 24).unlink()
    run = Run.load(folder)
    said = refused(lambda: run.at(20))
    assert said.startswith(f"{weights_path(folder, 20)} is not the file that was written (its sha256 differs from")
    assert "delete this step's two files" in said
    assert said in refused(lambda: start(folder))
    assert run.verify().query("verdict == 'changed'")["file"].tolist() == [
        "state-000020.safetensors",
        "step-000020.safetensors",
    ]
    assert run.at(16) is not None  # the last good state


def vars_of(config: TrainConfig) -> dict:
    from interp.validated import given_fields

    return given_fields(config)


def test_a_state_of_another_run_is_recognised_and_without_it_training_goes_on_from_the_one_before(
    start, whole, folder, tmp_path
):
    other = start(tmp_path / "other", TrainConfig(**{**vars_of(TRAINING), "train_seed": 77}))
    weights_path(folder, 24).unlink()
    shutil.copy(state_path(other.path, 20), state_path(folder, 20))
    assert f"{state_path(folder, 20)} is not the file that was written" in refused(lambda: start(folder))
    for path in (weights_path, state_path):
        path(folder, 20).unlink()
    assert_same_run(whole, start(folder))


def test_a_checkpoint_that_was_put_there_by_hand_is_recognised(folder):
    shutil.copy(weights_path(folder, 20), weights_path(folder, 21))
    assert "swapped" in refused(lambda: Run.load(folder).at(21))  # it says of itself that it is of step 20
    verdicts = dict(Run.load(folder).verify().itertuples(index=False))
    assert verdicts["step-000021.safetensors"] == "changed"
    state_path(folder, 20).unlink()
    assert Run.load(folder).verify().query("verdict == 'missing'")["file"].tolist() == ["state-000020.safetensors"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": 2, "sha256": {}}', b'{"format": 1, "sha256": [1]}', b"\xff"]
)
def test_a_damaged_manifest_is_recognised(folder, content):
    manifest = folder / CHECKPOINT_FOLDER / MANIFEST_FILE
    manifest.write_bytes(content)
    said = refused(lambda: Run.load(folder).model)
    assert said.startswith(f"{manifest} is damaged")
    manifest.unlink()
    assert Run.load(folder).model is not None


def test_a_run_without_checksums_loads_says_so_and_has_them_once_it_goes_on(start, whole, folder):
    (folder / CHECKPOINT_FOLDER / MANIFEST_FILE).unlink()
    assert set(Run.load(folder).verify()["verdict"]) == {"no checksum"}
    assert Run.load(folder).model is not None
    weights_path(folder, 24).unlink()
    assert_same_run(whole, start(folder))


@pytest.mark.parametrize("name", ["bietti-full-2x4", "sparse-regression-small"])
def test_the_shipped_runs_load_and_say_what_is_known_of_their_files(name):
    run = Run.shipped(name)
    assert set(run.verify()["verdict"]) <= {"no checksum", "intact"}
    assert len(run.verify()) == len(run.steps)


def test_a_history_with_a_gap_is_not_continued(start, folder):
    weights_path(folder, 24).unlink()
    history = folder / "history.csv"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:4] + lines[5:]))
    assert f"{history} lacks the row of step 9" in refused(lambda: start(folder))
    history.write_text("".join([*lines[:4], "7" + lines[3][1:], *lines[4:]]))
    assert "step 7" in refused(lambda: start(folder))
    history.write_text("".join(lines))
    assert start(folder).steps[-1] == 24


# Other versions


def test_going_on_under_another_version_is_said(start, folder, monkeypatch):
    for step in (24, 20):
        weights_path(folder, step).unlink()
    monkeypatch.setattr(interp.trainee, "versions", lambda: {"torch": "99.0"})
    stop_at(monkeypatch, 18)
    with pytest.raises(KeyboardInterrupt):
        start(folder)
    monkeypatch.undo()
    with pytest.warns(RunWarning, match=r"goes on with other versions \(torch 99\.0 then and .* now\)"):
        start(folder)


def stop_at(monkeypatch, step: int) -> None:
    """From now on a training is asked to stop at this step."""
    real = interp.trainee.Trainee.take_step

    def take_step(self, task):
        done = real(self, task)
        if done == step:
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(interp.trainee.Trainee, "take_step", take_step)


def test_a_record_of_another_version_says_so_beside_what_is_not_understood(folder):
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    here = Run.load(folder).record.versions["interp"]
    config.write_text(
        text.replace(f'"interp": "{here}"', '"interp": "9.0"').replace('"log_every"', '"log_each"'), encoding="utf-8"
    )
    said = refused(lambda: Run.load(folder))
    assert "has no 'log_each'" in said
    assert f"(interp 9.0 then and {here} now)" in said


# Signals


def raising(number: signal.Signals, times: int) -> Callable[[], None]:
    """Make step 7 of a training the moment of so many signals."""

    def prepare() -> None:
        real = interp.trainee.Trainee.take_step

        def take_step(self, task):
            step = real(self, task)
            for _ in range(times if step == 7 else 0):
                signal.raise_signal(number)
            return step

        interp.trainee.Trainee.take_step = take_step

    return prepare


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_saves_and_ends_the_command_and_a_second_ends_it_at_once(tmp_path, number, code):
    done = command(tmp_path, raising(number, times=1))
    assert done == (code, "stopped after step 7 of 15: the same call continues\n")
    assert Run.load(tmp_path / "run").steps == [0, 5, 7]
    shutil.rmtree(tmp_path / "run")
    done = command(tmp_path, raising(number, times=2))
    assert done == (code, "stopped at once: the same call continues from the last checkpoint\n")
    assert Run.load(tmp_path / "run").steps == [0, 5]
    assert command(tmp_path).code == 0
    assert Run.load(tmp_path / "run").steps == [0, 5, 10, 15]

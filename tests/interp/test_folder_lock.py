"""The lock of a run folder: one holder, who is named, and no lock that outlives its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from interp.folder_lock import LOCK_FILE, RunWarning, folder_lock
from tasks.errors import InputError


def test_a_second_holder_is_refused_by_the_name_of_the_first_and_afterwards_welcome(tmp_path):
    with folder_lock(tmp_path):
        with (
            pytest.raises(InputError, match=rf"another process \(process {os.getpid()} on ") as error,
            folder_lock(tmp_path),
        ):
            pass
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_the_lock_is_freed_by_an_error_in_the_block(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        _ = 1 / 0
    with folder_lock(tmp_path):
        pass


def test_a_killed_process_frees_its_lock(tmp_path):
    script = (
        "import sys, time, pathlib\nfrom interp.folder_lock import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on"), folder_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / LOCK_FILE).exists()
        with folder_lock(tmp_path):
            pass
        assert not (tmp_path / LOCK_FILE).exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_lock_file_that_its_holder_took_away_meanwhile_is_not_mistaken_for_the_lock(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def flock(file, how):
        real(file, how)
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()  # as the holder before does just before it lets go

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError, match="being trained"), folder_lock(tmp_path):
            pass


def test_a_file_system_without_locks_is_said_and_the_block_runs(tmp_path, monkeypatch):
    def flock(_file, _how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    ran = False
    with pytest.warns(RunWarning, match=r"cannot be locked \(No locks available\): see to it"), folder_lock(tmp_path):
        ran = True
    assert ran


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"), folder_lock(tmp_path / "nowhere"):
        pass

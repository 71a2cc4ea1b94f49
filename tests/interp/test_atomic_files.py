"""Atomic writes: the old content or the new, never a part."""

import errno
import os
import stat

import pytest

from interp.atomic_files import is_unfinished, make_folder, remove_unfinished, write_atomically
from tasks.errors import InputError


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_full_disk_leaves_the_old_content_no_remains_and_one_line(tmp_path, monkeypatch, failing):
    def fail(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    write_atomically(path, b"old")
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(type(tmp_path), "open", fail)
    with pytest.raises(InputError, match=r"file cannot be written \(No space left on device\): make room") as error:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_leaves_the_old_content_and_remains_that_are_known_and_removed(tmp_path, monkeypatch):
    class PowerCut(BaseException):
        pass

    def fail(_descriptor):
        raise PowerCut

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PowerCut):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [is_unfinished(other) for other in sorted(tmp_path.iterdir())] == [True, False]
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_flushed_on_its_file_system_is_no_failure(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "file", b"data")
    assert len(calls) == 2
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_folder_under_a_file_cannot_be_made(tmp_path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / "file" / "folder")


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), real_fsync(descriptor)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, other: (events.append("rename"), real_replace(self, other))[1]
    )
    write_atomically(tmp_path / "file", b"data")
    assert events == ["flush", "rename", "flush"]

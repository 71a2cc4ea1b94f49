"""Atomic writes: the old content or the new, never a part."""

import os

import pytest

from interp.atomic_files import is_unfinished, write_atomically


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_the_end_leaves_the_old_content(tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError("disk full")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [is_unfinished(other) for other in sorted(tmp_path.iterdir())] == [True, False]


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("flush"), real_fsync(descriptor)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, other: (events.append("rename"), real_replace(self, other))[1]
    )
    write_atomically(tmp_path / "file", b"data")
    assert events == ["flush", "rename", "flush"]

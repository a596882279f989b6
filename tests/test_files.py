"""Files that are whole or absent, after a power cut too."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pyuniversal.files import check_writable, write_json

posix = pytest.mark.skipif(os.name != "posix", reason="folders can be synchronised on POSIX alone")


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """What was synchronised and renamed, in order: ("sync", name) and ("rename", name)."""
    found, sync, rename = [], os.fsync, os.replace

    def fsync(handle: int) -> None:
        found.append(("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file", Path(f"/proc/self/fd/{handle}").readlink().name))
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        found.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return found


@posix
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of handles are read from /proc")
def test_a_rename_and_a_new_folder_are_on_the_disk_before_the_next_thing(tmp_path, events):
    out = tmp_path / "new" / "deeper"
    write_json(out / "a.json", 1)
    assert [kind for kind, _ in events] == ["sync folder", "sync folder", "sync file", "rename", "sync folder"]
    assert {name for _, name in events[:2]} == {"new", tmp_path.name}, "the folders in which new ones are named"
    assert events[2][1].startswith(".a.json.")
    assert events[3:] == [("rename", "a.json"), ("sync folder", "deeper")]
    events.clear()
    write_json(out / "a.json", 2)
    assert [kind for kind, _ in events] == ["sync file", "rename", "sync folder"]
    events.clear()
    check_writable(tmp_path / "other")
    assert events == [("sync folder", tmp_path.name)]


@posix
def test_a_file_system_that_cannot_synchronise_folders_is_no_error(tmp_path, monkeypatch):
    sync = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "new" / "a.json", [1])
    assert (tmp_path / "new" / "a.json").read_text() == "[\n  1\n]\n"

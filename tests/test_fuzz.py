"""Damaged files of every kind: each reader refuses in words or returns a value that holds water. tools/fuzz.py does the same for as long as one likes."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, Reader, damaged, examine

from pyuniversal.errors import FileError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Valid folders, each made once."""
    folders: dict[object, Path] = {}

    def get(reader: Reader) -> Path:
        if reader.make not in folders:
            folders[reader.make] = tmp_path_factory.mktemp("valid")
            reader.make(folders[reader.make])
        return folders[reader.make]

    return get


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, made):
    reader = READERS[name]
    folder = made(reader)
    whole = (folder / reader.file).read_bytes()
    assert examine(reader, folder, whole).kind == "read", "what is whole must be read"

    @settings(max_examples=reader.examples, suppress_health_check=list(HealthCheck))
    @given(damaged(reader, folder))
    def fuzz(content):
        problem = examine(reader, folder, content).problem
        assert problem is None, problem

    fuzz()


def test_the_judge_is_awake(tmp_path):
    """What `examine` calls a failure: another exception, a message without the file, a value that is none, and time."""
    (tmp_path / "x").write_bytes(b"whole")

    def judge(read):
        found = examine(Reader("", lambda folder: None, "x", st.just, read), tmp_path, b"damaged")
        assert (tmp_path / "x").read_bytes() == b"whole"
        return found

    def raising(error):
        def read(folder):
            assert (folder / "x").read_bytes() == b"damaged"
            raise error

        return read

    assert judge(lambda folder: None) == ("read", None)
    assert judge(raising(FileError("x is damaged"))) == ("refused", None)
    for error, words in (
        (FileError("something is damaged"), "the message does not name the file: something is damaged"),
        (KeyError("layers"), "KeyError: 'layers'"),
        (MemoryError(), "MemoryError"),
        (RecursionError(), "RecursionError"),
    ):
        kind, problem = judge(raising(error))
        assert kind == "failed"
        assert problem.startswith(words)


def test_the_judge_counts_time_and_memory(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"whole")

    def judge(read):
        return examine(Reader("", lambda folder: None, "x", st.just, read), tmp_path, b"damaged")

    monkeypatch.setattr("readers.SECONDS", 1)
    assert judge(lambda folder: time.sleep(5)).problem.startswith("TooSlow: 1 s are over")
    monkeypatch.setattr("readers.MOST_BYTES", 1 << 25)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[1]) * resource.getpagesize()
    assert "took 0." in judge(lambda folder: len(b"x" * (peak - now + (1 << 27)))).problem

"""The options of conftest.py: a skipped backend must not pass for a passed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyuniversal import _C

TESTS = """
import importlib.metadata
import pytest

class Op:
    name = "shout"
    def why_not(self, backend, text):
        return None if backend in ("reference", "cpu") else "it has no voice"
    def __call__(self, text, backend):
        return f"{backend}: {text}"

def test_shout(backend):
    assert backend.run(Op(), "hey") == f"{backend.name}: hey"

@pytest.mark.backend("cuda")
def test_alone():
    pytest.skip("no such card")

@pytest.mark.backend("triton")
def test_whisper():
    pytest.skip("whisper on triton: not implemented")

@pytest.mark.backend("triton")
def test_murmur():
    pytest.skip("murmur on triton: does not take float64")

@pytest.mark.backend("triton")
@pytest.mark.xfail(raises=ZeroDivisionError)
def test_known():
    1 / 0

@pytest.mark.lens(int(importlib.metadata.version("transformer_lens")[0]))
def test_this_lens():
    pass

@pytest.mark.lens(2)
def test_old_lens():
    raise AssertionError("must not run")
"""

HERE = len(_C.instruction_sets())  # of the four that the backend cpu is tested with


def outcome(folder: Path, *options: str) -> tuple[int, str]:
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "test_fake.py").write_text(TESTS)
    markers = "-o", "markers=backend(name):\nlens(major):"
    command = [sys.executable, "-m", "pytest", "-q", "-rsf", "--strict-markers", "-p", "no:cacheprovider", *markers, *options, str(folder)]
    host_only = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=host_only, check=False)
    return done.returncode, done.stdout + done.stderr


def test_skips_are_skips_unless_required(tmp_path):
    code, text = outcome(tmp_path)
    assert code == 0
    assert f"{2 + HERE} passed, {7 + 4 - HERE} skipped, 1 xfailed" in text
    assert "shout on triton: it has no voice" in text
    assert "cuda: this machine has no CUDA device" in text
    assert "needs TransformerLens 2" in text


def test_a_required_backend_fails_where_it_is_skipped(tmp_path):
    code, text = outcome(tmp_path, "--require-backend", "triton", "--require-backend", "cuda", "--require-backend", "cpu")
    assert code == 1
    assert "--require-backend triton, but: Skipped: shout on triton: it has no voice" in text
    assert "--require-backend cuda, but: Skipped: cuda: this machine has no CUDA device" in text
    assert "--require-backend cuda, but: Skipped: no such card" in text
    assert f"2 failed, {2 + HERE} passed, {4 + 4 - HERE} skipped, 1 xfailed, 1 error" in text


@pytest.mark.parametrize(
    ("options", "lacking"), [(["--require-lens", "3", "-k", "shout"], "--require-lens 3"), (["--require-backend", "cpu", "-k", "lens"], "cpu")]
)
def test_a_requirement_without_a_test_is_an_error(tmp_path, options, lacking):
    code, text = outcome(tmp_path, *options)
    assert code == 4
    assert "no test was collected for" in text
    assert lacking in text

"""What csrc/cuda becomes on an H100: no spills, wgmma that is not serialised, the loads and additions that were meant."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sm90 import Compiled, compiled_by_nvcc

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
pytest.importorskip("triton", reason="Triton brings the tool that shows machine code")

CUDA = Path(__file__).parents[2] / "csrc/cuda"


@pytest.fixture(scope="module")
def product() -> tuple[Compiled, str]:
    """The machine code, and what the compilers said."""
    return compiled_by_nvcc(CUDA / "product.cu")


def test_product_keeps_its_sums_in_registers(product):
    built, told = product
    assert not re.search(r"warning|Performance Loss|C75\d\d|ignored", told), told
    assert built.registers == 168  # of 384 threads, all that there are; setmaxnreg moves them: tests/emulated/product.cpp begins with as many
    assert built.spills == built.count("STL") == built.count("LDL") == 0
    assert built.count("IGMMA") >= 4
    assert built.count("ATOMG") == 0  # what is added does not come back


def test_product_is_what_was_meant(product):
    built, _ = product
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in version:
        pytest.skip("how instructions are written and counted was looked at with nvcc 13.0")
    assert re.findall(r"USETMAXREG\S* .*?(0x\w+)", built.sass) == ["0xe8", "0x28"]
    used = max(int(number) for number in re.findall(r"\bR(\d+)\b", built.sass))
    assert 168 < used < 232  # those that sum and scale do use what they got
    assert len(re.findall(r"IGMMA\.64x256x32\.S8\.S8", built.sass)) == 4 == built.count("IGMMA")
    # C7514 says that wgmma are serialised, C7517 that one is waited for where the source does not.
    assert built.count(r"WARPGROUP\.ARRIVE") == 1
    assert re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (\w+)", built.sass) == ["0x1", "0x0"]
    assert built.count(r"UTMALDG\.2D") == 2
    assert built.count(r"UTMALDG\.2D\.MULTICAST") == 1
    # In the loop nothing is fenced: only at the two barriers of the cluster, one of them at the end.
    assert built.count(r"MEMBAR\.ALL\.GPU") == built.count("UCGABAR_ARV") == 2
    assert built.count(r"REDG\.E\.ADD\.F32x2\.FTZ\.RN\.STRONG\.GPU") == 64
    assert built.count(r"REDG\.E\.ADD\.F32\.FTZ\.RN\.STRONG\.GPU") == 128

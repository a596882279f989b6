"""The CUDA kernel of product_ without a GPU: its source, compiled for a CPU with the instructions of an H100 as tests/emulated/sm90.h describes them.

Threads take turns at random, loads land late, and wgmma reads shared memory as late as it may; what a kernel must not rely on is an error.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))  # with what may stand before it, such as ccache
pytestmark = [
    pytest.mark.skipif(platform.system() != "Linux", reason="threads take turns by Linux's ucontext"),
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"there is no C++ compiler {COMPILER[0]}"),
]
Kernel = Callable[..., str]


def built(folder: Path, *changes: tuple[str, str]) -> ctypes.CDLL:
    """The kernel for a CPU; `changes` are made to its source first."""
    source = (ROOT / "csrc/cuda/product.cuh").read_text()
    for old, new in changes:
        assert source.count(old) == 1, f"{old} stands {source.count(old)} times in the kernel"
        source = source.replace(old, new)
    (folder / "product.cuh").write_text(source)
    # -march: the sums are most of the time. Nothing is contracted, as on the GPU: scales are multiplied, one after the other.
    flags = ["-std=c++17", "-O1", "-ftree-vectorize", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    native = ["-march=native"] if platform.machine() == "x86_64" else []
    emulated = ROOT / "tests/emulated"
    program = [*COMPILER, *flags, *native, f"-I{folder}", f"-I{emulated}", "-o", str(folder / "product.so"), str(emulated / "product.cpp")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    library = ctypes.CDLL(str(folder / "product.so"))
    library.product.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return built(tmp_path_factory.mktemp("product"))


def operand(rows: int, tokens: int, pitch: int, generator: np.random.Generator) -> np.ndarray:
    """int8 [rows, tokens], whose rows lie `pitch` bytes apart from a multiple of 16 on; between them stands what must not be read."""
    memory = np.full(rows * pitch + 16, 99, dtype=np.int8)
    start = -memory.ctypes.data % 16
    x = memory[start : start + rows * pitch].reshape(rows, pitch)[:, :tokens]
    x[:] = generator.integers(-127, 128, (rows, tokens))
    x[0], x[-1] = 127, -127
    return x


def run(library: ctypes.CDLL, shape: tuple[int, int, int], *, blocks: int, seed: int, start: int = 0, gap: int = 0) -> tuple[str, bool]:
    """What the emulation says, and whether the total is exact. The total lies from column `start` in a larger one, `gap` columns wider."""
    rows, columns, tokens = shape
    generator = np.random.default_rng(seed)
    pitch = -(-tokens // 16) * 16
    x, y = operand(rows, tokens, pitch, generator), operand(columns, tokens, pitch + 16, generator)
    x_scale, y_scale = (np.float32(0.5) ** generator.integers(0, 5, n).astype(np.float32) for n in (rows, columns))
    x_scale[rows // 2] = 0
    whole = generator.integers(-9, 10, (rows, start + columns + gap)).astype(np.float32)
    total = whole[:, start : start + columns]
    expected = whole.copy()
    sums = x.astype(np.int64) @ y.astype(np.int64).T
    expected[:, start : start + columns] += sums.astype(np.float32) * x_scale[:, None] * y_scale
    stride = whole.shape[1]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, total, x_scale, y_scale)]
    wide = [ctypes.c_int64(number) for number in (pitch, pitch + 16, stride, (rows - 1) * stride + columns)]
    problem = library.product(*pointers, rows, columns, tokens, *wide, blocks, ctypes.c_uint32(seed)).decode()
    return problem, np.array_equal(whole, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "blocks", "start", "gap"),
    [
        ((1, 1, 1), 2, 0, 0),
        ((128, 256, 128), 2, 0, 0),
        ((130, 300, 1041), 2, 0, 0),  # two tiles one after the other: the ring of stages goes on from where it was
        ((257, 513, 640), 4, 0, 0),  # an odd number of rows of tiles: the last pair has one without rows. An odd stride: nothing is added in pairs
        ((384, 512, 2048), 4, 2, 2),
        ((384, 512, 200), 2, 1, 1),  # pairs of columns begin between multiples of 8 bytes, in rows that are an even number apart
        ((256, 511, 129), 8, 0, 1),  # the last column has no neighbour, but its row has room for one
        ((2100, 300, 40), 4, 0, 0),  # more than one band of rows
    ],
)
def test_sums_are_exact_whoever_comes_first(kernel, shape, blocks, start, gap, seed):
    assert run(kernel, shape, blocks=blocks, seed=seed, start=start, gap=gap) == ("", True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sm90::wgmma_wait_group<1>();", ""),  # a stage is released while it is read
        ("parity ^= stage == 0", "parity ^= stage == kStages - 1"),
        ("if (lane < kCluster)", "if (lane == sm90::cluster_ctarank())"),  # the other block never hears that a stage is empty
        ("kEightRows = 8 * kTokens", "kEightRows = 4 * kTokens"),
        ("x + 2 * k, y + 2 * k", "x + 2 * k, y + k"),
        ("row += thread / 32 * 16 + thread % 32 / 4", "row += thread / 32 * 16 + thread % 8"),
        ("arrive_expect_tx(ring.full(), kStageBytes)", "arrive_expect_tx(ring.full(), kStageBytes - kSharedColumns * kTokens)"),
    ],
)
def test_the_emulation_notices(old, new, tmp_path):
    library = built(tmp_path, (old, new))
    outcomes = [run(library, (130, 300, 1041), blocks=2, seed=seed) for seed in range(3)]
    assert all(outcome != ("", True) for outcome in outcomes), outcomes

"""What all tests share: a quiet, offline, repeatable process, the `backend` fixture for ops, and options that turn a skip into a failure."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

# Read when the libraries are first imported, which is after this file. A value that is already set wins.
for variable, value in {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(variable, value)

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # where there is no GPU the kernels are interpreted, on tensors in host memory

BACKENDS = ("reference", "cpu", "triton", "cuda")
ISAS = ("generic", "avx2", "avx512f", "avx512vnni")
LENSES = (3, 4)
# Skips that no requirement turns into a failure: in no table, which tests/ops/test_op.py knows of; and float64, which the contracts leave to the reference.
NOT_PROMISED = ("not implemented", "does not take float64", "does not pack float64")

# The same examples each time, no time limit (machines are shared) and no folder of examples in the clone.
hypothesis.settings.register_profile("pyuniversal", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pyuniversal")


@dataclass(frozen=True)
class Backend:
    """A backend of ops under test."""

    name: str
    on_cuda: bool = False  # the reference, which runs anywhere, on tensors of a GPU
    isa: str = ""  # the instruction set of the backend cpu

    @property
    def device(self) -> str:
        """Where the arguments must lie."""
        on_host = not self.on_cuda and (self.name in ("reference", "cpu") or (self.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"))
        return "cpu" if on_host else "cuda"

    @property
    def interpreted(self) -> bool:
        """Kernels of Triton without a GPU: a thousand times slower than compiled ones."""
        return self.name == "triton" and self.device == "cpu"

    def run(self, op: Any, *arguments: Any, **options: Any) -> Any:
        """Run the op on this backend, or skip the test with the op's own words why it cannot."""
        if (reason := op.why_not(self.name, *arguments, **options)) is not None:
            pytest.skip(f"{op.name} on {self.name}: {reason}")
        with np.errstate(all="ignore"):  # Triton's interpreter computes with numpy, which warns of what a GPU does silently: Inf - Inf
            return op(*arguments, backend=self.name, **options)


@pytest.fixture(params=["reference", *(f"cpu {isa}" for isa in ISAS), "triton", "cuda", "reference on cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend in turn, the compiled one once for each instruction set. Usage, in a test of an op:

        def test_mean(backend):
            x = torch.ones(4, 3, device=backend.device)
            backend.run(moments_, state, x, [4])

    A test that needs one backend only says `@pytest.mark.backend("triton")`. `pytest --require-backend NAME` turns a skip of either kind into a failure;
    `--require-backend cpu` asks for the instruction set that every CPU has.
    """
    name, _, kind = request.param.partition(" ")
    chosen = Backend(name, on_cuda=kind == "on cuda", isa=kind if name == "cpu" else "")
    if chosen.isa:
        from pyuniversal import _C

        if chosen.isa not in _C.instruction_sets():
            pytest.skip(f"cpu: this machine or this build has no {chosen.isa}")
        monkeypatch.setenv("PYUNIVERSAL_ISA", chosen.isa)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{chosen.name}: this machine has no CUDA device")
    return chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-backend", action="append", default=[], choices=BACKENDS, help="fail where a test that needs this backend is skipped")
    parser.addoption("--require-lens", action="append", default=[], type=int, choices=LENSES, help="fail where a test of this TransformerLens is skipped")


def needs(item: pytest.Item) -> set[str]:
    """What the options can require that this test needs: {"--require-backend cuda"}."""
    callspec = getattr(item, "callspec", None)
    backends = {marker.args[0] for marker in item.iter_markers("backend")}
    if callspec is not None and "backend" in callspec.params:
        backends |= {callspec.params["backend"].removesuffix(" generic")} & {*BACKENDS}
    lenses = {marker.args[0] for marker in item.iter_markers("lens")}
    return {f"--require-backend {name}" for name in backends} | {f"--require-lens {major}" for major in lenses}


def required(config: pytest.Config) -> set[str]:
    backends, lenses = config.getoption("--require-backend"), config.getoption("--require-lens")
    return {f"--require-backend {name}" for name in backends} | {f"--require-lens {major}" for major in lenses}


def pytest_collection_finish(session: pytest.Session) -> None:
    """A requirement that no test could break would be an empty promise."""
    met = set().union(*(needs(item) for item in session.items))
    if lacking := required(session.config) - met:
        raise pytest.UsageError(f"no test was collected for {', '.join(sorted(lacking))}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("lens"):
        installed = importlib.metadata.version("transformer_lens")
        if installed.split(".")[0] != str(marker.args[0]):
            pytest.skip(f"needs TransformerLens {marker.args[0]}, {installed} is installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and (broken := needs(item) & required(item.config)):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.endswith(NOT_PROMISED):
            report.outcome, report.longrepr = "failed", f"{', '.join(sorted(broken))}, but: {reason}"
    return report

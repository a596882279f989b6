"""What an installed pyuniversal consists of. Building it in all its ways is `.ci/run`'s business."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import re
import sys
import tomllib
from pathlib import Path

import pytest

import pyuniversal
from pyuniversal import _C

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
QUERIES = {"instruction_set", "instruction_sets", "peak", "read_bandwidth"}  # of the machine
CUDA = {"cuda_problem", "cuda_product_"}  # where nvcc was there
OPS = sorted(name for name, value in vars(_C).items() if callable(value) and not name.startswith("_") and name not in QUERIES | CUDA)


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def canonical(requirement: str) -> str:
    """The name of the distribution that a requirement asks for, as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_version_is_the_same_everywhere():
    assert importlib.metadata.version("pyuniversal") == PROJECT["version"] == pyuniversal.__version__


def test_package_data_is_installed():
    files = importlib.resources.files("pyuniversal")
    assert (files / "py.typed").is_file()
    assert (files / "_C.pyi").is_file()
    zoo = files / "zoo"
    assert (zoo / "README.md").read_text(encoding="utf-8").strip()
    for seed in range(5):
        assert (zoo / f"seed-{seed}" / "config.json").is_file()
        assert list((zoo / f"seed-{seed}").glob("*.safetensors"))
    assert (zoo / "tokens" / "tokens.npy").is_file()


def test_compiled_ops_are_documented_typed_and_have_one_stem():
    assert OPS == ["dyadic_histogram_", "histogram_", "logit_stats", "moments_", "pair_sums_", "product_", "quantize", "summarize_correlation", "token_sums_"]
    stub = ast.parse((importlib.resources.files("pyuniversal") / "_C.pyi").read_text())
    functions = {node.name: [argument.arg for argument in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert functions.keys() == {*OPS, *QUERIES, *CUDA}
    assert all(hasattr(_C, op) == _C.has_cuda for op in CUDA)
    for op in OPS:
        assert op in _C.__doc__
        signature = getattr(_C, op).__doc__.splitlines()[0]
        assert re.findall(r"(\w+): ", signature) == functions[op]
        for path in (f"csrc/cpu/{op.rstrip('_')}.cpp", f"pyuniversal/ops/{op.rstrip('_')}.py"):
            assert (ROOT / path).is_file(), path


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="pyuniversal")
    assert command.value == "pyuniversal.cli:main"


def test_every_import_is_a_declared_dependency():
    declared = {canonical(requirement) for requirement in PROJECT["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    used = set()
    for path in (ROOT / "pyuniversal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                used.add(node.module.split(".")[0])
    foreign = used - set(sys.stdlib_module_names) - {"pyuniversal", "triton"}  # Triton comes with torch where there is a GPU
    assert {"torch", "click"} <= foreign
    undeclared = {name for name in foreign if not declared & {canonical(provider) for provider in providers.get(name, [name])}}
    assert undeclared == set()


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lens3.txt"])
def test_every_requirement_is_pinned(name):
    required = {canonical(r) for r in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]}
    assert required - set(pins(name)) == set()


def test_the_two_constraints_differ_in_transformer_lens_only():
    new, old = pins("constraints.txt"), pins("constraints-lens3.txt")
    assert {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)} == {"transformer-lens", "better-abc"}
    assert old["transformer-lens"] == "3.9.0"
    assert new["transformer-lens"] > "4"

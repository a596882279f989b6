"""The import law: a module imports only from layers below its own. And what importing the package must not cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Top to bottom. Names on one line are siblings, which do not import each other.
LAYERS = (
    "__init__ __main__",
    "cli",
    "cli_frame",
    "cli_types",
    "pipeline",
    "comparison stages",
    "results",
    "report",
    "table",
    "interventions",
    "families neurons roles universality",
    "streaming",
    "models sources tokens totals zoo",
    "ops",
    "kernels _C",
    "tokenizer_identity",
    "files",
    "errors float32",
)
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer.split()}
KERNELS_MAY_IMPORT = {"torch", "triton", *sys.stdlib_module_names}
ADDRESS = re.compile(r"pyuniversal(\.\w+)+(:\w+)?")


def imported(source: str, package: str) -> Iterator[str]:
    """Full names of all that a module imports, at any depth of it, and of the addresses it holds as strings ("pyuniversal.ops._native:moments_")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from . import files` names modules where `from .files import atomic` names the module's contents.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ADDRESS.fullmatch(node.value):
            yield node.value.split(":")[0]


def sources(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every source file with the parts of its module's name: ("pyuniversal", "ops", "moments")."""
    for folder, prefix in ((root / "pyuniversal", ("pyuniversal",)), (root / "kernels", ("pyuniversal", "kernels"))):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]):
            yield path, prefix + path.relative_to(folder).with_suffix("").parts


def violations(root: Path) -> list[str]:
    """All breaches of the law below `root`, in words."""
    found = []
    for path, module in sources(root):
        here = module[1]
        if here not in DEPTH:
            found.append(f"{'.'.join(module)} is in no layer: place {here} in LAYERS")
            continue
        for name in imported(path.read_text(encoding="utf-8"), ".".join(module[:-1])):
            top, _, rest = name.partition(".")
            there = rest.split(".")[0]
            if here == "kernels" and top not in KERNELS_MAY_IMPORT and there != "kernels":
                found.append(f"{'.'.join(module)} imports {name}: kernels import torch and triton only")
            elif top == "pyuniversal" and there != here and DEPTH.get(there, 0) <= DEPTH[here] and module[1:] != ("__init__",):
                # What is no module is a public name, which lives in __init__, above everything.
                found.append(f"{'.'.join(module)} imports {name}, which is not below it")
    return found


def test_imports_point_downwards():
    assert len(list(sources(ROOT))) > 20
    assert violations(ROOT) == []


LAWFUL = {
    "pyuniversal/__init__.py": "from .cli import main",
    "pyuniversal/cli.py": "from . import pipeline\nfrom .errors import InputError",
    "pyuniversal/ops/__init__.py": "from .moments import moments_",
    "pyuniversal/ops/moments.py": "import numpy\nfrom ..errors import InputError\nfrom ._op import Op\naddress = 'pyuniversal.kernels.moments:moments_'",
    "pyuniversal/ops/_native.py": "from .. import _C",
    "kernels/moments.py": "import math\nimport torch\nimport triton.language as tl\nfrom .tiles import tile",
}


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("pyuniversal/ops/up.py", "from ..cli import main", "pyuniversal.ops.up imports pyuniversal.cli.main, which is not below it"),
        ("pyuniversal/ops/up.py", "import pyuniversal.totals.product", "pyuniversal.ops.up imports pyuniversal.totals.product, which is not below it"),
        ("pyuniversal/ops/up.py", "from pyuniversal import models", "pyuniversal.ops.up imports pyuniversal.models, which is not below it"),
        ("pyuniversal/ops/up.py", "def f():\n    from .. import report\n", "pyuniversal.ops.up imports pyuniversal.report, which is not below it"),
        ("pyuniversal/ops/up.py", "f = 'pyuniversal.totals.moments:Moments'", "pyuniversal.ops.up imports pyuniversal.totals.moments, which is not below it"),
        ("pyuniversal/ops/deep/up.py", "from ...totals import Moments", "pyuniversal.ops.deep.up imports pyuniversal.totals.Moments, which is not below it"),
        ("pyuniversal/ops/deep/__init__.py", "from ...totals import x", "pyuniversal.ops.deep.__init__ imports pyuniversal.totals.x, which is not below it"),
        ("pyuniversal/ops/up.py", "import pyuniversal", "pyuniversal.ops.up imports pyuniversal, which is not below it"),
        ("pyuniversal/ops/up.py", "from .. import run", "pyuniversal.ops.up imports pyuniversal.run, which is not below it"),
        ("pyuniversal/ops/stub.pyi", "from ..cli import main", "pyuniversal.ops.stub imports pyuniversal.cli.main, which is not below it"),
        ("pyuniversal/models/hf.py", "from ..tokens import Tokens", "pyuniversal.models.hf imports pyuniversal.tokens.Tokens, which is not below it"),
        ("pyuniversal/errors.py", "from .files import atomic", "pyuniversal.errors imports pyuniversal.files.atomic, which is not below it"),
        ("pyuniversal/novel.py", "", "pyuniversal.novel is in no layer: place novel in LAYERS"),
        ("pyuniversal/unplaced/part.py", "", "pyuniversal.unplaced.part is in no layer: place unplaced in LAYERS"),
        ("kernels/up.py", "from pyuniversal.errors import InputError", "imports pyuniversal.errors.InputError: kernels import torch and triton only"),
        ("kernels/up.py", "def f():\n    import numpy", "pyuniversal.kernels.up imports numpy: kernels import torch and triton only"),
        ("kernels/up.py", "from ..ops import moments_", "pyuniversal.kernels.up imports pyuniversal.ops.moments_: kernels import torch and triton only"),
    ],
)
def test_the_law_catches(tmp_path, path, source, message):
    for name, text in LAWFUL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    (found,) = violations(tmp_path)
    assert message in found


HEAVY = "torch numpy pandas scipy matplotlib transformers transformer_lens datasets triton pyarrow"


@pytest.mark.parametrize(
    "statement",
    [
        "import pyuniversal",
        "import pyuniversal.cli, pyuniversal.pipeline",
        "from pyuniversal.cli import main; main(['--help'], standalone_mode=False)",
        "from pyuniversal.cli import main; main(['--version'], standalone_mode=False)",
        "from pyuniversal.cli import main; main(['run', '--help'], standalone_mode=False)",
    ],
)
def test_cheap_things_load_nothing_heavy(statement, tmp_path):
    report = f"import sys; print('loaded:', *sorted(set({HEAVY.split()}) & set(sys.modules)))"
    # Elsewhere, so that the installed package is found and not the folder of its sources.
    done = subprocess.run([sys.executable, "-c", f"{statement}\n{report}"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"

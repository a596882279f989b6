"""What a kernel in Triton or CUDA becomes on an H100, compiled without one.

    built = compiled("moments:_moments", {"x": "*bf16", "tokens": "i32"}, {"BLOCK": 128}, num_warps=4, num_stages=3)
    built.registers, built.spills, built.shared, built.count("IGMMA")

In a process of its own: in that of the tests, kernels are interpreted. `signature` types every argument that is no constant, in Triton's words ("*i8", "i32",
"tensordesc<i8[128, 128]>"). `divisible` names the arguments that are multiples of 16, as Triton finds for itself at a launch; pointers are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHARED_LIMIT = 227 * 1024  # bytes a block may have on an H100


@dataclass(frozen=True)
class Compiled:
    """Registers a thread, bytes of stack (spills) a thread, bytes of shared memory a block, and the machine code."""

    registers: int
    spills: int
    shared: int
    ptx: str
    sass: str

    def count(self, opcode: str) -> int:
        """How often an instruction stands in the machine code: count("IGMMA")."""
        return len(re.findall(rf"\b{opcode}\b", self.sass))


def compiled(kernel: str, signature: dict[str, str], constants: dict[str, Any], *, divisible: tuple[str, ...] = (), **options: Any) -> Compiled:
    """Compile `pyuniversal.kernels.<module>:<function>` for sm_90a."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    request = json.dumps([kernel, signature, constants, list(divisible), options])
    done = subprocess.run([sys.executable, __file__, request], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


def compiled_by_nvcc(source: Path) -> tuple[Compiled, str]:
    """Compile the one kernel of a CUDA source for sm_90a; and all that nvcc and ptxas had to say."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90a", "-cubin", "-Xptxas=-v,-warn-spills", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        registers, stack, sass = _inspect(cubin)
    return Compiled(registers, stack, 0, "", sass), done.stdout + done.stderr


def _inspect(cubin: Path) -> tuple[int, int, str]:
    """Registers, bytes of stack and machine code of a kernel."""
    import triton

    tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    usage, sass = (subprocess.run([tool, what, str(cubin)], capture_output=True, text=True, check=True).stdout for what in ("-res-usage", "-sass"))
    registers, stack = (int(found) for found in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    return registers, stack, sass


def _compile(kernel: str, signature: dict[str, str], constants: dict[str, Any], divisible: list[str], options: dict[str, Any]) -> Compiled:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = kernel.split(":")
    function = getattr(importlib.import_module(f"pyuniversal.kernels.{module}"), name)
    order = {argument: (i,) for i, argument in enumerate(function.arg_names)}
    assert set(order) == {*signature, *constants}, f"{kernel} takes {sorted(order)}"
    kinds = {argument: signature.get(argument, "constexpr") for argument in function.arg_names}
    attributes = {order[argument]: [["tt.divisibility", 16]] for argument, kind in kinds.items() if kind.startswith("*") or argument in divisible}
    source = ASTSource(fn=function, signature=kinds, constexprs={order[argument]: value for argument, value in constants.items()}, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        registers, stack, sass = _inspect(Path(file.name))
    return Compiled(registers, stack, built.metadata.shared, built.asm["ptx"], sass)


if __name__ == "__main__":
    print(json.dumps(asdict(_compile(*json.loads(sys.argv[1])))))  # noqa: T201

"""Runs of the real command line that are killed: a server process that has imported everything and forks a child for each run, and what a run left,
as values.

Started as a script, this is the server. A child is a process of its own, killed by SIGKILL like any other; it only saves the seconds that importing torch
takes.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

TMP = (".tmp",)


def prepare(*, pause: float, sweeps: bool) -> None:
    """In the process of a run: a checkpoint after every chunk, `pause` seconds of every write of a part, one product a sweep."""
    from pyuniversal.streaming import checkpoints, layout
    from pyuniversal.totals import ledger

    checkpoints.SECONDS, checkpoints.SHARE = 0.0, 1e9
    real = ledger.Ledger.write

    def slow(self: Any, name: str, save: Callable[[Path], None], chunks: Any) -> Path:
        time.sleep(pause / 2)
        path = real(self, name, save, chunks)
        time.sleep(pause / 2)
        return path

    ledger.Ledger.write = slow  # type: ignore[method-assign]
    if sweeps:  # of tiny products all fit in any memory
        groups = layout._groups
        layout._groups = lambda shapes, sizes, memory: groups(shapes, sizes, 0.0)


def terminate_at(address: str, call: int) -> None:
    """In the process of a run: SIGTERM as a function is called for the `call`-th time, "package.module:name" or "package.module:Class.name"."""
    module, _, names = address.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []

    def stopped(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)

    setattr(owner, name, stopped)


def say(value: object) -> None:
    """A line for the parent."""
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def serve() -> None:
    """Fork a run for each line of standard input: words of the command line, where its output goes, and the arguments of `prepare`."""
    import matplotlib.figure  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import pyuniversal.report
    import pyuniversal.stages  # noqa: F401
    from pyuniversal import cli

    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if order["largest_file"]:  # a write beyond it fails as on a full disk, in the library that writes; Python ignores the signal
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
            prepare(pause=order["pause"], sweeps=order["sweeps"])
            if order["terminate"]:
                terminate_at(*order["terminate"])
            cli.main(order["words"])
        say(pid)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))


class Server:
    """The server, and the one run that it may have at work."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, words: list[str], *, log: Path, pause: float = 0.0, largest_file: int = 0, terminate: tuple[str, int] | None = None) -> int:
        """Begin a run; its process id. `terminate`: arguments of `terminate_at`."""
        assert self.process.stdin is not None
        order = {"words": words, "log": str(log), "pause": pause, "sweeps": "sweeps" in words, "largest_file": largest_file}
        order["terminate"] = terminate
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """Exit code of the run that was started last; minus the signal that killed it."""
        return int(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_at(pid: int, folder: Path, dice: random.Random, *, seconds: float) -> str:
    """SIGKILL at a random moment of the next `seconds`, or of a save that is seen in the folder of the totals; in which state of it, or "finished"."""
    kind = dice.choice(["any time", "temporary file", "new generation", "before the first ledger"])
    early = kind == "before the first ledger"  # comes once
    after, delay = time.monotonic() + (0 if early else dice.uniform(0, 0.7 * seconds)), dice.uniform(0, 0.02)
    while alive(pid):
        names = os.listdir(folder) if folder.exists() else []
        if time.monotonic() > after and (
            kind == "any time"
            or (kind == "temporary file" and any(name.startswith(TMP) or name.endswith(TMP) for name in names))
            or (kind == "new generation" and len({name.split(".")[1] for name in names if name.startswith("site-")}) > 1)
            or (early and len(names) > 2 and "ledger.json" not in names)
        ):
            time.sleep(delay if kind != "temporary file" else delay / 10)
            break
        time.sleep(0.0005)
    if not alive(pid):
        return "finished"
    os.kill(pid, signal.SIGKILL)
    return kind


def left(run: Path) -> dict[str, Any]:
    """What a run left: bytes of every tensor of its sums with the chunks that they hold, values of its tables, text of its CSVs."""
    from safetensors.numpy import load_file

    ledger = json.loads((run / "totals" / "ledger.json").read_text())
    found: dict[str, Any] = {f"{n} chunks": part["chunks"] for n, part in ledger["parts"].items()}
    files = {name: run / "totals" / part["file"] for name, part in ledger["parts"].items()}
    files |= {str(path.relative_to(run)): path for path in run.glob("con*/*.safetensors")}
    for name, path in files.items():
        found |= {f"{name} {field}": (str(value.dtype), value.shape, value.tobytes()) for field, value in load_file(path).items()}
    for path in run.glob("*.parquet"):
        table = pd.read_parquet(path)
        found |= {f"{path.name} {column}": pd.util.hash_pandas_object(values, index=False, categorize=False).tolist() for column, values in table.items()}
    found |= {path.name: path.read_bytes() for path in [*run.glob("tables/*.csv"), *run.glob("claims.json")]}
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs, or is on one side alone."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


if __name__ == "__main__":
    serve()

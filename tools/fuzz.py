"""Fuzz every reader for as long as one likes: python tools/fuzz.py --minutes 60

The readers and the damage are those of tests/test_fuzz.py, with fresh seeds. A process of its own does the work, so that a crash or a hang of a library costs
one example and is a failure like any other. Failing files are kept in the folder --out, each with what went wrong; the counts are printed and written to
report.json there.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve()
STUCK = 60  # seconds that one example may take when not even the alarm stops it
BATCH = 25  # examples between two notes of the counts
KEPT = 20  # failing files kept of a reader
MORE_BYTES = 8 << 30  # of address space that a worker may take beyond what it has when it begins


@click.command()
@click.option("--minutes", type=float, default=60, show_default=True)
@click.option("--slice", "seconds", type=float, default=10, show_default=True, help="Seconds of one reader at a time.")
@click.option("--reader", "part", default="", help="Only readers whose names hold this.")
@click.option("--out", type=click.Path(path_type=Path), default="fuzz-failures", show_default=True)
@click.option("--seed", type=int, default=None, help="Of the first worker; random where not given.")
@click.option("--worker", hidden=True, is_flag=True)
@click.option("--first", hidden=True, type=int, default=0)
def main(minutes: float, seconds: float, part: str, out: Path, seed: int | None, worker: bool, first: int) -> None:
    """Damage files and read them."""
    out.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    if worker:
        work(out, part, seconds, seed, first)
        return
    end, first = time.monotonic() + 60 * minutes, 0
    (out / "progress.jsonl").unlink(missing_ok=True)
    while time.monotonic() < end:
        first = watch(out, ["--reader", part, "--slice", str(seconds), "--seed", str(seed), "--first", str(first)], end)
        seed += 1
        click.echo(report(out).splitlines()[-1], err=True)
    click.echo(report(out))


def watch(out: Path, options: list[str], end: float) -> int:
    """Run one worker to its end. The reader that the next one begins with: after a crash, the one after that which crashed."""
    command = [sys.executable, str(HERE), "--worker", "--out", str(out), *options]
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", **os.environ}
    current = out / "current"
    current.unlink(missing_ok=True)
    with open(out / "worker.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            while process.poll() is None:
                time.sleep(0.5)
                stuck = current.exists() and time.time() - current.stat().st_mtime > STUCK
                if stuck or time.monotonic() > end:
                    process.kill()
                    process.wait()
                    return _crash(out, "hangs, out of reach of a signal") if stuck else 0
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return 0
    end_of_log = (out / "worker.log").read_text(errors="replace")[-2000:]
    if not current.exists():
        raise click.ClickException(f"the worker does not start:\n{end_of_log}")
    return _crash(out, f"ended the process with {process.returncode}\n{end_of_log}")


def _crash(out: Path, problem: str) -> int:
    place, name, data = (out / "current").read_bytes().split(b"\n", 2)
    _note(out, name.decode(), Counter({"failed": 1}), {keep(out, name.decode(), data, problem)})
    return int(place) + 1


def work(out: Path, part: str, seconds: float, seed: int, first: int) -> None:
    """Fuzz every reader once, for some seconds each."""
    sys.path.insert(0, str(HERE.parents[1] / "tests"))
    import resource

    from readers import READERS

    warnings.simplefilter("error")
    made: dict[object, Path] = {}
    chosen = [reader for name, reader in READERS.items() if part in name]
    with tempfile.TemporaryDirectory() as folder:
        for reader in chosen:
            if reader.make not in made:
                made[reader.make] = Path(folder) / str(len(made))
                made[reader.make].mkdir()
                reader.make(made[reader.make])
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MORE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for place, reader in list(enumerate(chosen))[first:]:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                seed += 1 << 32
                batch(out, place, reader, made[reader.make], seed)


def batch(out: Path, place: int, reader: Any, folder: Path, seed: int) -> None:
    """A few examples, and a note of what came of them."""
    import hypothesis
    from readers import damaged, examine

    counts: Counter[str] = Counter()
    problems: set[str] = set()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(damaged(reader, folder))
    def fuzz(data: bytes) -> None:
        (out / "current").write_bytes(b"%d\n%s\n" % (place, reader.name.encode()) + data)
        kind, problem = examine(reader, folder, data)
        counts[kind] += 1
        if problem is not None:
            problems.add(keep(out, reader.name, data, problem))

    fuzz()
    _note(out, reader.name, counts, problems)


def keep(out: Path, name: str, data: bytes, problem: str) -> str:
    """Write a failing file and what went wrong; one for each way to fail, which is returned: the kind of error and its place."""
    lines = problem.splitlines()
    way = f"{lines[0].split(':')[0]} at {lines[-1].strip()[:100]}" if len(lines) > 1 else lines[0][:100]
    slug = "".join(c if c.isalnum() else "-" for c in name)
    path = out / f"{slug}.{hashlib.sha256(way.encode()).hexdigest()[:8]}"
    if not path.exists() and len(list(out.glob(f"{slug}.*.txt"))) < KEPT:
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text(f"{name}\n{problem}\n")
    return way


def _note(out: Path, name: str, counts: Counter[str], problems: set[str]) -> None:
    with open(out / "progress.jsonl", "a") as file:
        file.write(json.dumps({"reader": name, **counts, "problems": sorted(problems)}) + "\n")


def report(out: Path) -> str:
    """The counts so far, as a table; also written to report.json."""
    counts: dict[str, Counter[str]] = {}
    problems: dict[str, Counter[str]] = {}
    path = out / "progress.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        name, found = entry.pop("reader"), entry.pop("problems")
        counts.setdefault(name, Counter()).update(entry)
        problems.setdefault(name, Counter()).update(found)
    columns = ("examples", "refused", "read", "failed")
    rows = {name: {"examples": sum(c.values()), **{k: c[k] for k in columns[1:]}, "ways to fail": dict(problems[name])} for name, c in counts.items()}
    total = {column: sum(row[column] for row in rows.values()) for column in columns}
    (out / "report.json").write_text(json.dumps({"total": total, "readers": rows}, indent=2) + "\n")
    lines = [f"{'reader':32}" + "".join(f"{column:>12}" for column in columns)]
    for name, row in [*rows.items(), ("all", total)]:
        lines.append(f"{name:32}" + "".join(f"{row[column]:12,}" for column in columns))
        lines += [f"    {n:6,} x {way}" for way, n in row.get("ways to fail", {}).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

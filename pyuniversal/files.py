"""Files that are whole or absent: every write goes to a neighbour first and is renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import FileError, PyUniversalError

LONGEST_NAME = 200  # bytes: file systems allow 255, and a file being written has a longer name
NOT_IN_NAMES = frozenset('/\\:*?"<>|$')  # separators, what Windows forbids, and what makes a formula of a figure's legend
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # Windows opens these whatever the folder
KINDS = {
    "text": lambda v: isinstance(v, str),
    "a name": lambda v: isinstance(v, str) and v.isprintable(),  # fit for a terminal
    "a whole number": lambda v: type(v) is int and 0 <= v <= 2**53,
    "a whole number or null": lambda v: v is None or (type(v) is int and 0 <= v <= 2**53),
    "an integer": lambda v: type(v) is int and abs(v) < 2**128,  # a seed
    "a number": lambda v: type(v) in (int, float) and abs(v) <= 2**53,
    "a number or null": lambda v: v is None or (type(v) in (int, float) and abs(v) <= 2**53),
    "true or false": lambda v: isinstance(v, bool),
    "an object": lambda v: isinstance(v, dict),
    "an object or null": lambda v: v is None or isinstance(v, dict),
    "a list": lambda v: isinstance(v, list),
}

# What a kill leaves of a file that was being written: ours, and the neighbour that safetensors itself writes to.
LEFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.probe-[0-9a-f]{8}|\.tmp[0-9A-Za-z]{6}")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary neighbour of `path` to write to; on success it replaces `path`, on any error it is removed.

    Raises:
        FileError: the folder or the file cannot be written; names it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            make_folder(path.parent)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def replace(source: Path, target: Path) -> None:
    """Rename into place, and see to it that a power cut does not undo that."""
    os.replace(source, target)
    _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as durable as a file in it is to be."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder: 0.1 ms on an idle ext4, 5 ms on a busy one. POSIX alone can; some networks' file systems refuse."""
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make a `FileError` that names `path` of what the system has against writing to it."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}. Choose another folder or free some space.") from error


def tidy(folder: str | os.PathLike[str]) -> None:
    """Remove from a folder, not from those in it, what kills left of files that were being written; nobody else may be writing to it."""
    for path in Path(folder).glob(".*"):
        if LEFT.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileError: it is absent, or not JSON (truncated, say).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); it is damaged or was not written by pyuniversal") from error


def check_fields(value: Any, kinds: Mapping[str, str], where: str | os.PathLike[str]) -> dict[str, Any]:
    """`value`, read from JSON, if it is an object whose fields are of these `kinds` (keys of `KINDS`); what else it has is left as it is.

    Raises:
        FileError: it is not; names the file or place `where`, and the field.
    """
    problem = None if isinstance(value, dict) else f"it holds {reprlib.repr(value)}, not an object"
    for key, kind in kinds.items() if problem is None else ():
        if key not in value:
            problem = f"it has no {key!r}"
        elif not KINDS[kind](value[key]):
            problem = f"its {key!r} is {reprlib.repr(value[key])}, not {kind}"
        if problem is not None:
            break
    if problem is not None:
        raise FileError(f"{os.fspath(where)} is damaged: {problem}. Make it again with what made it, or get it again")
    return value


@contextmanager
def reading(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn whatever a library raises about the content of a file into an error that names the file and the remedy.

    On damaged bytes parsers raise anything (of pyarrow: KeyError, AssertionError, OverflowError among others), and parsers in Rust may panic, which Python sees
    as a BaseException. So everything is caught that is not an error of ours or a wish to stop.

    Raises:
        FileError: the file is missing, cannot be read, or is damaged.
    """
    try:
        yield
    except PyUniversalError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing; {remedy}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise FileError(f"{path} is damaged ({said}); {remedy}") from error


def unsafe(name: object) -> str | None:
    """Why `name` cannot be part of a file's name on every system, in words; None where it can."""
    if not isinstance(name, str) or not name:
        return "is no text" if name != "" else "is empty"
    if not name.isprintable() or NOT_IN_NAMES & set(name):
        return 'holds a separator, a control character or one of : * ? " < > | $'
    if name[0] in ".- " or name[-1] in ". ":
        return "begins with a dot, dash or space, or ends with a dot or space"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    return "is a device's name on Windows" if DEVICES.fullmatch(name) else None


def safe_name(name: object, where: str | os.PathLike[str]) -> str:
    """`name`, found in the file `where`, if it can be part of a file's name: it leads to no other folder. A folder may come from a stranger.

    Raises:
        FileError: it cannot; names both.
    """
    if problem := unsafe(name):
        raise FileError(
            f"{os.fspath(where)} holds the name {reprlib.repr(name)}, which {problem}: files are called by it, and it could lead out of their folder. "
            "The file is damaged or was tampered with; do not use this folder"
        )
    return str(name)


def within(folder: str | os.PathLike[str], name: str) -> Path:
    """`folder / name`, to be written to.

    Raises:
        FileError: it is a link to a place outside `folder`.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise FileError(f"{path} is a link that leads out of {folder}, to {path.resolve()}; nothing is written there. Remove the link")
    return path


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Make `folder` and write to it, so that an unwritable output is found before the work and not after it.

    Raises:
        FileError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        make_folder(folder)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FileError(f"cannot write to the folder {folder}: {error.strerror or error}. Choose another one with --out.") from error
    return folder


def file_sha256(path: Path) -> str:
    """Hash of a file's content: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(*parts: bytes | memoryview | str) -> str:
    """Hash of the parts, each preceded by its length: 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") if isinstance(data, bytes) else data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()

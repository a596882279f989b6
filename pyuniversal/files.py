"""Files that are whole or absent: every write goes to a neighbour first and is renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import FileError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary neighbour of `path` to write to; on success it replaces `path`, on any error it is removed.

    Raises:
        FileError: the folder or the file cannot be written; names it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot write {path}: {error.strerror or error}. Choose another folder or free some space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


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
    except ValueError as error:
        raise FileError(f"{path} is not valid JSON ({error}); it is damaged or was not written by pyuniversal") from error


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Make `folder` and write to it, so that an unwritable output is found before the work and not after it.

    Raises:
        FileError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FileError(f"cannot write to the folder {folder}: {error.strerror or error}. Choose another one with --out.") from error
    return folder


def sha256(*parts: bytes | memoryview | str) -> str:
    """Hash of the parts, each preceded by its length: 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") if isinstance(data, bytes) else data.nbytes.to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()

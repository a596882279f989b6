"""The ledger of a folder of totals: which file holds which part of the state, its hash, and which chunks of the corpus are in it.

    ledger.json            the state as it stands
    ledger.previous.json   the one before, while the pass goes on; its files are kept, so that a damaged file costs a checkpoint and not the run
    PART.N.safetensors     a part as of generation N; a part that did not change keeps its file

A generation is written file by file, then the ledger is renamed into place, then that of the generation before: a kill at any moment leaves two whole
generations. Three are on the disk while one is written; where it has no room for the third, the oldest goes first.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..files import check_fields, file_sha256, read_json, replace, write_json, writing

FORMAT = 3
CURRENT, PREVIOUS = "ledger.json", "ledger.previous.json"
ROOM = 64e6  # bytes of the disk that a third generation leaves free, for all that is no product
_PART = r"(?:(?:site|pre|histogram)-\d+|cross-\d+-\d+-\d+|within-\d+-\d+|centre)"
FILE = re.compile(_PART + r"\.\d+\.safetensors")
# Files of any generation, and what a kill left of one that was being written; whatever else lies in the folder is the user's.
# (`.tmpXXXXXX` is that of safetensors, which itself writes to a neighbour first.)
OWN = re.compile(FILE.pattern + r"|\.(?:" + _PART + r"\.\d+\.safetensors|ledger(?:\.previous)?\.json)\.\w+\.tmp|\.tmp[0-9A-Za-z]{6}")
ENTRY = {"bytes": "a whole number", "sha256": "text", "chunks": "text"}
AGAIN = "make it again (of a run: the same command with --overwrite)"


@dataclass(frozen=True)
class Entry:
    """A file of the ledger: its name, size and SHA-256, and the chunks that are in it as ranges ("0-5,9")."""

    file: str
    bytes: int
    sha256: str
    chunks: str


class Ledger:
    """What is in a folder of totals, and how it changes.

    Attributes:
        head: what the state is of, as `commit` was given it.
        entries: part -> its file.
        opened: whether files were written that no commit counts yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generation = 0
        self.head: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        self._new: dict[str, Entry] = {}
        self._before: set[str] = set()  # files that the previous generation alone still needs
        self.opened = self._fallen_back = False

    @classmethod
    def read(cls, path: Path, *, hashes: bool = True) -> Ledger:
        """The ledger in the file `path`, every file it names looked at; without `hashes` only whether it is there and of its size.

        Raises:
            FileError: it cannot be read, is of another format, or a file is absent, truncated or altered; names it.
        """
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            named = found.get("format") if isinstance(found, dict) else None
            raise FileError(f"{path} has format {named!r}; this version of pyuniversal reads {FORMAT}; {AGAIN}")
        ledger = cls(path.parent)
        try:
            check_fields(found, {"generation": "a whole number", "head": "an object", "parts": "an object"}, path)
            ledger.generation, ledger.head = found["generation"], found["head"]
            ledger.entries = {name: Entry(**check_fields(entry, ENTRY, f"{name} of {path}")) for name, entry in found["parts"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{path} is damaged ({error!r}); {AGAIN}") from error
        for name, entry in ledger.entries.items():
            if not FILE.fullmatch(str(entry.file)) or not entry.file.startswith(f"{name}."):
                raise FileError(f"{path} names {entry.file!r} as the file of {name}: no file of a run is called so; it is damaged, or was tampered with")
            _check(path.parent / entry.file, entry, hashes=hashes)
        ledger._fallen_back = path.name == PREVIOUS
        older = path.with_name(PREVIOUS)
        if path.name == CURRENT and older.exists():
            with suppress(FileError):
                ledger._before = set(_files(read_json(older))) - {e.file for e in ledger.entries.values()}
        return ledger

    def path(self, name: str) -> Path:
        """The file of a part.

        Raises:
            FileError: the ledger has none.
        """
        entry = self._new.get(name) or self.entries.get(name)
        if entry is None:
            raise FileError(f"{self.folder / CURRENT} names no file for {name}; it is damaged; {AGAIN}")
        return self.folder / entry.file

    def write(self, name: str, save: Callable[[Path], None], chunks: Iterable[int]) -> Path:
        """Write a part for the next generation, by `save`; it counts from the next `commit` on.

        Raises:
            FileError: it cannot be written; the generation before is whole.
        """
        self._begin()
        with writing(self.folder / CURRENT):
            self._make_room(name)
        path = self.folder / f"{name}.{self.generation}.safetensors"
        save(path)
        self._new[name] = Entry(path.name, path.stat().st_size, file_sha256(path), ranges(chunks))
        return path

    def _make_room(self, name: str) -> None:
        """Give up the generation before where the disk cannot hold a third file of a part beside its two."""
        older = [self.folder / file for file in self._before if file.startswith(f"{name}.")]
        if any(shutil.disk_usage(self.folder).free < ROOM + path.stat().st_size for path in older if path.exists()):
            (self.folder / PREVIOUS).unlink(missing_ok=True)  # first, so that it never names what is gone
            for file in self._before:
                (self.folder / file).unlink(missing_ok=True)
            self._before.clear()

    def _begin(self) -> None:
        """Open the next generation."""
        if self.opened:
            return
        if self.entries:
            self.tidy()  # what a kill left of the last generation takes room
        with writing(self.folder / CURRENT):
            if self._fallen_back:
                replace(self.folder / PREVIOUS, self.folder / CURRENT)
                self._fallen_back = False
        taken = [int(p.name.split(".")[-2]) for p in self.folder.glob("*.safetensors") if FILE.fullmatch(p.name)]
        self.generation, self.opened = max([self.generation, *taken]) + 1, True

    def commit(self, head: dict[str, Any], *, final: bool) -> None:
        """Make what was written the state. `final`: no chunk is missing, so the generation before goes.

        Raises:
            FileError: the ledger cannot be written; the generation before is whole.
        """
        self._begin()
        old, before = self.entries, self._content(self.head, self.entries, self.generation - 1)
        entries = old | self._new
        write_json(self.folder / CURRENT, self._content(head, entries, self.generation))
        self.head, self.entries, self._new, self.opened = head, entries, {}, False
        if old and not final:
            write_json(self.folder / PREVIOUS, before)
        self._before = {e.file for e in old.values()} - {e.file for e in entries.values()}
        with writing(self.folder):
            self.tidy(final=final or not old)

    def tidy(self, *, final: bool = False) -> None:
        """Remove files of ours that no ledger names; a kill may have come before the last commit did. `final`: and the generation before."""
        if final and not self._fallen_back:
            (self.folder / PREVIOUS).unlink(missing_ok=True)
            self._before.clear()
        kept = {e.file for e in (*self.entries.values(), *self._new.values())} | self._before
        for path in self.folder.iterdir():
            if OWN.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    @staticmethod
    def _content(head: dict[str, Any], entries: dict[str, Entry], generation: int) -> dict[str, Any]:
        parts = {name: asdict(entry) for name, entry in entries.items()}
        return {"format": FORMAT, "generation": generation, "head": head, "parts": parts}


def ranges(chunks: Iterable[int]) -> str:
    """0, 1, 2, 7 as "0-2,7"."""
    parts: list[list[int]] = []
    for chunk in sorted(chunks):
        if parts and chunk == parts[-1][-1] + 1:
            parts[-1][1:] = [chunk]
        else:
            parts.append([chunk])
    return ",".join("-".join(map(str, part)) for part in parts)


def from_ranges(text: str, end: int) -> set[int]:
    """What `ranges` wrote; all below `end`.

    Raises:
        ValueError: it is no such text.
    """
    chunks: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not 0 <= int(first) <= int(last or first) < end:
            raise ValueError(f"{part!r} is no range of chunks below {end}")
        chunks.update(range(int(first), int(last or first) + 1))
    return chunks


def _files(found: Any) -> list[str]:
    """Names of the files of a ledger that was read, those that could be ours alone."""
    parts = found.get("parts", {}) if isinstance(found, dict) else {}
    files = [entry.get("file") for entry in parts.values() if isinstance(entry, dict)] if isinstance(parts, dict) else []
    return [f for f in files if isinstance(f, str) and FILE.fullmatch(f)]


def _check(path: Path, entry: Entry, *, hashes: bool) -> None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise FileError(f"{path} is truncated or damaged: it has {size:,} bytes and the ledger says {entry.bytes:,}; {AGAIN}")
        if hashes and file_sha256(path) != entry.sha256:
            raise FileError(f"{path} is damaged, or of another run: its content is not what the ledger's hash says; {AGAIN}")
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; {AGAIN}") from error

"""Documents in local files: .txt (one document a file), .jsonl and .parquet (one a row), the first two also compressed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import FileError, InputError
from ..files import check_fields, reading, sha256
from .documents import MAX_CHARACTERS, Corpus, Document, as_subset, as_text, missing_column, pick, too_long

COMPRESSED = (".gz", ".zst", ".bz2")
LONGEST_LINE = 8 * MAX_CHARACTERS  # bytes: JSON writes a character in at most six, twice that beyond the basic plane
KINDS = ".txt, .jsonl (also .gz, .zst, .bz2) and .parquet"
EDGE = 1 << 20  # bytes at either end of a file that go into its identity

Record = tuple[Any, Any]  # text, subset: as the file has them
Reader = Callable[[Path, str, "str | None", int], Iterator[Record]]


def stem(path: Path) -> str:
    """The name without .jsonl.gz and the like."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).stem


def reader(path: Path) -> Reader | None:
    """How to read the file, by its name; None where it is none of ours."""
    if path.suffix == ".parquet":
        return read_parquet
    kind = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    return {".txt": read_text, ".jsonl": read_json_lines}.get(kind)


def read_text(path: Path, column: str, subset_column: str | None, skip: int) -> Iterator[Record]:
    """The whole file as one document, byte for byte (line ends are not translated), less a byte order mark."""
    if skip == 0:
        with _open(path) as file:
            data = file.read(4 * MAX_CHARACTERS + 1)  # a character has at most 4 bytes
        if len(data) > 4 * MAX_CHARACTERS:
            raise too_long(str(path), path.stat().st_size)
        try:
            yield data.decode("utf-8-sig"), None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); convert it to UTF-8") from error


def read_json_lines(path: Path, column: str, subset_column: str | None, skip: int) -> Iterator[Record]:
    """One JSON object a line; blank lines are no documents."""
    with _open(path) as file:
        # with a limit, for a small compressed file can hold a line that fits in no memory
        whole = enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1)
        lines = ((number, line) for number, line in whole if line.strip())
        for i, (number, line) in enumerate(lines):
            if i < skip:
                continue
            where = f"{path}, line {number},"
            if len(line) > LONGEST_LINE:
                raise too_long(where, len(line))
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
                raise InputError(f"{where} is not valid JSON ({error}); repair or remove the line") from error
            if not isinstance(record, dict):
                raise InputError(f'{where} holds {type(record).__name__}, not an object; write one {{"{column}": "..."}} a line')
            yield as_text(pick(record, column, where), f"{where} column {column!r},"), subset_column and pick(record, subset_column, where)


def read_parquet(path: Path, column: str, subset_column: str | None, skip: int) -> Iterator[Record]:
    """One row a document, in batches; whole row groups before `skip` are not read."""
    with reading(path, "fetch it again"), pq.ParquetFile(path) as file:
        names = [field.name for field in file.schema_arrow]
        wanted = [column] if subset_column is None else [column, subset_column]
        for name in wanted:
            if name not in names and name.split(".")[0] not in names:
                raise missing_column(name, names, str(path))
        groups = list(range(file.num_row_groups))
        while groups and skip >= (rows := file.metadata.row_group(groups[0]).num_rows):
            skip -= rows
            del groups[0]
        columns = [name if name in names else name.split(".")[0] for name in wanted]
        for batch in file.iter_batches(batch_size=1000, row_groups=groups, columns=columns):
            for record in batch.slice(skip).to_pylist():
                yield as_text(pick(record, column, str(path)), f"{path}, column {column!r},"), subset_column and pick(record, subset_column, str(path))
            skip = max(0, skip - len(batch))


def _open(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed by its ending; a compressed file that was cut short raises instead of ending early."""
    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def identity_of(files: Iterable[tuple[Path, str]]) -> dict[str, Any]:
    """What stands for the content of named files: their sizes and both ends; of one longer than both ends also the time of its last change.

    So terabytes need not be read.

    Raises:
        FileError: a file cannot be read.
    """
    digest = hashlib.sha256()
    count = size = 0
    for path, name in files:
        try:
            stat = path.stat()
            with open(path, "rb") as file:
                ends = file.read(EDGE)
                if stat.st_size > EDGE:
                    file.seek(max(EDGE, stat.st_size - EDGE))
                    ends += file.read()
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error
        digest.update(sha256(name, str(stat.st_size), ends, "" if stat.st_size <= 2 * EDGE else str(stat.st_mtime_ns)).encode())
        count, size = count + 1, size + stat.st_size
    return {"files": count, "bytes": size, "sha256": digest.hexdigest()}


class FileCorpus(Corpus):
    """Files in the order given; each with a name and, where no column tells, the subset of its documents."""

    def __init__(self, label: str, files: Sequence[tuple[Path, str, str | None]], *, column: str, subset_column: str | None) -> None:
        self.label, self.files, self.column, self.subset_column = label, files, column, subset_column
        self.identity = identity_of((path, name) for path, name, _ in files)
        if all(reader(path) is read_text for path, _, _ in files):
            if subset_column is not None:
                raise InputError(f"{label} is plain text and has no column {subset_column!r}; leave subset_column out")
            self.n_documents = len(files)
        self._file = self._taken = 0

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """See `Corpus`."""
        if state:
            check_fields(state, {"file": "a whole number", "documents": "a whole number"}, f"state of {self.label} in ledger.json")
        self._file, self._taken = (state["file"], state["documents"]) if state else (0, 0)
        first = self._file
        for i, (path, name, subset) in enumerate(self.files[first:], start=first):
            self._file, self._taken = i, self._taken if i == first else 0
            read = reader(path)
            assert read is not None
            try:
                for text, value in read(path, self.column, self.subset_column, self._taken):
                    self._taken += 1
                    yield Document(text, subset if self.subset_column is None else as_subset(value), name if len(self.files) > 1 else None)
            except (OSError, EOFError, pa.ArrowException) as error:
                if isinstance(error, FileError):
                    raise
                raise FileError(f"cannot read {path} ({error}); it may be cut short or damaged: fetch it again") from error

    def state(self) -> dict[str, Any]:
        """See `Corpus`."""
        return {"file": self._file, "documents": self._taken}


def open_files(path: Path, *, column: str, subset_column: str | None) -> FileCorpus:
    """A file, or a directory of files: sorted by path, subset the name of the sub-folder or else the file's stem.

    Raises:
        InputError: it is of no kind that can be read, or the directory holds none.
    """
    if path.is_file():
        if reader(path) is None:
            raise InputError(f"{path} is of no kind that can be read; give {KINDS}")
        return FileCorpus(str(path), [(path, path.name, None)], column=column, subset_column=subset_column)
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file() and reader(file) is not None)
    found = sorted((name for name in names if not any(part.startswith(".") for part in name.parts)), key=lambda name: name.as_posix())
    if not found:
        raise InputError(f"the directory {path} holds no text; give one with {KINDS} files, or a folder that datasets' save_to_disk wrote")
    files = [(path / name, name.as_posix(), name.parts[0] if len(name.parts) > 1 else stem(name)) for name in found]
    return FileCorpus(str(path), files, column=column, subset_column=subset_column)

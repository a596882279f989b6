"""What the tokeniser asks of a corpus: documents in a fixed order, and where to go on after the last one it took."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InputError

MAX_CHARACTERS = 1 << 25  # of one document: a fast tokenizer takes about 130 bytes of memory a character, and must see a document whole


class Document(NamedTuple):
    """One document; `subset` and `source` (the file it came from) are None where nothing is known."""

    text: str
    subset: str | None = None
    source: str | None = None


class Corpus:
    """Documents in a fixed order.

    label: how messages and the manifest name it. identity: JSON that is equal for equal text; None where that cannot be known beforehand (an iterator),
    and then nothing is resumed or reused. n_documents: None where unknown.
    """

    label: str
    identity: dict[str, Any] | None = None
    n_documents: int | None = None

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """All documents, or with the `state` of an earlier reading those that followed it."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Where the reading stands, after the last document given out: JSON for `documents`."""
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """What a reader of the tokens should know about where they came from, beyond the label."""
        return {}


def pick(record: Mapping[str, Any], column: str, where: str) -> Any:
    """`record[column]`; a dot reaches into nested records ("meta.pile_set_name").

    Raises:
        InputError: there is no such column; lists those there are.
    """
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise missing_column(column, list(record), where)
        value = value[part]
    return value


def missing_column(column: str, columns: Sequence[str], where: str) -> InputError:
    """The error for a column that is not there."""
    return InputError(f"{where} has no column {column!r}; it has {', '.join(map(repr, columns)) or 'none'}. Choose with column=... or subset_column=...")


def too_long(where: str, characters: int) -> InputError:
    """The error for a document that would not fit in memory while it is tokenised."""
    return InputError(
        f"{where} is a single document of {characters:,} characters; {MAX_CHARACTERS:,} are the most that one may have. "
        f"A .txt file is one document: cut it into several files, or write its documents as the lines of a .jsonl file"
    )


def as_text(value: Any, where: str) -> str:
    """A document's text; a missing one (null) is the empty document."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where} holds {type(value).__name__}, not text; choose the column that holds the text with column=...")
    return value


def as_subset(value: Any) -> str | None:
    """A subset's name."""
    return None if value is None else str(value)


class ListCorpus(Corpus):
    """A list or tuple of strings, each one document."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.label = f"a list of {len(texts)} strings"
        self.n_documents = len(texts)
        digest = hashlib.sha256()
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"document {i} of the list is {type(text).__name__}, not a string; give a list of strings, one a document")
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        self.identity = {"strings": len(texts), "sha256": digest.hexdigest()}
        self._next = 0

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """See `Corpus`."""
        self._next = state["documents"] if state else 0
        while self._next < len(self.texts):
            self._next += 1
            yield Document(self.texts[self._next - 1])

    def state(self) -> dict[str, Any]:
        """See `Corpus`."""
        return {"documents": self._next}


class IteratorCorpus(Corpus):
    """Any other iterable of strings: read once, from its beginning, neither resumed nor reused."""

    label = "an iterable of strings"

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """See `Corpus`."""
        for i, text in enumerate(self.texts):
            yield Document(as_text(text, f"document {i} of the iterable"))

    def state(self) -> dict[str, Any]:
        """See `Corpus`."""
        return {}

"""From what the user gives as text to a `Corpus`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .documents import Corpus, IteratorCorpus, ListCorpus
from .hugging_face import DatasetCorpus, HubCorpus, is_saved, open_folder
from .text_files import KINDS, open_files, reader

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_corpus(text: Any, *, split: str | None, name: str | None, column: str, subset_column: str | None) -> Corpus:
    """The documents of `text`; see `tokenize` for what that may be.

    Raises:
        InputError: it is nothing that documents can be read from, or an option does not apply to it.
    """
    if isinstance(text, str | os.PathLike):
        path = Path(text).expanduser()
        if path.exists():
            return _open_path(path, split=split, name=name, column=column, subset_column=subset_column)
        if not isinstance(text, str) or path.is_absolute() or text.startswith((".", "~")) or reader(path) is not None:
            raise InputError(f"there is no file or folder {text}; correct the path")
        if not HUB_NAME.fullmatch(text):
            raise InputError(f"{text[:80]!r} is neither a file or folder nor the name of a data set; text itself is given as a list of strings, one a document")
        return HubCorpus(text, config=name, split=split, column=column, subset_column=subset_column)
    if hasattr(text, "column_names"):
        _refuse("a dataset object", name=name)
        return DatasetCorpus(text, label="a dataset object", split=split, column=column, subset_column=subset_column)
    if not isinstance(text, Iterable) or isinstance(text, bytes | bytearray | Mapping):
        raise InputError(f"text is {type(text).__name__}; give a list of strings, a path ({KINDS}, or a folder of these), or the name of a data set on the hub")
    _refuse("a list of strings", split=split, name=name, subset_column=subset_column)
    return ListCorpus(text) if isinstance(text, list | tuple) else IteratorCorpus(text)


def _open_path(path: Path, *, split: str | None, name: str | None, column: str, subset_column: str | None) -> Corpus:
    _refuse(str(path), name=name)
    if path.is_dir() and is_saved(path):
        return open_folder(path, split=split, column=column, subset_column=subset_column)
    _refuse(str(path), split=split)
    return open_files(path, column=column, subset_column=subset_column)


def _refuse(label: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            kind = {"split": "splits", "name": "configurations", "subset_column": "columns"}[option]
            raise InputError(f"{label} has no {kind}, so none called {value!r}; leave {option} out")

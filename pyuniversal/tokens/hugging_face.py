"""Documents of Hugging Face data sets: folders that save_to_disk wrote, objects, and names on the hub, which are streamed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FileError, InputError, PyUniversalError
from ..files import check_fields, read_json, safe_name
from .documents import Corpus, Document, as_subset, as_text, missing_column, pick
from .text_files import identity_of

PREFERRED = ("test", "validation", "train")
PROBE_SECONDS = 10  # datasets itself tries for half a minute before it says that the hub cannot be reached


def choose_split(splits: Mapping[str, Any], asked: str | None, label: str) -> str:
    """The split asked for; else the only one; else the first there is of test, validation and train.

    Raises:
        InputError: there is no such split, or nothing to choose by; lists those there are.
    """
    if asked is not None and asked not in splits:
        raise InputError(f"{label} has no split {asked!r}; it has {', '.join(map(repr, splits))}")
    candidates = [asked] if asked is not None else list(splits) if len(splits) == 1 else [split for split in PREFERRED if split in splits]
    if not candidates:
        raise InputError(f"{label} has the splits {', '.join(map(repr, splits))}; choose one with split=...")
    return candidates[0]


class DatasetCorpus(Corpus):
    """A `datasets.Dataset` or `IterableDataset`, or the splits of one, each row a document."""

    def __init__(self, dataset: Any, *, label: str, split: str | None, column: str, subset_column: str | None, identity: dict[str, Any] | None = None) -> None:
        if isinstance(dataset, Mapping):
            split = choose_split(dataset, split, label)
            dataset = dataset[split]
        elif split is not None and split != str(dataset.split):
            raise InputError(f"{label} is a single split ({dataset.split}) and has no split {split!r}; leave split out")
        self.label, self.column, self.subset_column = label, column, subset_column
        self.split = split if split is not None else dataset.split and str(dataset.split)
        self.dataset, self.identity = dataset, identity
        self.streamed = hasattr(dataset, "load_state_dict")
        if not self.streamed:
            self.n_documents = len(dataset)
            if identity is None:
                self.identity = {"fingerprint": dataset._fingerprint}
        self._check_columns(dataset.column_names)
        self._taken = 0

    def _check_columns(self, names: list[str] | None) -> None:
        for column in (self.column, self.subset_column):
            if names is not None and column is not None and column not in names and column.split(".")[0] not in names:
                raise missing_column(column, names, self.label)

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """See `Corpus`."""
        dataset = self.dataset
        self._taken = state["documents"] if state else 0
        if state and "stream" in state and self.streamed:
            dataset.load_state_dict(state["stream"])
        elif self._taken == self.n_documents:  # skip refuses to leave nothing
            return
        elif self._taken:
            dataset = dataset.skip(self._taken)
        if not self.streamed:
            wanted = [column for column in (self.column, self.subset_column) if column is not None]
            dataset = dataset.select_columns(list({column if column in dataset.column_names else column.split(".")[0] for column in wanted}))
        name_of = getattr((dataset.features or {}).get(self.subset_column), "int2str", None)  # class labels by their names
        for record in self._records(dataset):
            where = f"document {self._taken} of {self.label}"
            text = as_text(pick(record, self.column, where), f"{where}, column {self.column!r},")
            subset = None if self.subset_column is None else pick(record, self.subset_column, where)
            self._taken += 1
            yield Document(text, as_subset(name_of(subset) if name_of and subset is not None else subset))

    def _records(self, dataset: Any) -> Iterator[Any]:
        """The records of the data set; of one on disk, what is wrong with its files in words (a stream's errors are for `HubCorpus`)."""
        if self.streamed:
            yield from dataset
            return
        try:
            yield from dataset
        except (ValueError, OSError, ArithmeticError, LookupError, TypeError) as error:
            raise FileError(f"{self.label} cannot be read after {self._taken:,} documents ({type(error).__name__}: {error}); write it again") from error

    def state(self) -> dict[str, Any]:
        """See `Corpus`."""
        return {"documents": self._taken} | ({"stream": self.dataset.state_dict()} if self.streamed else {})

    def provenance(self) -> dict[str, Any]:
        """See `Corpus`."""
        return {"split": self.split}


class HubCorpus(Corpus):
    """A data set on the hub, by name: looked up and opened when its first document is asked for, streamed, always at the revision where the reading began."""

    def __init__(self, name: str, *, config: str | None, split: str | None, column: str, subset_column: str | None) -> None:
        self.name, self.config, self.split, self.column, self.subset_column = name, config, split, column, subset_column
        self.label = f"the data set {name!r}" if config is None else f"the data set {name!r} ({config})"
        self.identity = {"dataset": name}
        self._corpus: DatasetCorpus | None = None
        self._revision: str | None = None

    def documents(self, state: dict[str, Any] | None = None) -> Generator[Document, None, None]:
        """See `Corpus`."""
        self._revision = state.get("revision") if state else None
        self._corpus = self._open()
        self.n_documents = self._corpus.n_documents
        try:
            yield from self._corpus.documents(state)
        except InputError:
            raise
        except Exception as error:  # whatever a broken connection raises, in any of the libraries below
            done = self._corpus.state()["documents"]
            what = f"{self.label} broke off after {done:,} documents ({type(error).__name__}: {error})"
            raise FileError(f"{what}; run the same again into the same folder to go on") from error

    def state(self) -> dict[str, Any]:
        """See `Corpus`."""
        assert self._corpus is not None
        return self._corpus.state() | {"revision": self._revision}

    def provenance(self) -> dict[str, Any]:
        """See `Corpus`."""
        assert self._corpus is not None
        return self._corpus.provenance() | {"revision": self._revision}

    def _open(self) -> DatasetCorpus:
        import datasets

        online = self._look_up()
        try:
            splits = datasets.load_dataset(self.name, self.config, streaming=online, revision=self._revision)
        except (ValueError, RuntimeError, OSError) as error:  # an unknown or missing configuration among them: these messages list those there are
            if online:
                raise InputError(f"{self.label} cannot be opened: {error}. A configuration is chosen with name=...") from error
            raise InputError(f"HF_HUB_OFFLINE is set and {self.label} is not in the cache ({error}); unset it, or give a local file or folder") from error
        return DatasetCorpus(splits, label=self.label, split=self.split, column=self.column, subset_column=self.subset_column, identity=self.identity)

    def _look_up(self) -> bool:
        """Ask the hub for the data set and note its revision; False where HF_HUB_OFFLINE forbids to ask."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

        try:
            self._revision = HfApi().dataset_info(self.name, revision=self._revision, timeout=PROBE_SECONDS).sha
        except OfflineModeIsEnabled:
            return False
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise InputError(
                f"{self.name!r} is no local file or folder, and the hub has no data set of that name that you may read. "
                f"Correct it, or log in with `hf auth login` where it is private; text itself is given as a list of strings"
            ) from error
        except Exception as error:  # the library below has changed its HTTP client, and its errors, twice
            raise InputError(
                f"{self.name!r} is no local file or folder, and no hub can be reached to look for a data set of that name ({type(error).__name__}: {error}). "
                f"Connect to the network, give a .txt, .jsonl or .parquet file or a folder of save_to_disk's, or set HF_HUB_OFFLINE=1 if it is in the cache"
            ) from error
        return True


def open_folder(path: Path, *, split: str | None, column: str, subset_column: str | None) -> DatasetCorpus:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        FileError: it is damaged. InputError: no such split or column.
    """
    import datasets

    _check_saved(path)
    try:
        dataset = datasets.load_from_disk(str(path))
        if isinstance(dataset, Mapping):
            split = choose_split(dataset, split, str(path))
        # Arrow maps the files as they are, and a wrong offset ends the process. The reading is a small part of what tokenising the text then takes.
        (dataset[split] if isinstance(dataset, Mapping) else dataset).data.table.validate(full=True)
    except PyUniversalError:
        raise
    except Exception as error:  # a damaged folder raises anything, from KeyError to ArrowInvalid
        raise FileError(f"{path} looks like a folder of datasets' save_to_disk and cannot be read ({type(error).__name__}: {error}); write it again") from error
    root = path / split if isinstance(dataset, Mapping) and split is not None else path
    identity = identity_of((file, file.relative_to(root).as_posix()) for file in sorted(root.rglob("*")) if file.is_file())
    return DatasetCorpus(dataset, label=str(path), split=split, column=column, subset_column=subset_column, identity=identity)


def _check_saved(path: Path) -> None:
    """Refuse a folder whose own files lead out of it: datasets joins the names that stand in them to the path as they are."""
    listed = path / "dataset_dict.json"
    folders = [path]
    if listed.is_file():
        splits = check_fields(read_json(listed), {"splits": "a list"}, listed)["splits"]
        folders = [path / safe_name(split, listed) for split in splits]
    for folder in folders:
        state = folder / "state.json"
        if state.is_file():
            for file in check_fields(read_json(state), {"_data_files": "a list"}, state)["_data_files"]:
                safe_name(check_fields(file, {"filename": "text"}, f"_data_files of {state}")["filename"], state)


def is_saved(path: Path) -> bool:
    """Whether save_to_disk wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()

"""Every kind of text gives the same documents; what cannot be read is named, with the remedy."""

from __future__ import annotations

import bz2
import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyuniversal.errors import FileError, InputError
from pyuniversal.tokens import tokenize
from pyuniversal.tokens.corpus import open_corpus

TEXTS = ["the of and", "", "to in a\nis that", "naïve 你好"] + [f"it was {i}" for i in range(40)]
SUBSETS = ["prose", "prose", None, "mixed"] + ["counted"] * 40
RECORDS = [{"id": i, "text": text, "meta": {"set": subset}} for i, (text, subset) in enumerate(zip(TEXTS, SUBSETS, strict=True))]


def read(text, **options):
    """(text, subset) of every document, read in one go; and the same when the reading is resumed after each document."""
    options = {"split": None, "name": None, "column": "text", "subset_column": None} | options
    corpus = open_corpus(text, **options)
    documents, states = [], [None]
    for document in corpus.documents():
        documents.append(document)
        states.append(json.loads(json.dumps(corpus.state())))
    for taken in (0, 1, 2, 5, len(documents) - 1, len(documents)):
        if taken < len(states):
            assert list(open_corpus(text, **options).documents(states[taken])) == documents[taken:], f"resumed after {taken}"
    return [(document.text, document.subset) for document in documents]


def json_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def dataset():
    return datasets.Dataset.from_list(RECORDS)


def test_lists_and_iterables():
    assert read(TEXTS) == [(text, None) for text in TEXTS]
    assert read(tuple(TEXTS)) == [(text, None) for text in TEXTS]
    iterable = open_corpus((text for text in TEXTS), split=None, name=None, column="text", subset_column=None)
    assert [document.text for document in iterable.documents()] == TEXTS


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst"])
def test_json_lines(tmp_path, ending):
    path = tmp_path / f"x.jsonl{ending}"
    data = (json_lines(RECORDS[:3]) + "\n  \n" + json_lines(RECORDS[3:])).encode()  # blank lines are no documents
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}
    path.write_bytes(pack[ending](data))
    assert read(path, subset_column="meta.set") == list(zip(TEXTS, SUBSETS, strict=True))
    assert read(str(path)) == [(text, None) for text in TEXTS]
    assert read(path, column="meta.set")[:4] == [("prose", None), ("prose", None), ("", None), ("mixed", None)]


@pytest.mark.parametrize("group", [1, 3, 1000])
def test_parquet(tmp_path, group):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet", row_group_size=group)
    assert read(tmp_path / "x.parquet", subset_column="meta.set") == list(zip(TEXTS, SUBSETS, strict=True))
    assert read(tmp_path / "x.parquet", subset_column="id")[5] == (TEXTS[5], "5")


def test_parquet_in_several_batches(tmp_path):
    pq.write_table(pa.table({"text": [str(i) for i in range(2500)]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == [(str(i), None) for i in range(2500)]


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n\nna\xc3\xafve")
    assert read(tmp_path / "x.txt") == [("one\r\ntwo\n\n\nnaïve", None)]
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    assert read(tmp_path / "x.txt.gz") == [("packed\n", None)]


def test_a_directory_is_read_in_order_of_names_and_names_the_subsets(tmp_path, tokenizer):
    (tmp_path / "law").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "mail.jsonl.gz").write_bytes(gzip.compress(json_lines(RECORDS[:2]).encode()))
    (tmp_path / "law" / "1.txt").write_text("first")
    (tmp_path / "law" / "2.txt").write_text("second")
    pq.write_table(pa.Table.from_pylist(RECORDS[2:4]), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("not text of the corpus")
    (tmp_path / ".cache" / "x.txt").write_text("hidden")
    documents = [(TEXTS[2], "a"), (TEXTS[3], "a"), ("first", "law"), ("second", "law"), (TEXTS[0], "mail"), (TEXTS[1], "mail")]
    assert read(tmp_path) == documents
    table = tokenize(tmp_path, tokenizer, progress=False).document_table
    assert table["subset"].tolist() == [subset for _, subset in documents]
    assert table["source"].tolist() == ["a.parquet"] * 2 + ["law/1.txt", "law/2.txt"] + ["mail.jsonl.gz"] * 2


def test_dataset_objects_and_folders(tmp_path, dataset):
    both = list(zip(TEXTS, SUBSETS, strict=True))
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "dev": dataset.select([3, 4])}).save_to_disk(tmp_path / "two")
    assert read(dataset, subset_column="meta.set") == both
    assert read(dataset.to_iterable_dataset(num_shards=3), subset_column="meta.set") == both
    assert read(tmp_path / "one", subset_column="meta.set") == both
    assert read(tmp_path / "two") == [(text, None) for text in TEXTS]  # train, for there is neither test nor validation
    assert read(tmp_path / "two", split="dev") == [(text, None) for text in TEXTS[3:5]]
    assert read(dataset.select([7, 2, 5])) == [(TEXTS[i], None) for i in (7, 2, 5)]


def test_class_labels_are_subsets_by_name():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["world", "sports"])})
    labelled = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, None]}, features=features)
    assert read(labelled, subset_column="label") == [("a", "sports"), ("b", "world"), ("c", None)]


@pytest.mark.parametrize(
    ("splits", "taken"),
    [(["train"], "train"), (["odd"], "odd"), (["train", "validation", "test"], "test"), (["train", "validation"], "validation"), (["train", "other"], "train")],
)
def test_the_split_when_none_is_asked_for(splits, taken):
    both = datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": [split]}) for split in splits})
    assert read(both) == [(taken, None)]


def test_splits_and_columns_that_do_not_exist(tmp_path, dataset):
    two = datasets.DatasetDict({"one": dataset, "two": dataset})
    two.save_to_disk(tmp_path / "two")
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    for text in (two, tmp_path / "two"):
        with pytest.raises(InputError, match=r"has no split 'test'; it has 'one', 'two'"):
            read(text, split="test")
        with pytest.raises(InputError, match=r"has the splits 'one', 'two'; choose one with split="):
            read(text)
    with pytest.raises(InputError, match=r"x\.jsonl has no splits, so none called 'test'; leave split out"):
        read(tmp_path / "x.jsonl", split="test")
    for text in (dataset, tmp_path / "x.parquet", dataset.to_iterable_dataset()):
        with pytest.raises(InputError, match=r"has no column 'body'; it has 'id', 'text', 'meta'\. Choose with column="):
            read(text, column="body")
        with pytest.raises(InputError, match=r"has no column 'meta\.kind'; it has"):
            read(text, subset_column="meta.kind")
    with pytest.raises(InputError, match=r"x\.jsonl, line 2, has no column 'text'; it has 'body'"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match=r"column 'id', holds int, not text; choose the column that holds the text"):
        read(dataset, column="id")
    with pytest.raises(InputError, match=r"has no configurations, so none called 'en'; leave name out"):
        read(tmp_path / "x.jsonl", name="en")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(InputError, match=r"x\.txt is plain text and has no column 'kind'; leave subset_column out"):
        read(tmp_path / "x.txt", subset_column="kind")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "b"', "is not valid JSON"),
        (b'["b"]', "holds list, not an object"),
        (b'{"text": "\xff"}', "is not valid JSON"),
        (b'{"text": 1}', "holds int, not text"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, complaint):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"x\.jsonl, line 3, (column 'text', )?{complaint}"):
        read(tmp_path / "x.jsonl")


def test_damaged_files_are_named(tmp_path, dataset):
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"x\.txt is not UTF-8 text \(byte 3.*convert it"):
        read(tmp_path / "x.txt")
    for ending, data in (
        (".gz", gzip.compress(json_lines(RECORDS).encode())[:-20]),
        (".zst", pa.Codec("zstd").compress(json_lines(RECORDS).encode(), asbytes=True)[:-9]),
    ):
        (tmp_path / f"x.jsonl{ending}").write_bytes(data)
        with pytest.raises(FileError, match=rf"cannot read .*x\.jsonl{ending}.*cut short or damaged: fetch it again"):
            read(tmp_path / f"x.jsonl{ending}")
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-30])
    with pytest.raises(FileError, match=r"x\.parquet is damaged \(.*\); fetch it again"):
        read(tmp_path / "x.parquet")
    dataset.save_to_disk(tmp_path / "d")
    next((tmp_path / "d").glob("*.arrow")).unlink()
    with pytest.raises(FileError, match=r"/d looks like a folder of datasets' save_to_disk and cannot be read.*write it again"):
        read(tmp_path / "d")


def test_paths_that_are_nothing(tmp_path):
    (tmp_path / "x.docx").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"x\.docx is of no kind that can be read; give \.txt, \.jsonl"):
        read(tmp_path / "x.docx")
    with pytest.raises(InputError, match=r"the directory .*/empty holds no text; give one with \.txt"):
        read(tmp_path / "empty")
    for path in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "absent.jsonl", "absent.txt.gz"):
        with pytest.raises(InputError, match=r"there is no file or folder .*absent.*; correct the path"):
            read(path)
    with pytest.raises(InputError, match=r"'It was a dark night\.' is neither a file or folder nor the name of a data set; text itself is given as a list"):
        read("It was a dark night.")


def test_what_stands_for_a_file_follows_its_content(tmp_path):
    def identity():
        return open_corpus(tmp_path / "x.txt", split=None, name=None, column="text", subset_column=None).identity

    seen = []
    for text in ("a", "b", "a" * 3_000_000, "a" * 1_500_000 + "b" + "a" * 1_499_999):
        (tmp_path / "x.txt").write_text(text)
        seen.append(json.dumps(identity()))
        assert json.dumps(identity()) == seen[-1]
    assert len(set(seen)) == 4

"""Interrupted at any point, tokenise goes on where it stopped, to the same bytes, and tokenises nothing twice."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest
import tiny

from pyuniversal.errors import FileError, InputError
from pyuniversal.tokens import load_tokens, partial, store, tokenize, write

TEXTS = [f"{i} {text}" for i, text in enumerate(tiny.sentences(60))]  # no two the same
OPTIONS = {"row_tokens": 16, "progress": False}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(write, "BLOCK_DOCUMENTS", 7)  # 9 blocks


@pytest.fixture
def encoded(monkeypatch):
    """The texts that the tokenizer has seen since the fixture was last cleared."""
    seen = []
    real = write.encode
    monkeypatch.setattr(write, "encode", lambda texts, tokenizer: (seen.extend(texts), real(texts, tokenizer))[1])
    return seen


def jsonl(folder):
    (folder / "x").mkdir()
    (folder / "x" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:33]))
    (folder / "x" / "b.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[33:]).encode()))
    return folder / "x"


def saved(folder):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "x")
    return folder / "x"


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def interrupt(module, name, call, error=KeyboardInterrupt):
    """Let the `call`-th call of `module.name` from now on raise."""
    real, count = getattr(module, name), iter(range(call))

    def fails(*arguments, **options):
        if next(count, None) is None:
            raise error("here")
        return real(*arguments, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(module, name, fails)
    return patch


# where: the module and function that is interrupted, and the calls of it that still succeed
POINTS = [(write, "encode", 0), (write, "encode", 4), (write, "encode", 8), (partial, "atomic", 3), (partial, "write_json", 3), (partial, "write_json", 9),
          (store, "pour", 0), (store, "atomic", 1), (store, "content_hash", 0), (store, "write_json", 0)]  # fmt: skip


@pytest.mark.parametrize("source", [lambda folder: TEXTS, jsonl, saved], ids=["list", "files", "dataset"])
@pytest.mark.parametrize(("module", "name", "calls"), POINTS, ids=[f"{name}-{calls}" for _, name, calls in POINTS])
def test_interrupted_anywhere(tokenizer, tmp_path, encoded, source, module, name, calls):
    text = source(tmp_path)
    whole = tokenize(text, tokenizer, out=tmp_path / "whole", **OPTIONS)
    assert encoded == TEXTS
    encoded.clear()
    patch = interrupt(module, name, calls)
    with pytest.raises(KeyboardInterrupt):
        tokenize(text, tokenizer, out=tmp_path / "resumed", **OPTIONS)
    patch.undo()
    before = len(encoded)
    if calls:
        with pytest.raises(FileError, match=r"resumed holds an interrupted tokenisation; run the same tokenisation into it again"):
            load_tokens(tmp_path / "resumed")
    resumed = tokenize(text, tokenizer, out=tmp_path / "resumed", **OPTIONS)
    lost = 7 if module is partial else 0  # the block that was tokenised and not yet written
    assert len(encoded) - len(TEXTS) <= lost
    assert encoded[before:] == TEXTS[len(TEXTS) - (len(encoded) - before) :]
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert resumed.hash == whole.hash
    assert load_tokens(tmp_path / "resumed", verify=True).n_documents == 60


@pytest.mark.parametrize("packing", ["documents", "joined"])
def test_interrupted_before_the_cut(tokenizer, tmp_path, encoded, packing):
    options = OPTIONS | {"packing": packing, "max_tokens": 1000}
    tokenize(TEXTS, tokenizer, out=tmp_path / "whole", **options)
    needed = len(encoded)
    assert needed < len(TEXTS)
    patch = interrupt(write, "encode", 2)
    with pytest.raises(KeyboardInterrupt):
        tokenize(TEXTS, tokenizer, out=tmp_path / "resumed", **options)
    patch.undo()
    tokenize(TEXTS, tokenizer, out=tmp_path / "resumed", **options)
    assert len(encoded) == 2 * needed
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_the_size_of_blocks_leaves_no_trace(tokenizer, tmp_path, monkeypatch):
    tokenize(TEXTS, tokenizer, out=tmp_path / "a", **OPTIONS)
    monkeypatch.setattr(write, "BLOCK_DOCUMENTS", 1000)
    tokenize(TEXTS, tokenizer, out=tmp_path / "b", **OPTIONS)
    monkeypatch.setattr(write, "BLOCK_CHARACTERS", 1)
    tokenize(TEXTS, tokenizer, out=tmp_path / "c", **OPTIONS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert sorted(contents(tmp_path / "a")) == ["documents.parquet", "rows.parquet", "tokens.json", "tokens.npy"]


def test_what_was_interrupted_is_not_mixed_with_something_else(tokenizer, tmp_path):
    patch = interrupt(write, "encode", 2)
    with pytest.raises(KeyboardInterrupt):
        tokenize(TEXTS, tokenizer, out=tmp_path, **OPTIONS)
    patch.undo()
    with pytest.raises(FileError, match=r"\.partial holds an interrupted tokenisation of a list of 60 strings.*content of the text.*Delete that folder"):
        tokenize([*TEXTS[:-1], "changed"], tokenizer, out=tmp_path, **OPTIONS)
    with pytest.raises(FileError, match=r"different: packing 'documents' there and 'joined' here\)"):
        tokenize(TEXTS, tokenizer, out=tmp_path, packing="joined", **OPTIONS)
    assert tokenize(TEXTS, tokenizer, out=tmp_path, **OPTIONS).n_documents == 60


def test_an_iterator_starts_again(tokenizer, tmp_path, encoded):
    patch = interrupt(write, "encode", 2)
    with pytest.raises(KeyboardInterrupt):
        tokenize(iter(TEXTS), tokenizer, out=tmp_path, **OPTIONS)
    patch.undo()
    encoded.clear()
    tokenize(iter(TEXTS), tokenizer, out=tmp_path, **OPTIONS)
    assert encoded == TEXTS


def test_a_full_disk_is_an_error_and_can_be_resumed(tokenizer, tmp_path):
    patch = interrupt(partial.pq, "write_table", 3, lambda _: OSError(28, "No space left on device"))
    with pytest.raises(FileError, match=r"cannot write .*000003\.parquet: No space left on device"):
        tokenize(TEXTS, tokenizer, out=tmp_path, **OPTIONS)
    patch.undo()
    assert tokenize(TEXTS, tokenizer, out=tmp_path, **OPTIONS).n_documents == 60


def test_a_repaired_text_is_another_text(tokenizer, tmp_path, encoded):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{broken\n")
    with pytest.raises(InputError, match=r"x\.jsonl, line 61, is not valid JSON"):
        tokenize(tmp_path / "x.jsonl", tokenizer, out=tmp_path / "out", **OPTIONS)
    assert len(encoded) == 56  # eight whole blocks
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.raises(FileError, match=r"content of the text"):
        tokenize(tmp_path / "x.jsonl", tokenizer, out=tmp_path / "out", **OPTIONS)

"""The folder on disk: its hash, what is found when it is damaged, how rows are read, which documents are held out."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pyuniversal.errors import FileError, InputError
from pyuniversal.tokens import load_tokens, tokenize


@pytest.fixture(scope="module")
def original(tokenizer, documents, tmp_path_factory):
    return tokenize(documents, tokenizer, out=tmp_path_factory.mktemp("tokens") / "t", row_tokens=16, progress=False).path


@pytest.fixture
def folder(original, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(original, tmp_path / "tokens")


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({key: value for key, value in (manifest | changes).items() if value != "remove"}))


def edit_rows(folder, **columns):
    table = pd.read_parquet(folder / "rows.parquet")
    table.assign(**{name: change(table[name].to_numpy().copy()) for name, change in columns.items()}).to_parquet(folder / "rows.parquet", index=False)


def replace_ids(folder, change, name="tokens.npy"):
    ids = np.load(folder / name)
    np.save(folder / name, change(ids))


def put(row, position, value):
    def change(ids):
        ids[row, position] = value
        return ids

    return change


def test_the_hash_is_of_the_content_by_its_definition(folder):
    tokens = load_tokens(folder, verify=True)
    digest = hashlib.sha256(json.dumps(["pyuniversal tokens", 1, tokens.tokenizer_hash, 16, "documents", tokens.n_rows]).encode())
    for column in (tokens.lengths, tokens.documents, tokens.starts):
        digest.update(b"".join(int(x).to_bytes(4, "little") for x in column))
    for ids, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True):
        digest.update(b"".join(x.to_bytes(4, "little") for x in ids[:length]))
    assert tokens.hash == digest.hexdigest()


def test_the_hash_finds_one_changed_token_and_ignores_padding_and_width(folder):
    lengths = load_tokens(folder).lengths
    row = int(np.argmin(lengths))
    replace_ids(folder, put(row, lengths[row], 5))  # the first position of padding
    replace_ids(folder, lambda ids: ids.astype(np.uint32))
    load_tokens(folder, verify=True)
    replace_ids(folder, put(row, lengths[row] - 1, 299))
    assert load_tokens(folder).n_rows == len(lengths)  # nobody looked
    with pytest.raises(FileError, match=r"tokens was changed after it was written: its tokens have the hash \w{12}, its manifest says \w{12}; tokenise"):
        load_tokens(folder, verify=True)


@pytest.mark.parametrize("option", [{"row_tokens": 17}, {"packing": "joined"}, {"max_tokens": 100}])
def test_the_hash_follows_the_options(original, tokenizer, documents, option):
    options = {"row_tokens": 16, "progress": False}
    assert tokenize(documents, tokenizer, **options).hash == load_tokens(original).hash
    assert tokenize(documents, tokenizer, **(options | option)).hash != load_tokens(original).hash


def test_the_hash_follows_where_documents_begin(tokenizer):
    """The same stream of ids, cut into documents otherwise."""
    one, two = (tokenize(texts, tokenizer, row_tokens=4, progress=False) for texts in (["abcdef"], ["abc", "def"]))
    assert one.ids.tolist() == two.ids.tolist()
    assert one.hash != two.hash


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / "tokens.json").unlink(), r"tokens is no folder of tokens: there is no .*tokens\.json\. Make one with tokenize"),
        (lambda f: (f / "tokens.json").write_text("{"), r"tokens\.json is not valid JSON"),
        (lambda f: (f / "tokens.json").write_text("[]"), r"tokens\.json is not the manifest of a folder of tokens; tokenise"),
        (lambda f: edit_manifest(f, version=2), r"tokens\.json is of version 2, this pyuniversal reads version 1; tokenise"),
        (lambda f: edit_manifest(f, bos="remove", hash="remove"), r"tokens\.json is damaged \(no hash, bos\); tokenise"),
        (lambda f: edit_manifest(f, packing="rows"), r"tokens\.json is damaged \(unknown packing\)"),
        (lambda f: (f / "tokens.npy").unlink(), r"tokens\.npy is missing; tokenise"),
        (lambda f: (f / "tokens.npy").write_bytes((f / "tokens.npy").read_bytes()[:-2]), r"tokens\.npy is damaged \(.*\); tokenise"),
        (lambda f: (f / "tokens.npy").write_bytes(b""), r"tokens\.npy is damaged \(.*\); tokenise"),
        (lambda f: np.save(f / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True), r"tokens\.npy is damaged \(.*\); tokenise"),
        (lambda f: replace_ids(f, lambda ids: ids[1:]), r"tokens\.npy holds uint16 \[\d+, 16\], its manifest says \[\d+, 16\]; tokenise"),
        (lambda f: replace_ids(f, lambda ids: ids.astype(np.int64)), r"tokens\.npy holds int64"),
        (lambda f: (f / "rows.parquet").unlink(), r"rows\.parquet is missing"),
        (lambda f: (f / "rows.parquet").write_bytes(b"PAR1"), r"rows\.parquet is damaged"),
        (lambda f: pd.read_parquet(f / "rows.parquet")[1:].to_parquet(f / "rows.parquet"), r"rows\.parquet holds \d+ rows of document, start, length"),
        (lambda f: edit_rows(f, length=lambda x: np.roll(x, 1) + 1), r"rows\.parquet does not fit its manifest"),
        (lambda f: edit_rows(f, length=lambda x: np.where(x == 16, 17, x)), r"rows\.parquet does not fit its manifest"),
        (lambda f: edit_rows(f, document=lambda x: x[::-1]), r"rows\.parquet does not fit its manifest"),
        (lambda f: edit_rows(f, document=lambda x: x + 9), r"rows\.parquet does not fit its manifest"),
        (lambda f: edit_rows(f, start=lambda x: x - 1), r"rows\.parquet does not fit its manifest"),
        (lambda f: (f / "documents.parquet").unlink(), r"documents\.parquet is missing"),
        (
            lambda f: pd.read_parquet(f / "documents.parquet")[1:].to_parquet(f / "documents.parquet"),
            r"documents\.parquet holds 32 documents .*manifest says 33",
        ),
    ],
)
def test_damage_is_found_and_the_file_named(folder, damage, complaint):
    load_tokens(folder, verify=True)
    damage(folder)
    with pytest.raises(FileError, match=complaint):
        load_tokens(folder)


def test_ids_that_the_tokenizer_does_not_have(folder, tokenizer):
    replace_ids(folder, put(7, 2, 60000))
    tokens = load_tokens(folder)
    complaint = rf"row 7 of .*tokens\.npy holds the id 60000 at position 2, but the tokenizer has {len(tokenizer)} tokens; tokenise"
    with pytest.raises(FileError, match=complaint):
        tokens.rows([3, 7])
    with pytest.raises(FileError, match=complaint):
        load_tokens(folder, verify=True)
    replace_ids(folder, put(7, 2, 5))
    replace_ids(folder, put(4, 0, 5))
    with pytest.raises(FileError, match=r"row 4 of .* does not begin with BOS \(0\)"):
        load_tokens(folder, verify=True)


def test_rows_are_trimmed_to_the_longest(original):
    tokens = load_tokens(original)
    lengths = tokens.lengths
    short = np.flatnonzero(lengths == 2)[0], np.flatnonzero(lengths == 9)[0]
    ids, found = tokens.rows(short)
    assert (ids.dtype, found.dtype, ids.shape) == (torch.int64, torch.int64, (2, 9))
    assert found.tolist() == [2, 9]
    assert ids.tolist() == tokens.ids[list(short), :9].tolist()
    for index in ([2, 0, 2], np.array([2, 0, 2]), torch.tensor([2, 0, 2])):
        ids, found = tokens.rows(index)
        assert found.tolist() == lengths[[2, 0, 2]].tolist()
        assert ids.tolist() == tokens.ids[[2, 0, 2], : lengths[[2, 0]].max()].tolist()
    mask = np.arange(tokens.n_rows) == 5
    assert tokens.rows(mask)[0].tolist() == [tokens.ids[5, : lengths[5]].tolist()]
    assert tokens.rows(slice(5, 7))[1].tolist() == lengths[5:7].tolist()
    assert tokens.rows([])[0].shape == (0, 0)
    ids, _ = tokens.rows([0])
    ids += 1  # a copy: the file is not touched
    assert load_tokens(original, verify=True).hash == tokens.hash


def splitmix64(x):
    """In Python's integers, from the published C code."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_held_out_documents(tokenizer):
    few, many = (tokenize(["a"] * count, tokenizer, progress=False) for count in (700, 20_000))
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's first output from seed 0
    for seed in (0, 1, 12345, -1):
        held_out = many.held_out(seed)
        assert held_out.dtype == bool
        assert held_out.tolist()[:700] == few.held_out(seed).tolist()
        assert abs(held_out.mean() - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 20_000)
        assert [splitmix64(splitmix64(d) ^ splitmix64(seed % 2**64)) / 2**64 < 0.1 for d in range(700)] == few.held_out(seed).tolist()
        assert not (held_out & ~many.held_out(seed, 0.2)).any()  # more held out holds out the same and more
    assert abs((many.held_out(0) & many.held_out(1)).mean() - 0.01) < 0.005  # seeds are independent
    assert abs(np.corrcoef(many.held_out(0)[1:], many.held_out(0)[:-1])[0, 1]) < 0.03  # and so are neighbours
    assert not many.held_out(0, 0.0).any()
    assert many.held_out(0, 1.0).all()
    with pytest.raises(InputError, match=r"fraction is 10; a share of the documents is between 0 and 1"):
        many.held_out(0, 10)


def test_an_absent_folder(tmp_path):
    with pytest.raises(FileError, match=r"absent is no folder of tokens.*pyuniversal tokens"):
        load_tokens(tmp_path / "absent")

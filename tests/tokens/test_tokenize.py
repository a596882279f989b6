"""tokenize: what is in the rows, against the tokenizer itself."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pyuniversal.errors import FileError, InputError
from pyuniversal.tokens import load_tokens, tokenize, tokenizer_hash


def reassembled(tokens):
    """The ids of every document, from its rows; checks starts, BOS and padding on the way."""
    found = [[] for _ in range(tokens.n_documents)]
    for ids, length, document, start in zip(tokens.ids.tolist(), tokens.lengths.tolist(), tokens.documents.tolist(), tokens.starts.tolist(), strict=True):
        assert ids[0] == tokens.bos
        assert set(ids[length:]) <= {tokens.bos}
        assert start == len(found[document])
        found[document] += ids[1:length]
    return found


def ids_of(tokenizer, documents):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]


@pytest.mark.parametrize("row_tokens", [2, 16, 512])
def test_rows_hold_the_tokens_of_each_document(tokenizer, documents, row_tokens):
    tokens = tokenize(documents, tokenizer, row_tokens=row_tokens, progress=False)
    want = ids_of(tokenizer, documents)
    assert reassembled(tokens) == want
    assert tokens.n_rows == sum(-(-len(ids) // (row_tokens - 1)) for ids in want)
    assert tokens.n_tokens == sum(map(len, want)) + tokens.n_rows
    assert tokens.lengths.max() <= row_tokens
    assert tokens.document_table["subset"].tolist() == [None] * len(documents)


def test_manifest(tokenizer, documents):
    tokens = tokenize(documents, tokenizer, progress=False)
    assert (tokens.row_tokens, tokens.packing, tokens.bos, tokens.d_vocab) == (512, "documents", 0, len(tokenizer))
    assert tokenizer.decode([tokens.newline]) == "\n"
    assert tokens.newline == tokenizer("a\nb")["input_ids"][1]
    assert tokens.tokenizer_hash == tokenizer_hash(tokenizer)
    assert tokens.ids.dtype == np.uint16


def test_joined_is_the_papers_way(tokenizer):
    documents = ["the of and", "", "to in", "<|endoftext|>a<|endoftext|>", "that it was for on"]
    stream = [i for ids in ids_of(tokenizer, documents) for i in ids if i != 0]  # separators and whatever else reads as BOS vanish
    tokens = tokenize(documents, tokenizer, row_tokens=4, packing="joined", progress=False)
    rows = len(stream) // 3
    assert tokens.ids.tolist() == [[0, *stream[3 * i : 3 * i + 3]] for i in range(rows)]
    assert (tokens.ids == 0).sum() == rows
    assert set(tokens.lengths.tolist()) == {4}


def test_tokenizer_adds_no_special_tokens(documents):
    """A post-processor that frames every text, as Llama's and BERT's do, leaves no trace; nor does padding or truncation that the caller switched on."""
    core = Tokenizer.from_str(tiny.tokenizer_object().backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    framing = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=tiny.BOS, eos_token=tiny.BOS, pad_token=tiny.BOS)
    plain = tiny.tokenizer_object()
    assert framing("a")["input_ids"] != plain("a")["input_ids"]
    framing.backend_tokenizer.enable_truncation(5)
    framing.backend_tokenizer.enable_padding(length=7)
    assert reassembled(tokenize(documents, framing, row_tokens=16, progress=False)) == ids_of(plain, documents)


def test_bos_is_eos_where_there_is_none(documents):
    core = tiny.tokenizer_object().backend_tokenizer
    assert tokenize(documents, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="Ġthe"), progress=False).bos == core.token_to_id("Ġthe")
    with pytest.raises(InputError, match=r"neither a bos nor an eos token.*set tokenizer\.bos_token"):
        tokenize(documents, PreTrainedTokenizerFast(tokenizer_object=core), progress=False)


def words(vocabulary):
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="?")


def test_vocabularies_with_gaps_and_beyond_65536():
    small = tokenize(["a b", "b"], words({"<s>": 0, "?": 1, "a": 2, "b": 65535}), progress=False)
    assert (small.ids.dtype, small.d_vocab) == (np.uint16, 65536)
    assert reassembled(small) == [[2, 65535], [65535]]
    large = tokenize(["a b", "b"], words({"<s>": 0, "?": 1, "a": 2, "b": 65536}), progress=False)
    assert (large.ids.dtype, large.d_vocab) == (np.uint32, 65537)
    assert reassembled(large) == [[2, 65536], [65536]]
    assert large.newline is None  # white space is no token here
    assert large.rows([0])[0].tolist() == [[0, 2, 65536]]


def test_unpaired_surrogates_become_replacement_characters(tokenizer):
    tokens = tokenize(["good", "a\ud800b"], tokenizer, progress=False)
    assert reassembled(tokens) == ids_of(tokenizer, ["good", "a\ufffdb"])


@pytest.mark.parametrize("packing", ["documents", "joined"])
@pytest.mark.parametrize("max_tokens", [16, 17, 100, 333, 10**6])
def test_max_tokens_is_the_beginning_of_the_whole(tokenizer, documents, packing, max_tokens):
    whole = tokenize(documents, tokenizer, row_tokens=16, packing=packing, progress=False)
    part = tokenize(documents, tokenizer, row_tokens=16, packing=packing, max_tokens=max_tokens, progress=False)
    n = part.n_rows
    assert part.ids.tolist() == whole.ids[:n].tolist()
    assert part.n_tokens <= max_tokens
    assert n == whole.n_rows or part.n_tokens + whole.lengths[n] > max_tokens
    assert part.n_documents == (whole.n_documents if n == whole.n_rows else whole.documents[n - 1] + 1)


def test_an_endless_stream_is_read_no_further_than_needed(tokenizer):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "the of and to " * 50  # 200 tokens, 700 characters

    tokens = tokenize(endless(), tokenizer, row_tokens=64, max_tokens=2000, progress=False)
    assert 2000 - 64 < tokens.n_tokens <= 2000
    assert len(taken) <= 2 * 8 * 2000 / 700  # at most 8 characters a token are fetched beforehand


def test_options(tokenizer):
    with pytest.raises(InputError, match=r"unknown packing 'rows'; choose one of documents, joined"):
        tokenize(["a"], tokenizer, packing="rows")
    with pytest.raises(InputError, match=r"row_tokens is 1; .* at least one token"):
        tokenize(["a"], tokenizer, row_tokens=1)
    with pytest.raises(InputError, match=r"max_tokens is 500, less than one row; raise it or lower row_tokens \(512\)"):
        tokenize(["a"], tokenizer, packing="joined", max_tokens=500)
    with pytest.raises(InputError, match=r"max_tokens is 5, less than the 12 of the first row of a list of 1 strings; raise it"):
        tokenize(["abcdefghijk"], tokenizer, max_tokens=5, progress=False)
    with pytest.raises(InputError, match=r"tokenizer is str; give a Hugging Face tokenizer"):
        tokenize(["a"], "gpt2")


def test_empty_and_too_short_text(tokenizer):
    for nothing in ([], ["", ""], iter([])):
        with pytest.raises(InputError, match=r"is empty: (1 document|[02] documents), not one token; give another text, or say which column"):
            tokenize(nothing, tokenizer, progress=False)
    with pytest.raises(InputError, match=r"a list of 2 strings is too short: 5 tokens do not fill one joined row of 512; give more text, lower row_tokens"):
        tokenize(["abc", "de"], tokenizer, packing="joined", progress=False)


def test_a_corrected_text_is_accepted_after_an_empty_one(tokenizer, tmp_path):
    with pytest.raises(InputError, match="empty"):
        tokenize([""], tokenizer, out=tmp_path, progress=False)
    assert reassembled(tokenize(["a"], tokenizer, out=tmp_path, progress=False)) == ids_of(tokenizer, ["a"])


@pytest.mark.parametrize("text", [7, b"bytes", {"text": "a"}])
def test_text_of_the_wrong_kind(tokenizer, text):
    with pytest.raises(InputError, match=rf"text is {type(text).__name__}; give a list of strings, a path"):
        tokenize(text, tokenizer)


def test_list_elements_must_be_text(tokenizer):
    with pytest.raises(InputError, match=r"document 1 of the list is int, not a string"):
        tokenize(["a", 5], tokenizer)
    with pytest.raises(InputError, match=r"document 1 of the iterable holds int, not text"):
        tokenize(iter(["a", 5]), tokenizer, progress=False)
    with pytest.raises(InputError, match=r"a list of strings has no splits, so none called 'test'; leave split out"):
        tokenize(["a"], tokenizer, split="test")


def test_gigantic_documents_are_refused_before_memory_is(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr("pyuniversal.tokens.write.MAX_CHARACTERS", 100)
    with pytest.raises(InputError, match=r"document 2 of a list of 3 strings is a single document of 101 characters.*cut it into several"):
        tokenize(["a" * 100, "b", "c" * 101], tokenizer, progress=False)
    monkeypatch.setattr("pyuniversal.tokens.text_files.MAX_CHARACTERS", 100)
    (tmp_path / "book.txt").write_text("x" * 401)
    with pytest.raises(InputError, match=r"book\.txt is a single document of 401 characters"):
        tokenize(tmp_path / "book.txt", tokenizer, progress=False)


def test_the_temporary_folder_lives_as_long_as_its_tokens(tokenizer):
    tokens = tokenize(["the of and"], tokenizer, progress=False)
    path = tokens.path
    assert load_tokens(path).hash == tokens.hash
    del tokens
    gc.collect()
    assert not path.exists()


def test_finished_tokens_are_reused_and_never_overwritten(tokenizer, documents, tmp_path, monkeypatch):
    first = tokenize(documents, tokenizer, out=tmp_path, row_tokens=32, progress=False)
    monkeypatch.setattr("pyuniversal.tokens.write.encode", lambda *_: pytest.fail("tokenised again"))
    assert tokenize(list(documents), tokenizer, out=tmp_path, row_tokens=32, progress=False).hash == first.hash
    with pytest.raises(
        FileError, match=r"already holds tokens of a list of 33 strings.*row_tokens 32 there and 64 here.*Delete that folder, or choose another"
    ):
        tokenize(documents, tokenizer, out=tmp_path, row_tokens=64)
    with pytest.raises(FileError, match=r"asked for here, a list of 1 strings.*content of the text"):
        tokenize(["other"], tokenizer, out=tmp_path, row_tokens=32)
    with pytest.raises(FileError, match=r"tokenizer_hash '\w{64}' there"):
        tokenize(documents, tiny.tokenizer_object(words=["hat", "coat"]), out=tmp_path, row_tokens=32)
    with pytest.raises(FileError, match=r"an iterable cannot be compared"):
        tokenize(iter(documents), tokenizer, out=tmp_path, row_tokens=32)
    assert load_tokens(tmp_path, verify=True).hash == first.hash


def test_an_unwritable_folder_is_found_first(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write to the folder .*file/tokens.*Choose another"):
        tokenize(["a"], tokenizer, out=tmp_path / "file" / "tokens")

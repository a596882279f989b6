"""A tokenizer's hash follows what decides ids, all of it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast

from pyuniversal.errors import InputError
from pyuniversal.tokenizer_identity import describe_difference, tokenizer_hash


def fast(change: Callable[[Tokenizer], None] = lambda core: None, **options: str) -> PreTrainedTokenizerFast:
    core = Tokenizer.from_str(tiny.tokenizer_object().backend_tokenizer.to_str())
    change(core)
    return PreTrainedTokenizerFast(tokenizer_object=core, **({"bos_token": tiny.BOS, "eos_token": tiny.BOS} | options))


def test_folder_object_and_use_do_not_matter(tmp_path: Path) -> None:
    built, loaded = tiny.tokenizer_object(), AutoTokenizer.from_pretrained(tiny.tokenizer(tmp_path))
    before = tokenizer_hash(loaded)
    assert len(before) == 64
    assert tokenizer_hash(built) == before
    loaded(["the of and", "to"], padding=True, truncation=True, max_length=2)
    loaded.padding_side = "left"
    loaded.pad_token = loaded.eos_token
    loaded.model_max_length = 7
    assert loaded.backend_tokenizer.padding is not None
    assert tokenizer_hash(loaded) == before
    assert describe_difference(built, loaded) is None


def test_decoder_and_offsets_do_not_matter() -> None:
    def change(core: Tokenizer) -> None:
        core.decoder = decoders.Fuse()
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)

    assert tokenizer_hash(fast(change)) == tokenizer_hash(fast())


CHANGES: dict[str, tuple[Callable[[Tokenizer], None], str, str]] = {
    # name: (what is changed, a text that then turns into other ids, what the message says)
    "normaliser": (
        lambda core: setattr(core, "normalizer", normalizers.Lowercase()),
        "The",
        "normaliser: None in the first, {'type': 'Lowercase'} in the second",
    ),
    "prefix space": (
        lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "the",
        "pre-tokeniser: 'add_prefix_space' is False in the first, True in the second",
    ),
    "added token": (
        lambda core: core.add_tokens(["zebra"]) and None,
        "zebra",
        "vocabulary: 350 entries in the first, 351 in the second; 'zebra' is absent in the first, 350 in the second",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_ids_changes_the_hash_and_is_described(name: str) -> None:
    change, text, message = CHANGES[name]
    a, b = fast(), fast(change)
    assert a(text).input_ids != b(text).input_ids
    assert tokenizer_hash(a) != tokenizer_hash(b)
    assert describe_difference(a, b) == message


def test_order_of_merges() -> None:
    vocabulary = {tiny.BOS: 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5}
    left, right = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)), bos_token=tiny.BOS)
        for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")])
    )
    assert left("abc").input_ids == [4, 3]
    assert right("abc").input_ids == [1, 5]
    assert describe_difference(left, right) == "merges: number 0 of 2 is ['a', 'b'] in the first, ['b', 'c'] of 2 in the second"
    assert tokenizer_hash(left) != tokenizer_hash(right)


def test_the_id_that_begins_a_row() -> None:
    a, b = fast(), fast(bos_token="a", eos_token="a")
    assert describe_difference(a, b) == f"id that begins a row: 0 in the first, {b.bos_token_id} in the second"
    # where there is no BOS, EOS begins the row: setting BOS to it (as TransformerLens does) is no difference
    assert tokenizer_hash(fast(bos_token=None)) == tokenizer_hash(fast())


def test_another_vocabulary() -> None:
    a, b = tiny.tokenizer_object(), tiny.tokenizer_object(words=tiny.WORDS[:-1])
    assert tokenizer_hash(a) != tokenizer_hash(b)
    assert describe_difference(a, b) == "vocabulary: 350 entries in the first, 348 in the second; 'Ġsh' is 348 in the first, absent in the second"


def test_unigram_scores() -> None:
    a, b = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("u", 0.0), ("a", -1.0), ("aa", score)], 0)), bos_token="u")
        for score in (-1.5, -2.5)
    )
    assert a("aa").input_ids == [2]
    assert b("aa").input_ids == [1, 1]
    assert describe_difference(a, b) == "scores: number 2 of 3 is ['aa', -1.5] in the first, ['aa', -2.5] of 3 in the second"


def ctrl(folder: Path, merges: list[str]) -> CTRLTokenizer:
    folder.mkdir()
    vocabulary = {"<unk>": 0, "a@@": 1, "b@@": 2, "c": 3, "ab@@": 4, "bc": 5, "a": 6, "b": 7}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CTRLTokenizer(vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"))


def test_slow_tokenizers(tmp_path: Path) -> None:
    a, twin, b = ctrl(tmp_path / "a", ["a b", "b c</w>"]), ctrl(tmp_path / "twin", ["a b", "b c</w>"]), ctrl(tmp_path / "b", ["b c</w>", "a b"])
    assert not a.is_fast
    assert a.encode("abc", add_special_tokens=False) == [4, 3]
    assert b.encode("abc", add_special_tokens=False) == [1, 5]
    assert tokenizer_hash(a) == tokenizer_hash(twin)
    assert tokenizer_hash(a) != tokenizer_hash(b)
    assert describe_difference(a, b) == "merges: number 0 of 2 is ['a', 'b'] in the first, ['b', 'c</w>'] of 2 in the second"
    assert describe_difference(tiny.tokenizer_object(), ByT5Tokenizer()) == "kind: BPE in the first, slow ByT5Tokenizer in the second"
    few, many = ByT5Tokenizer(extra_ids=3), ByT5Tokenizer()
    assert tokenizer_hash(many) == tokenizer_hash(ByT5Tokenizer())
    assert (
        describe_difference(few, many) == "vocabulary: 262 entries in the first, 384 in the second; '<extra_id_100>' is absent in the first, 359 in the second"
    )


def test_not_a_tokenizer() -> None:
    with pytest.raises(InputError, match=r"dict is not a tokenizer of transformers\. Pass what AutoTokenizer\.from_pretrained returns"):
        tokenizer_hash({})  # type: ignore[arg-type]


def test_an_id_out_of_all_proportion_is_refused_at_once(tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    token = next(iter(whole["model"]["vocab"]))
    whole["model"]["vocab"][token] = 2**31  # the backend would visit every id up to it, and take 8 GB
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(InputError, match=r"is damaged: its token .* has the id 2,147,483,648"):
        tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path))

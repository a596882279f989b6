"""Which tokenizers are the same: a hash of everything that decides which ids a text becomes, and of nothing else.

Token ids of one tokenizer fed to a model of another give numbers that look like a result. So files of tokens carry this hash, and models are compared by it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_ID = 2**24  # the largest vocabularies of 2026 have some 2^18 tokens
# What a slow tokenizer does is Python code, which has no canonical form: what it makes of a text where tokenizers usually part stands for it.
PROBE = "Hello, hELLO!  The cat's 3.14159 naïve façade\n\n\tdef f(x): return x**2  # 你好 Ω \U0001f642 <|endoftext|> ﬁn\u00a0e\u0301 1000000 'Tis"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """64 hex digits, equal for two tokenizers iff all is equal that decides into which ids a text turns (special tokens not added) and which id begins a row.

    Hashed are vocabulary, merges or scores, normaliser, pre-tokeniser, added tokens and the id that begins a row (BOS, or EOS where there is none). Padding,
    truncation, post-processor, decoder and chat template are left out: they change while a tokenizer is used, and never an id. Two slow tokenizers (without a
    `tokenizers` backend) are compared by class, vocabulary, merges and what they make of a probe text; a slow and a fast one never compare equal.

    Raises:
        InputError: not a tokenizer of transformers.
    """
    return sha256(json.dumps(_parts(tokenizer), sort_keys=True))


def describe_difference(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """Say in words what differs first between two tokenizers, None where `tokenizer_hash` finds them equal. `a` is "the first", `b` "the second"."""
    first, second = _parts(a), _parts(b)
    if first["kind"] != second["kind"]:
        return f"kind: {first['kind']} in the first, {second['kind']} in the second"
    for part, x in first.items():
        y = second[part]
        if x != y:
            return f"{part}: {_difference(x, y)}"
    return None


def _parts(tokenizer: Any) -> dict[str, Any]:
    """Everything that decides ids, as JSON values by name; the names are those of the messages."""
    if not (hasattr(tokenizer, "get_vocab") and hasattr(tokenizer, "bos_token_id")):
        raise InputError(f"{type(tokenizer).__name__} is not a tokenizer of transformers. Pass what AutoTokenizer.from_pretrained returns.")
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    vocabulary = tokenizer.get_vocab()
    if (highest := max(vocabulary.values(), default=0)) > LARGEST_ID:  # the backend's `to_str` visits every id up to it
        token = max(vocabulary, key=vocabulary.__getitem__)
        raise InputError(f"the tokenizer {tokenizer.name_or_path or ''} is damaged: its token {token!r} has the id {highest:,}. Copy or download it again.")
    ends = {"vocabulary": vocabulary, "id that begins a row": begin}
    splits_special = bool(getattr(tokenizer, "split_special_tokens", False))
    return ends | (_fast(tokenizer, splits_special) if getattr(tokenizer, "is_fast", False) else _slow(tokenizer, splits_special))


def _fast(tokenizer: Any, splits_special: bool) -> dict[str, Any]:
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    scores = model.pop("vocab")
    # `special` decides an id only where special tokens are split like text
    flags = ("id", "content", "single_word", "lstrip", "rstrip", "normalized") + (("special",) if splits_special else ())
    return {
        "kind": model.pop("type", "unnamed model"),
        "merges": model.pop("merges", None),
        "scores": None if isinstance(scores, dict) else scores,
        "model options": model,
        "normaliser": whole["normalizer"],
        "pre-tokeniser": _without_offsets(whole["pre_tokenizer"]),
        "added tokens": {token["content"]: {flag: token[flag] for flag in flags} for token in whole["added_tokens"]},
        "special tokens split": splits_special,
    }


def _slow(tokenizer: Any, splits_special: bool) -> dict[str, Any]:
    ranks = getattr(tokenizer, "bpe_ranks", None) or {}
    sentencepiece = getattr(tokenizer, "sp_model", None)
    return {
        "kind": f"slow {type(tokenizer).__name__}",
        "merges": [list(pair) for pair in sorted(ranks, key=ranks.__getitem__)],
        "sentencepiece model": None if sentencepiece is None else sha256(sentencepiece.serialized_model_proto()),
        "added tokens": {
            token.content: [i, token.single_word, token.lstrip, token.rstrip, token.normalized] for i, token in tokenizer.added_tokens_decoder.items()
        },
        "special tokens split": splits_special,
        "ids of a probe text": tokenizer.encode(PROBE, add_special_tokens=False),
    }


def _without_offsets(value: Any) -> Any:
    """The pre-tokeniser without `trim_offsets`, which moves offsets and never an id."""
    if isinstance(value, dict):
        return {key: _without_offsets(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_without_offsets(inner) for inner in value] if isinstance(value, list) else value


def _difference(x: Any, y: Any) -> str:
    """One example of how two unequal parts differ."""
    if isinstance(x, dict) and isinstance(y, dict):
        size = f"{len(x)} entries in the first, {len(y)} in the second; " if len(x) != len(y) else ""
        key = min((key for key in x.keys() | y.keys() if x.get(key, _ABSENT) != y.get(key, _ABSENT)), key=str)
        return f"{size}{key!r} is {x.get(key, _ABSENT)!r} in the first, {y.get(key, _ABSENT)!r} in the second"
    if isinstance(x, list) and isinstance(y, list):
        i = next((i for i, (u, v) in enumerate(zip(x, y, strict=False)) if u != v), min(len(x), len(y)))
        return f"number {i} of {len(x)} is {x[i] if i < len(x) else _ABSENT!r} in the first, {y[i] if i < len(y) else _ABSENT!r} of {len(y)} in the second"
    return f"{x!r} in the first, {y!r} in the second"


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()

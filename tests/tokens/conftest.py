"""A tokenizer, and text with the awkward documents in it: empty, one token, longer than many rows, exactly a row, not ASCII."""

from __future__ import annotations

import pytest
import tiny
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny.tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def documents():
    long = " ".join(tiny.sentences(12, seed=5))  # several hundred tokens
    return ["", "a", *tiny.sentences(20), long, "", "z" * 15, "z" * 30, "naïve 你好 \U0001f642\r\n\n", *tiny.sentences(5, seed=9), ""]

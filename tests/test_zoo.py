"""The package data: what is in it against numbers taken from the arrays it was packed from, and against plain transformers."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from pyuniversal import zoo
from pyuniversal.tokens import load_tokens, tokenizer_hash

# subset: first and last document, rows, licence, and a phrase of it
SUBSETS = {
    "novels": (0, 26, 791, "public domain", "Pequod"),
    "scripture": (27, 89, 481, "public domain outside the United Kingdom", "the LORD"),
    "speeches": (90, 103, 554, "public domain (US government)", "Congress"),
    "wikipedia": (104, 448, 390, "CC-BY-SA-4.0", "ice shelf"),
    "factbook": (449, 463, 613, "public domain (US government)", "The World Factbook"),
    "legal": (464, 500, 615, "CC-BY-4.0 (collection)", "Redistribution and use in source and binary forms"),
    "mathematics": (501, 551, 539, "CC0-1.0", "(Contributed by"),
    "arithmetic": (552, 662, 547, "Apache-2.0 (generator)", "Simplify"),
    "python": (663, 689, 768, "PSF-2.0", "def __init__(self"),
    "go": (690, 721, 878, "BSD-3-Clause", "if err != nil {"),
    "docs": (722, 734, 485, "PSF-2.0", ":mod:"),
    "french": (735, 1195, 559, "CC-BY-SA-4.0", "Une chambre à brouillard"),
    "spanish": (1196, 1614, 553, "CC-BY-SA-4.0", "que se"),
}


@pytest.fixture(scope="module")
def tokens():
    return load_tokens(zoo.tokens(), verify=True)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.models()[0])


def test_it_holds_five_models_and_fits():
    assert [path.name for path in zoo.models()] == ["seed-0", "seed-1", "seed-2", "seed-3", "seed-4"]
    root = zoo.tokens().parent
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts) < 20e6
    for path in (*root.rglob("*.json"), *root.rglob("*.md")):
        assert not re.search(r"/(work|home|root|tmp|Users)/", path.read_text(encoding="utf-8")), f"{path} names a folder of the machine that made it"


def test_rows_are_those_that_were_held_out(tokens):
    assert hashlib.sha256(np.ascontiguousarray(tokens.ids, "<u2").tobytes()).hexdigest() == "0e33f99b1f4c5b55b9380b9fffac021bb7a63c1d3de07b51def16d51ee555fcf"
    assert (tokens.n_rows, tokens.n_tokens, tokens.n_documents, tokens.row_tokens, tokens.bos, tokens.newline) == (7773, 994_944, 1615, 128, 0, 199)
    assert set(tokens.lengths.tolist()) == {128}
    assert int((tokens.documents.astype(np.int64) * np.arange(7773)).sum()) == 22_436_546_928
    assert (int(tokens.starts.sum()), int(tokens.starts.max())) == (13_544_550, 12_192)


def test_subset_licence_and_source_of_each_document(tokens):
    table = tokens.document_table
    assert set(table["subset"]) == set(SUBSETS)
    assert table["source"].str.len().gt(5).all()
    of_row = table["subset"].to_numpy()[tokens.documents]
    card = (zoo.tokens().parent / "README.md").read_text(encoding="utf-8")
    for subset, (first, last, rows, licence, _) in SUBSETS.items():
        part = table[table["subset"] == subset]
        assert part.index.tolist() == list(range(first, last + 1))
        assert set(part["licence"]) == {licence}
        assert (of_row == subset).sum() == rows
        assert f"| {subset} | {last - first + 1} | {rows} | {part['source'].iloc[0]} | {licence} |" in card
    assert "CC BY-SA 4.0" in card
    assert "Copyright (c) 2009 The Go Authors" in (zoo.tokens().parent / "NOTICES.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_text_of_each_subset(tokens, tokenizer, subset):
    of_row = tokens.document_table["subset"].to_numpy()[tokens.documents]
    assert SUBSETS[subset][-1] in tokenizer.decode(tokens.ids[of_row == subset, 1:].ravel().tolist())
    document = tokens.documents[np.flatnonzero(of_row == subset)[0]]
    ids = tokens.ids[tokens.documents == document, 1:].ravel().tolist()
    # the text tokenised again gives the same ids, but for the end, where it was cut
    assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"][: len(ids) - 8] == ids[:-8]


def test_models_are_of_one_architecture_one_tokenizer_and_five_seeds(tokens):
    configs, weights = set(), []
    for path in zoo.models():
        configs.add((path / "config.json").read_text())
        assert tokenizer_hash(AutoTokenizer.from_pretrained(path)) == tokens.tokenizer_hash
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        assert model.dtype == torch.float16
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        weights.append(model.transformer.h[1].mlp.c_fc.weight.float().flatten())
        assert json.loads((path / "training.json").read_text())["seed"] == int(path.name[-1])
    assert len(configs) == 1
    correlations = torch.corrcoef(torch.stack(weights)) - torch.eye(5)
    assert correlations.abs().max() < 0.05  # strangers: no model is a copy or a continuation of another


def test_the_test_loss_of_one_seed(tokens):
    path: Path = zoo.models()[3]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows = torch.from_numpy(tokens.ids[::12].astype(np.int64))
    with torch.inference_mode():
        losses = [F.cross_entropy(model(block[:, :-1]).logits.flatten(0, 1), block[:, 1:].flatten(), reduction="sum").item() for block in rows.split(64)]
    loss = sum(losses) / rows[:, 1:].numel()
    published = json.loads((path / "training.json").read_text())["test_loss"]
    assert loss == pytest.approx(published, abs=0.02)
    assert f"| 3 | 9,766 | 20,000,768 | {loss:.2f}" in (zoo.tokens().parent / "README.md").read_text(encoding="utf-8")

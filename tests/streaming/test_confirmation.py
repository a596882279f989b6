"""The pass that confirms partners: r against numpy on the very tokens, resume to the same bytes, what it refuses; documents dealt out to batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open

from pyuniversal import ActivationError, InputError, ModelSite, Tokens, load_model, tokenize
from pyuniversal.streaming import chunks, confirm_pass, confirmation, document_batches
from pyuniversal.totals import Confirmation
from pyuniversal.universality import replicates

COLUMNS = 120  # 3 layers of 40 neurons


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return [tiny.gpt2(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, folders) -> Tokens:
    return tokenize(tiny.sentences(80), load_model(folders[0]).tokenizer, out=tmp_path_factory.mktemp("tokens"), row_tokens=32, progress=False)


def sites(folders, **options) -> list[ModelSite]:
    return [ModelSite(load_model(f), **options) for f in folders]


def arguments(tokens: Tokens, models: int = 3, *, batches: int = 5, candidates: int = 2, fraction: float = 0.4) -> dict:
    """Partners drawn at random, centres off the means."""
    rows = np.flatnonzero(tokens.held_out(3, fraction)[tokens.documents])
    generator = torch.Generator().manual_seed(1)
    pairs = [(i, j) for i in range(models) for j in range(models) if i != j]
    partners = {pair: torch.randint(0, COLUMNS, (COLUMNS, candidates), generator=generator) for pair in pairs}
    partners[0, 1][7, 0] = -1
    centre = [0.1 * torch.randn(COLUMNS, generator=generator) for _ in range(models)]
    batch_of_row = document_batches(tokens, rows, seed=3, batches=batches)
    return {"rows": rows, "batch_of_row": batch_of_row, "partners": partners, "centre": centre, "progress": False}


def by_hand(folder: Path, tokens: Tokens, rows: np.ndarray) -> list[np.ndarray]:
    """What W_out of every layer multiplies, over the tokens of each row that count: float64 [tokens, columns] a row."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    caught: list[torch.Tensor] = []
    for block in model.transformer.h:
        block.mlp.c_proj.register_forward_pre_hook(lambda _m, i: caught.append(i[0][0]))
    found = []
    for row in rows:
        caught.clear()
        ids = torch.tensor(tokens.ids[row, : tokens.lengths[row]].astype(np.int64))
        with torch.no_grad():
            model(ids[None])
        found.append(torch.cat(caught, 1).double().numpy()[((ids != tokens.bos) & (ids != tokens.newline)).numpy()])
    return found


@pytest.mark.parametrize(("chunk_tokens", "batch_tokens"), [(64, 32), (4096, 4096)])
def test_correlations_are_those_of_numpy_on_the_very_tokens(folders, tokens, chunk_tokens, batch_tokens):
    given = arguments(tokens)
    state = confirm_pass(sites(folders), tokens, chunk_tokens=chunk_tokens, batch_tokens=batch_tokens, **given)
    per_row = [by_hand(folder, tokens, given["rows"]) for folder in folders]
    for i, j in state.pairs:
        for candidate in (0, 1):
            found = replicates(state, i, j, candidate=candidate)
            for batch in (None, 0, 4):  # r of all rows, then without one batch
                kept = [n for n, b in enumerate(given["batch_of_row"]) if b != batch]
                x, y = (np.concatenate([per_row[side][n] for n in kept]) for side in (i, j))
                r = np.corrcoef(x.T, y.T)[:COLUMNS, COLUMNS:][np.arange(COLUMNS), given["partners"][i, j][:, candidate]]
                if (i, j, candidate) == (0, 1, 0):
                    r[7] = np.nan
                np.testing.assert_allclose(found.whole if batch is None else found.without[batch], r, atol=2e-5)
    for batch in range(5):
        count = sum(len(per_row[0][n]) for n in np.flatnonzero(given["batch_of_row"] == batch))
        assert state.moments[2].counts[batch] == state.pairs[2, 0].tokens[batch] == count > 0


def test_sources_of_different_sites_do_not_share_memory(folders, tokens):
    given = arguments(tokens, 3)
    post, pre = (confirm_pass(sites(folders, site=site), tokens, chunk_tokens=64, **given) for site in ("mlp.post", "mlp.pre"))
    assert not torch.allclose(post.pairs[0, 2].sums, pre.pairs[0, 2].sums)
    mixed = [ModelSite(load_model(f), site=site) for f, site in zip(folders, ("mlp.post", "mlp.pre", "mlp.post"), strict=True)]
    found = confirm_pass(mixed, tokens, chunk_tokens=64, **given)
    assert torch.equal(found.pairs[0, 2].sums, post.pairs[0, 2].sums)
    assert torch.equal(found.pairs[2, 0].sums, post.pairs[2, 0].sums)
    for i, like in enumerate((post, pre, post)):
        assert torch.equal(found.moments[i].state, like.moments[i].state)


def contents(path: Path) -> tuple:
    """Bytes of every tensor and what the header says; safetensors itself writes the fields of its header in no fixed order."""
    if path.suffix == ".json":
        return (path.read_bytes(),)
    with safe_open(path, framework="np") as file:
        return {name: (file.get_tensor(name).tobytes(), file.get_tensor(name).shape) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


@pytest.mark.parametrize("stop", [0, 2])
def test_a_stopped_pass_resumes_to_the_same_bytes(folders, tokens, tmp_path, monkeypatch, stop):
    given = arguments(tokens) | {"chunk_tokens": 64}
    confirm_pass(sites(folders), tokens, out=tmp_path / "whole", **given)
    per_batch = [-(-int((given["batch_of_row"] == b).sum()) // 2) for b in range(5)]  # chunks of two rows
    allowed = 3 * (sum(per_batch[:stop]) + 1)  # some of the batch after the last that is finished
    assert per_batch[stop] > 1
    made = []
    real = chunks.gather

    def gather(source, *rest, **more):
        made.append(source.name)
        if len(made) > allowed:
            raise KeyboardInterrupt
        return real(source, *rest, **more)

    monkeypatch.setattr(confirmation, "gather", gather)
    with pytest.raises(KeyboardInterrupt):
        confirm_pass(sites(folders), tokens, out=tmp_path / "stopped", **given)
    assert Confirmation.load(tmp_path / "stopped").done == set(range(stop))
    made.clear()
    allowed = 10**9
    resumed = confirm_pass(sites(folders), tokens, out=tmp_path / "stopped", **given)
    assert made == ["a", "b", "c"] * sum(per_batch[stop:])
    assert resumed.missing() == []
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "stopped").iterdir())
    for name in names:
        one, other = (contents(tmp_path / folder / name) for folder in ("stopped", "whole"))
        assert one == other, name
    monkeypatch.setattr(confirmation, "gather", lambda *_: pytest.fail("a model was run"))
    again = confirm_pass(sites(folders), tokens, out=tmp_path / "whole", **given)
    for pair in again.pairs:
        assert torch.equal(again.pairs[pair].sums, resumed.pairs[pair].sums)


def test_folder_of_another_confirmation(folders, tokens, tmp_path):
    given = arguments(tokens)
    confirm_pass(sites(folders), tokens, out=tmp_path, **given)
    others = {
        "partners": given | {"partners": given["partners"] | {(0, 1): given["partners"][1, 0]}},
        "centres": given | {"centre": [c + 1 for c in given["centre"]]},
        "rows": given | {"batch_of_row": given["batch_of_row"][::-1]},
    }
    for name, changed in others.items():
        with pytest.raises(InputError, match=rf"holds the confirmation of another run; it differs in {name}\. Choose another --out, or --overwrite"):
            confirm_pass(sites(folders), tokens, out=tmp_path, **changed)
    with pytest.raises(InputError, match="it differs in models, layers or site"):
        confirm_pass(sites(folders[::-1]), tokens, out=tmp_path, **given)
    further = tokenize(tiny.sentences(81), load_model(folders[0]).tokenizer, out=tmp_path / "tokens", row_tokens=32, progress=False)
    with pytest.raises(InputError, match="it differs in tokens"):
        confirm_pass(sites(folders), further, out=tmp_path, **given)


class Poisoned(ModelSite):
    """A source whose neuron 7 of its second layer is NaN wherever one token id occurs."""

    def __init__(self, model, token: int) -> None:
        super().__init__(model)
        self.token = token

    def activations(self, ids):
        found = {site: [x.clone() for x in layers] for site, layers in super().activations(ids).items()}
        found["mlp.post"][1][..., 7][ids == self.token] = torch.nan
        return found


def test_nonfinite_activations_name_the_place_and_keep_what_was_done(folders, tokens, tmp_path):
    given = arguments(tokens, 2)
    met = np.unique(tokens.ids[given["rows"][given["batch_of_row"] == 0]])
    token = next(t for t in np.unique(tokens.ids[given["rows"]]) if t not in met)
    sources = [ModelSite(load_model(folders[0])), Poisoned(load_model(folders[1]), int(token))]
    with pytest.raises(ActivationError, match=r"^b: mlp.post of L1.7 is nan at row \d+ .*; 1 neurons are affected\. Run the model in a wider dtype") as caught:
        confirm_pass(sources, tokens, out=tmp_path, **given)
    row, document, position = (int(str(caught.value).split(word)[1].split(end)[0]) for word, end in (("row ", " "), ("document ", ")"), ("position ", ";")))
    assert tokens.ids[row, position] == token
    assert tokens.documents[row] == document
    batch = given["batch_of_row"][given["rows"] == row][0]
    assert batch > 0
    assert Confirmation.load(tmp_path).done == set(range(batch))


def test_a_dead_neuron_has_no_r(folders, tokens):
    given = arguments(tokens, 2)
    sources = sites(folders[:2])
    sources[1].model.module.transformer.h[1].mlp.c_fc.weight.data[:, 7] = 0
    state = confirm_pass(sources, tokens, **given)
    assert (state.moments[1].whole()[2] == 0).nonzero().flatten().tolist() == [47]
    dead = given["partners"][0, 1][:, 0] == 47
    dead[7] = True
    assert torch.isnan(replicates(state, 0, 1).whole).tolist() == dead.tolist()
    assert torch.isnan(replicates(state, 1, 0).without).all(0).nonzero().flatten().tolist() == [47]


def test_documents_of_nothing_but_newlines_add_nothing(folders, tmp_path):
    texts = [*tiny.sentences(10), "\n", "\n"]
    tokens = tokenize(texts, load_model(folders[0]).tokenizer, out=tmp_path, row_tokens=32, progress=False)
    given = arguments(tokens, 2, batches=100, fraction=1.0)
    assert max(given["batch_of_row"]) == 11
    state = confirm_pass(sites(folders[:2]), tokens, **given)
    assert (state.moments[0].counts == 0).sum() == 2
    found = replicates(state, 1, 0)
    se = found.se(state.moments[0].counts)
    assert torch.isfinite(se).all()
    some = state.moments[0].counts > 0
    torch.testing.assert_close(se, type(found)(found.whole, found.without[some]).se(state.moments[0].counts[some]), rtol=1e-12, atol=0)


def test_what_cannot_be_confirmed(folders, tokens):
    given = arguments(tokens, 2)
    with pytest.raises(InputError, match="there is nothing to confirm on: 0 rows, a batch for 0 of them; hold more documents out"):
        confirm_pass(sites(folders[:2]), tokens, **(given | {"rows": given["rows"][:0], "batch_of_row": given["batch_of_row"][:0]}))
    with pytest.raises(InputError, match=r"the centres are of \[120\] neurons, the sources of \[120, 120\]"):
        confirm_pass(sites(folders[:2]), tokens, **(given | {"centre": given["centre"][:1]}))


def corpus(lengths: list[int], documents: list[int]) -> Tokens:
    return SimpleNamespace(lengths=np.array(lengths, np.int32), documents=np.array(documents, np.int32))  # type: ignore[return-value]


def test_documents_stay_whole_and_batches_even():
    generator = np.random.default_rng(0)
    documents = np.sort(generator.integers(0, 900, 3000))
    lengths = generator.integers(2, 60, 3000)
    tokens = corpus(lengths, documents)
    rows = generator.permutation(3000)[:2000]
    batch = document_batches(tokens, rows, seed=5)
    assert batch.dtype == np.int64
    for document in np.unique(documents[rows]):
        assert len(set(batch[documents[rows] == document])) == 1
    sizes = np.bincount(batch, weights=lengths[rows] - 1)
    largest = np.bincount(documents[rows], weights=lengths[rows] - 1).max()
    assert len(sizes) == 32
    assert sizes.max() - sizes.min() <= largest
    # Batches are even, but a lot decides who is in them: neither seed nor order of the rows is without effect on the one and on the other.
    assert (document_batches(tokens, rows, seed=6) != batch).mean() > 0.9
    assert document_batches(tokens, rows[::-1], seed=5).tolist() == batch[::-1].tolist()


def test_few_documents_make_few_batches():
    tokens = corpus([9, 9, 3, 5, 9, 100], [0, 0, 4, 4, 6, 9])
    batch = document_batches(tokens, np.arange(6), seed=0)
    assert sorted(set(batch)) == [0, 1, 2, 3]
    assert batch[0] == batch[1]
    assert batch[2] == batch[3]
    two = document_batches(tokens, np.arange(6), seed=0, batches=2)
    assert sorted(set(two)) == [0, 1]
    assert document_batches(tokens, np.arange(6), seed=0, batches=1).tolist() == [0] * 6
    assert document_batches(tokens, np.arange(0), seed=0).tolist() == []
    with pytest.raises(InputError, match="at least one batch, not 0"):
        document_batches(tokens, np.arange(6), seed=0, batches=0)


def test_batches_mix_long_and_short_by_chance():
    # Dealt out longest first, the longest 32 would always go to 32 different batches; by chance the chance of that is 32! / 32^32 or so.
    lengths = np.r_[np.full(64, 41), np.full(640, 5)]
    batch = document_batches(corpus(lengths, np.arange(704)), np.arange(704), seed=1)
    long = np.bincount(batch[:64], minlength=32)
    assert long.max() >= 3
    sizes = np.bincount(batch, weights=lengths - 1)
    assert sizes.max() - sizes.min() <= 40

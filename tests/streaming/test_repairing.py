"""Re-paired rows: who is paired with whom, and best correlations against numpy on tokens that are paired by hand."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Synthetic

from pyuniversal import ActivationError, ModelSite, Tokens, correlate, load_model, observe, tokenize
from pyuniversal.streaming.chunks import choose_rows
from pyuniversal.streaming.pairing import cut, pair_rows, spans
from pyuniversal.streaming.repairing import _part, best_by_chance, pairings, part_rows, ring

OPTIONS = {"draws": 3, "chunk_tokens": 400, "seed": 5}
Piece = st.lists(st.tuples(st.integers(2, 6), st.integers(0, 5)), min_size=1, max_size=40)


def twice(documents: np.ndarray) -> np.ndarray:
    """Rows of one document each: [rows, 2]."""
    return np.stack([documents, documents], axis=1)


def excess(documents: np.ndarray) -> int:
    """Rows that cannot be paired: those of the largest document less all the others."""
    largest = max(Counter(documents.tolist()).values(), default=0)
    return max(0, 2 * largest - len(documents))


@given(Piece, st.integers(0, 2**32))
def test_partners_are_of_other_documents_and_of_equal_length_where_there_are_any(rows, seed):
    lengths, documents = np.array(rows, dtype=np.int64).T
    found = pair_rows(lengths, twice(documents), draws=3, rng=np.random.default_rng(seed))
    assert found.shape == (3, len(rows))
    unequal = 2 * sum(excess(documents[lengths == length]) for length in set(lengths.tolist()))
    for partner in found:
        paired = np.flatnonzero(partner >= 0)
        assert (documents[paired] != documents[partner[paired]]).all()
        assert len(set(partner[paired])) == len(paired), "nobody is a partner twice"
        assert len(rows) - len(paired) == excess(documents), "alone are only the rows that are too many of one document"
        assert (lengths[paired] != lengths[partner[paired]]).sum() <= unequal


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=2, max_size=30), st.integers(0, 2**32))
def test_rows_of_joined_documents_share_none(rows, seed):
    first = np.cumsum([step for step, _ in rows])
    documents = np.stack([first, first + [more for _, more in rows]], axis=1)
    (partner,) = pair_rows(np.full(len(rows), 7), documents, draws=1, rng=np.random.default_rng(seed))
    held = [set(range(a, b + 1)) for a, b in documents]
    assert all(not held[i] & held[j] for i, j in enumerate(partner) if j >= 0)


@given(st.integers(8, 30), st.integers(0, 2**32))
def test_draws_differ_for_every_row(rows, seed):
    found = pair_rows(np.full(rows, 9), twice(np.arange(rows)), draws=3, rng=np.random.default_rng(seed))
    assert all(len(set(column)) == 3 for column in found.T)


def test_a_row_without_an_equal_takes_the_nearest():
    lengths = np.array([10, 10, 10, 10, 20, 22, 40, 40, 40, 40])
    for seed in range(20):
        (partner,) = pair_rows(lengths, twice(np.arange(10)), draws=1, rng=np.random.default_rng(seed))
        assert partner[[4, 5]].tolist() == [5, 4]
        assert (lengths[partner] == lengths).sum() == 8


def test_every_partner_is_as_likely_as_any_other():
    counts, back = Counter(), Counter()
    for seed in range(2000):
        found = pair_rows(np.full(6, 3), twice(np.array([0, 1, 2, 3, 4, 4])), draws=1, rng=np.random.default_rng(seed))
        counts[int(found[0, 5])] += 1
        back[found[0].tolist().index(5)] += 1
    for count in (counts, back):
        assert set(count) == {0, 1, 2, 3}, "row 4 is of its own document"
        assert scipy.stats.chisquare([count[j] for j in range(4)]).pvalue > 1e-3


def test_pieces_hold_every_row_once_in_order_of_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 500)
    pieces = cut(lengths, chunk_tokens=1000, rng=rng)
    assert sorted(np.concatenate(pieces)) == list(range(500))
    sizes = [lengths[piece].sum() for piece in pieces]
    assert max(sizes) <= 1000 + 60
    assert min(sizes) >= 1000 * 0.9 - 60
    assert all(lengths[a].max() <= lengths[b].min() for a, b in itertools.pairwise(pieces))
    same = cut(np.full(100, 50), chunk_tokens=1000, rng=rng)
    assert [len(piece) for piece in same] == [20] * 5
    assert any((np.diff(piece) < 0).any() or piece.max() - piece.min() > 20 for piece in same), "rows of one length come in random order"
    assert [len(piece) for piece in cut(np.full(12, 900), chunk_tokens=1000, rng=rng)] == [4, 4, 4], "not one long row alone"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [tiny.gpt2(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, folders) -> Tokens:
    return tokenize(tiny.sentences(150), load_model(folders[0]).tokenizer, out=tmp_path_factory.mktemp("tokens"), row_tokens=32, progress=False)


@pytest.mark.parametrize("packing", ["documents", "joined"])
def test_spans_name_the_documents_of_a_row(folders, tmp_path, packing):
    tokenizer, texts = load_model(folders[0]).tokenizer, tiny.sentences(40)
    made = tokenize(texts, tokenizer, out=tmp_path, row_tokens=24, packing=packing, progress=False)
    owner = np.repeat(np.arange(40), [len(tokenizer.encode(text)) for text in texts])  # [tokens of the text]
    ends = np.cumsum(made.lengths - 1)
    expected = [[owner[end - length + 1], owner[end - 1]] for end, length in zip(ends, made.lengths, strict=True)]
    found = spans(made, np.arange(made.n_rows))
    assert found[:-1].tolist() == [list(map(int, pair)) for pair in expected[:-1]]
    assert any(a != b for a, b in expected) == (packing == "joined")
    assert found[-1, 0] == expected[-1][0]
    assert found[-1, 1] >= expected[-1][1]


def by_hand(source, tokens: Tokens, row: int) -> np.ndarray:
    """The correlated site of one row run alone, float64 [positions, columns]."""
    ids = torch.tensor(tokens.ids[row, : tokens.lengths[row]].astype(np.int64))
    return torch.cat(source.activations(ids[None])[source.site], 2)[0].double().numpy()


def re_paired(sources, tokens: Tokens, rows, draw: int, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pair of tokens, one pair of rows at a time, with no other rule than the definition."""
    sides = ([], [])
    for piece, partners in pairings(tokens, rows, **OPTIONS):
        for row, other in ((piece[n], piece[m]) for n, m in enumerate(partners[draw]) if m >= 0):
            assert tokens.documents[row] != tokens.documents[other]
            shorter = min(tokens.lengths[row], tokens.lengths[other])
            ids = tokens.ids[[row, other], :shorter].astype(np.int64)
            kept = ~np.isin(ids, [tokens.bos, tokens.newline]).any(0)
            assert (~kept).any(), "BOS at least"
            for side, source, one in zip(sides, pair, (row, other), strict=True):
                side.append(by_hand(sources[source], tokens, one)[:shorter][kept])
    return np.concatenate(sides[0]), np.concatenate(sides[1])


@pytest.fixture(scope="module")
def sources(folders):
    return [ModelSite(load_model(f, dtype="float64")) for f in folders]


@pytest.fixture(scope="module")
def expected(sources, tokens):
    """(pair, draw) -> r of all neurons with all neurons, and how many tokens."""
    rows = choose_rows(tokens, max_tokens=None, seed=5)
    found = {}
    for i, j in ring(3):
        for draw in range(3):
            x, y = re_paired(sources, tokens, rows, draw, (i, j))
            found[i, j, draw] = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :], len(x)
    return found


CHOSEN = [torch.arange(0, 120, 3), torch.tensor([5, 7, 100]), torch.arange(119, -1, -1)]


def best(sources, tokens, *, centre=None, **options):
    centre = centre or [torch.full((len(s.layers) * s.width,), 0.05 * (1 + i)) for i, s in enumerate(sources)]
    rows = choose_rows(tokens, max_tokens=None, seed=5)
    return best_by_chance(sources, tokens, rows, CHOSEN[: len(sources)], centre, progress=False, **(OPTIONS | options))


@pytest.mark.parametrize("batch_tokens", [32, 4096])
def test_best_r_is_that_of_tokens_paired_by_hand(sources, tokens, expected, batch_tokens):
    found = best(sources, tokens, precision="float64", batch_tokens=batch_tokens)
    assert list(found) == [(0, 1), (1, 2), (2, 0)]
    for (i, j), chance in found.items():
        for draw in range(3):
            r, count = expected[i, j, draw]
            assert chance.tokens[draw] == count
            own = r[CHOSEN[i].numpy()]
            np.testing.assert_allclose(chance.r[draw], own.max(1), rtol=0, atol=1e-9)
            assert chance.partner[draw].tolist() == own.argmax(1).tolist()
    assert not torch.equal(found[0, 1].r[0], found[0, 1].r[1])


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_parts_are_the_whole(sources, tokens, parts):
    """Of 40, 3 and 120 chosen, sixteen at least in a part: in nine, most parts of the first two are empty."""
    for precision in ("int8", "float64"):
        whole, divided = (best(sources, tokens, precision=precision, parts=n) for n in (1, parts))
        for pair in whole:
            same = torch.equal if precision == "int8" else lambda a, b: torch.allclose(a, b, rtol=0, atol=1e-13, equal_nan=True)
            assert same(divided[pair].r, whole[pair].r)
            assert torch.equal(divided[pair].partner, whole[pair].partner)
            assert torch.allclose(divided[pair].stderr, whole[pair].stderr, rtol=1e-13, atol=0)
            assert divided[pair].tokens == whole[pair].tokens


def test_parts_are_of_whole_panels():
    assert [part_rows(40, n) for n in (1, 2, 3, 9)] == [48, 32, 16, 16]
    for chosen in (0, 1, 16, 40, 119):
        for parts in (1, 2, 3, 9):
            slices = [_part(chosen, n, parts) for n in range(parts)]
            assert [c for some in slices for c in range(some.start, some.stop)] == list(range(chosen))
            assert all(some.stop - some.start <= part_rows(chosen, parts) for some in slices)


def test_int8_is_within_its_stated_error(sources, tokens, expected):
    z = []
    centre = observe(sources, tokens, seed=5, progress=False).centre  # near the mean, as the error takes it to be
    found = best(sources, tokens, centre=centre)
    for (i, j), chance in found.items():
        for draw in range(3):
            exact = expected[i, j, draw][0][CHOSEN[i].numpy(), chance.partner[draw].numpy()]
            z.append((chance.r[draw].numpy() - exact) / chance.stderr[draw].numpy())
    z = np.concatenate(z)
    assert len(z) == 3 * (40 + 3 + 120)
    assert 0.85 < z.std() < 1.15
    assert np.abs(z).max() < 5
    # A chunk's largest activation is at most that of all, and so is the step of its rounding.
    x, y = re_paired(sources, tokens, choose_rows(tokens, max_tokens=None, seed=5), 0, (2, 0))
    whole = correlate(torch.from_numpy(x), torch.from_numpy(y), precision="int8", top_k=1).stderr[CHOSEN[2], 0]
    assert 0.5 < (found[2, 0].stderr[0] / whole).median() < 1


def test_two_models_are_partners_of_one_another(sources, tokens, expected):
    found = best(sources[:2], tokens, precision="float64")
    assert list(found) == [(0, 1), (1, 0)]
    np.testing.assert_allclose(found[0, 1].r[2], expected[0, 1, 2][0][CHOSEN[0].numpy()].max(1), rtol=0, atol=1e-9)
    x, y = re_paired(sources, tokens, choose_rows(tokens, max_tokens=None, seed=5), 2, (1, 0))
    r = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :][CHOSEN[1].numpy()]
    np.testing.assert_allclose(found[1, 0].r[2], r.max(1), rtol=0, atol=1e-9)
    assert best(sources[:1], tokens) == {}


class Poisoned(ModelSite):
    """A source whose neurons of the second layer are NaN wherever one of some ids stands."""

    def __init__(self, site: ModelSite, ids: list[int]) -> None:
        super().__init__(site.model)
        self.ids = torch.tensor(ids)

    def activations(self, ids):
        found = {site: [x.clone() for x in layers] for site, layers in super().activations(ids).items()}
        found["mlp.post"][1][torch.isin(ids, self.ids)] = float("nan")
        return found


def test_bos_and_newlines_are_out_on_both_sides(sources, tokens):
    assert (tokens.ids == tokens.newline).any()
    poisoned = [Poisoned(s, [tokens.bos, tokens.newline]) for s in sources]
    for a, b in zip(best(poisoned, tokens).values(), best(sources, tokens).values(), strict=True):
        assert torch.equal(a.r, b.r)


def test_nonfinite_activations_name_the_place(sources, tokens):
    row = int(choose_rows(tokens, max_tokens=None, seed=5)[0])
    token = int(tokens.ids[row, 1])
    with pytest.raises(ActivationError, match=r"^b: mlp.post of L1.0 is nan at row \d+ \(document \d+\), position \d+; 40 neurons are affected") as caught:
        best([sources[0], Poisoned(sources[1], [token])], tokens)
    place = [int(str(caught.value).split(word)[1].split(end)[0]) for word, end in (("row ", " "), ("position ", ";"))]
    assert tokens.ids[place[0], place[1]] == token


def test_every_source_runs_once_over_each_row(sources, tokens):
    seen = Counter()

    class Counting(ModelSite):
        def activations(self, ids):
            for row in ids.numpy():
                seen[self.name, row[: np.flatnonzero(row != 0).max() + 1].tobytes()] += 1
            return super().activations(ids)

    best([Counting(s.model) for s in sources], tokens)
    rows = choose_rows(tokens, max_tokens=None, seed=5)
    texts = Counter(tokens.ids[row, : tokens.lengths[row]].astype(np.int64).tobytes() for row in rows)
    assert seen == Counter({(name, text): count for name in "abc" for text, count in texts.items()})


def test_one_document_alone_has_no_null(sources, folders, tmp_path):
    alone = tokenize([" ".join(tiny.sentences(20))], load_model(folders[0]).tokenizer, out=tmp_path, row_tokens=32, progress=False)
    rows = np.arange(alone.n_rows)
    centre = [torch.zeros(120)] * 2
    for chance in best_by_chance(sources[:2], alone, rows, CHOSEN[:2], centre, progress=False).values():
        assert chance.tokens == (0, 0, 0)
        assert torch.isnan(chance.r).all()
        assert (chance.partner == -1).all()


def test_position_keeps_its_r_and_text_loses_it(tokens):
    def rule(noise, ids, positions):
        wave = np.sin(positions[:, None] * (1 + np.arange(4)))
        return np.concatenate([2 + wave + 0.3 * noise[:, :4], 2 + np.sin(ids[:, None] * (1.3 + np.arange(4)))], axis=1)

    pair = [Synthetic(name, 8, rule, salt=salt) for salt, name in enumerate("xy")]
    rows = choose_rows(tokens, max_tokens=None, seed=5)
    (chance, _) = best_by_chance(pair, tokens, rows, [torch.arange(8)] * 2, [torch.full((8,), 2.0)] * 2, progress=False, **OPTIONS).values()
    x, y = (np.concatenate([by_hand(s, tokens, row)[~np.isin(tokens.ids[row, : tokens.lengths[row]], [0, tokens.newline])] for row in rows]) for s in pair)
    observed = np.diagonal(np.corrcoef(x.T, y.T)[:8, 8:])
    assert observed[4:].tolist() == pytest.approx([1] * 4)
    assert (chance.partner[:, :4] == torch.arange(4)).all()
    # The wave's variance hardly depends on which rows are longer; 0.3^2 of noise on either side: r = var / (var + 0.09).
    np.testing.assert_allclose(chance.r[:, :4], np.tile(observed[:4], (3, 1)), atol=0.03)
    assert (observed[:4] > 0.8).all()
    assert chance.r[:, 4:].max() < 5 / np.sqrt(min(chance.tokens))


def test_chosen_neurons_keep_their_own_centre(tokens):
    pair = [Synthetic(name, 8, lambda noise, *_: noise + 100 * np.arange(1, 9), salt=salt) for salt, name in enumerate("xy")]
    rows = choose_rows(tokens, max_tokens=None, seed=5)
    centre = [100.0 * torch.arange(1, 9)] * 2
    (chance, _) = best_by_chance(pair, tokens, rows, [torch.tensor([6, 2])] * 2, centre, progress=False, **OPTIONS).values()
    # Within 4 sigma the step is 4 / 126.5, which adds the variance step^2 / 6 to either side; about another neuron's mean the step would be 100 times as large.
    assert chance.stderr.max() < 2 * np.sqrt(2 * (4 / 126.5) ** 2 / 6 / min(chance.tokens))

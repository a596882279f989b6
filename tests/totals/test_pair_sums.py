"""Pair sums and moments by batches of documents: values by hand, laws of merging, all batches but one, files that cannot be confused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyuniversal import FileError, InputError, Product
from pyuniversal.totals import BatchMoments, Confirmation, PairSums, SourceInfo

PARTNER = torch.tensor([[2, 0], [-1, 3], [1, -1]])


def sides(tokens: int = 90, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 3, generator=generator), torch.randn(tokens, 4, generator=generator)


def filled(parts: dict[int, slice], batches: int = 3) -> PairSums:
    x, y = sides()
    pairs = PairSums(PARTNER, centre_x=torch.full((3,), 0.5), centre_y=torch.arange(4.0), batches=batches)
    for batch, rows in parts.items():
        pairs.update(batch, x[rows], y[rows])
    return pairs


WHOLE = {0: slice(0, 20), 1: slice(20, 50), 2: slice(50, 90)}


def test_sums_are_those_of_the_chosen_partners():
    pairs = filled(WHOLE)
    x, y = (side.double().numpy() for side in sides())
    x, y = x - 0.5, y - np.arange(4)
    for batch, rows in WHOLE.items():
        for n in range(3):
            for c in range(2):
                p = int(PARTNER[n, c])
                assert pairs.sums[batch, n, c] == pytest.approx(x[rows, n] @ y[rows, p] if p >= 0 else 0.0, rel=1e-13, abs=1e-13)
    assert pairs.tokens.tolist() == [20, 30, 40]
    np.testing.assert_allclose(pairs.whole(), pairs.sums.numpy().sum(0), rtol=1e-14)


def test_merge_and_file_give_the_whole(tmp_path):
    left, right = filled({0: slice(0, 10), 2: slice(50, 90)}), filled({1: slice(20, 50), 0: slice(10, 20)})
    left.save(tmp_path / "left")
    left = PairSums.load(tmp_path / "left")
    left.merge(right)
    np.testing.assert_allclose(left.sums, filled(WHOLE).sums, rtol=1e-13)
    assert left.tokens.tolist() == [20, 30, 40]
    assert torch.equal(left.partner, PARTNER)
    assert left.centre[1].tolist() == [0, 1, 2, 3]


def test_all_but_one_subtracts_nothing():
    pairs = filled(WHOLE)
    pairs.sums[1, 0, 0] = 1e30
    for batch in range(3):
        others = [b for b in range(3) if b != batch]
        assert pairs.without_each(0)[batch].tolist() == pytest.approx(pairs.sums[others].sum(0)[:, 0].tolist(), rel=1e-13)
    one = PairSums(PARTNER, centre_x=torch.zeros(3), centre_y=torch.zeros(4))
    assert one.without_each(1).tolist() == [[0.0, 0.0, 0.0]]


def test_strangers_are_refused():
    pairs = filled(WHOLE)
    with pytest.raises(InputError, match="different partners: both must be of one table of matches"):
        pairs.merge(PairSums(PARTNER.flip(1), centre_x=torch.full((3,), 0.5), centre_y=torch.arange(4.0), batches=3))
    with pytest.raises(InputError, match="different centres: give both the centre of the first"):
        pairs.merge(PairSums(PARTNER, centre_x=torch.full((3,), 0.5), centre_y=torch.ones(4), batches=3))
    with pytest.raises(InputError, match=r"\[2, 3, 2\] into \[3, 3, 2\]"):
        pairs.merge(filled({}, batches=2))
    for batch in (3, -1):
        with pytest.raises(InputError, match=f"no batch {batch}: these pair sums have batches 0 to 2"):
            pairs.update(batch, *sides())
    with pytest.raises(InputError, match="x has 90 tokens, y has 89"):
        pairs.update(0, sides()[0], sides()[1][1:])
    assert torch.equal(pairs.sums, filled(WHOLE).sums)
    assert torch.equal(pairs.tokens, filled(WHOLE).tokens)


def moments_of(x: np.ndarray) -> np.ndarray:
    return np.stack([np.full(x.shape[1], len(x)), x.mean(0), ((x - x.mean(0)) ** 2).sum(0)])


def test_moments_of_batches(tmp_path):
    x = sides()[0]
    moments, other = BatchMoments(3, 3), BatchMoments(3, 3)
    for batch, rows in WHOLE.items():
        moments.update(batch, x[rows][:5])
        other.update(batch, x[rows][5:])
    other.save(tmp_path / "other")
    moments.merge(BatchMoments.load(tmp_path / "other"))
    wide = x.double().numpy()
    for batch, rows in WHOLE.items():
        np.testing.assert_allclose(moments.state[batch], moments_of(wide[rows]), rtol=1e-12)
        np.testing.assert_allclose(moments.without_each()[batch], moments_of(np.delete(wide, np.r_[rows], axis=0)), rtol=1e-12)
    np.testing.assert_allclose(moments.whole(), moments_of(wide), rtol=1e-12)
    assert moments.counts.tolist() == [20, 30, 40]


@pytest.mark.parametrize("value", [0.1, -0.17, 1e4 / 3])
def test_a_neuron_with_one_value_has_no_variance_however_batches_are_joined(value):
    moments = BatchMoments(4, 2)
    for batch in range(4):
        for tokens in (7, 1, 1001, 333):
            x = torch.full((tokens + batch, 2), value)
            x[0, 1] = batch == 2
            moments.update(batch, x)
    assert moments.whole()[2, 0] == 0
    assert (moments.without_each()[:, 2, 0] == 0).all()
    assert (moments.without_each()[:, 2, 1] > 0).all()


def test_a_neuron_that_fires_in_one_batch_is_constant_without_it():
    moments = BatchMoments(3, 1)
    for batch in range(3):
        moments.update(batch, torch.tensor([[0.3], [0.3], [1e6 if batch == 1 else 0.3]]))
    assert (moments.without_each()[:, 2, 0] > 0).tolist() == [True, False, True]


def test_moments_refuse_strangers():
    with pytest.raises(InputError, match="cannot merge moments of 2 neurons in 4 batches into 3 neurons in 4 batches"):
        BatchMoments(4, 3).merge(BatchMoments(4, 2))
    for batch, neurons in ((4, 3), (-1, 3), (0, 2)):
        with pytest.raises(InputError, match=f"cannot add {neurons} neurons to batch {batch} of moments of 3 neurons in batches 0 to 3"):
            BatchMoments(4, 3).update(batch, torch.zeros(5, neurons))


def confirmation(**changed) -> Confirmation:
    sources = [SourceInfo("a", "mlp.post", (0,), 3, "hash-a"), SourceInfo("b", "mlp.post", (0, 1), 2, "hash-b")]
    given = {"partners": {(0, 1): PARTNER, (1, 0): torch.tensor([[0], [1], [2], [-1]])}, "centre": [torch.zeros(3), torch.ones(4)], "batches": 3}
    return Confirmation(sources, **(given | {"identity": {"tokens": "t"}} | changed))


def with_batches(folder, *batches: int) -> Confirmation:
    state = confirmation()
    state.start(folder)
    x, y = sides()
    for batch in batches:
        state.moments[0].update(batch, x[WHOLE[batch]])
        state.moments[1].update(batch, y[WHOLE[batch]])
        state.pairs[0, 1].update(batch, x[WHOLE[batch]], y[WHOLE[batch]])
        state.pairs[1, 0].update(batch, y[WHOLE[batch]], x[WHOLE[batch]])
        state.finish(batch, folder)
    return state


def test_a_folder_holds_the_batches_that_are_finished(tmp_path):
    state = with_batches(tmp_path, 2, 0)
    found = Confirmation.load(tmp_path)
    assert found.missing() == state.missing() == [1]
    assert found.identity == state.identity
    assert found.sources == state.sources
    for mine, theirs in zip(state.moments, found.moments, strict=True):
        assert torch.equal(mine.state, theirs.state)
    for pair in state.pairs:
        for name in ("sums", "partner", "tokens"):
            assert torch.equal(getattr(state.pairs[pair], name), getattr(found.pairs[pair], name)), (pair, name)
    assert found.pairs[0, 1].centre[1].tolist() == [1, 1, 1, 1]
    assert found.pairs[1, 0].tokens.tolist() == [20, 0, 40]


def test_partners_and_centres_are_part_of_the_identity():
    known = confirmation().identity
    assert confirmation().identity == known
    for changed in (
        {"partners": {(0, 1): PARTNER}},
        {"partners": {(0, 1): PARTNER, (1, 0): torch.tensor([[0], [1], [2], [0]])}},
        {"centre": [torch.zeros(3), torch.tensor([1.0, 1, 1, 2])]},
        {"identity": {"tokens": "u"}},
    ):
        assert confirmation(**changed).identity != known


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centre": [torch.zeros(3), torch.zeros(3)]}, r"the centres are of \[3, 3\] neurons, the sources of \[3, 4\]"),
        ({"partners": {(0, 1): PARTNER[:2]}}, r"partners of source 0 in 1 must be int64 \[3, candidates\], not torch.int64 \[2, 2\]"),
        ({"partners": {(0, 1): PARTNER.int()}}, r"must be int64 \[3, candidates\], not torch.int32"),
        ({"partners": {(0, 1): PARTNER + 1}}, "partners of source 0 in 1 must be neurons of it, 0 to 3, or -1"),
        ({"partners": {(0, 1): PARTNER - 1}}, "partners of source 0 in 1 must be neurons of it, 0 to 3, or -1"),
    ],
)
def test_partners_that_do_not_fit(changed, message):
    with pytest.raises(InputError, match=message):
        confirmation(**changed)


def test_damaged_and_foreign_files_are_named(tmp_path):
    with_batches(tmp_path, 0, 1)
    victim = tmp_path / "batch-1.safetensors"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-9])
    with pytest.raises(FileError, match=r"batch-1.safetensors is truncated or damaged"):
        Confirmation.load(tmp_path)
    other = confirmation(identity={"tokens": "u"})
    other.finish(1, tmp_path)
    with pytest.raises(FileError, match=r"batch-1.safetensors belongs to another confirmation .* remove it, and its documents are run again"):
        Confirmation.load(tmp_path)
    victim.write_bytes(whole)
    other.start(tmp_path / "other")
    (tmp_path / "pairs.safetensors").write_bytes((tmp_path / "other" / "pairs.safetensors").read_bytes())
    assert Confirmation.load(tmp_path).missing() == [2]
    confirmation(partners={(0, 1): PARTNER}).start(tmp_path / "fewer")
    (tmp_path / "pairs.safetensors").write_bytes((tmp_path / "fewer" / "pairs.safetensors").read_bytes())
    with pytest.raises(FileError, match=r"pairs.safetensors and .*confirmation.json are of different runs"):
        Confirmation.load(tmp_path)
    (tmp_path / "confirmation.json").write_text('{"format": 9}')
    with pytest.raises(FileError, match="has format 9; this version of pyuniversal reads 1"):
        Confirmation.load(tmp_path)
    Product(2, 2).save(tmp_path / "product")
    for kind, message in ((PairSums, "holds a product, not a pair sums"), (BatchMoments, "holds a product, not a moments of batches")):
        with pytest.raises(FileError, match=message):
            kind.load(tmp_path / "product")

"""TokenSums: means by id, parts that merge to the whole, files."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from pyuniversal import FileError, Histogram, InputError, TokenSums
from pyuniversal.totals import token_sums


def text(tokens: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, 7, generator=generator), torch.randint(0, 20, (tokens,), generator=generator) ** 2 % 23


def test_means_are_those_of_the_tokens_of_each_id():
    x, ids = text()
    total = TokenSums(23, 7)
    for part in (slice(0, 1), slice(1, 1), slice(1, 200), slice(200, 300)):
        total.update(x[part], ids[part])
    mean = total.mean()
    assert mean.dtype == torch.float64
    for id in range(23):
        of_id = x[ids == id].double().numpy()
        assert total.counts[id] == len(of_id)
        if len(of_id):
            np.testing.assert_allclose(mean[id], of_id.mean(0), rtol=1e-13, atol=1e-15)
        else:
            assert mean[id].isnan().all()
    assert 0 < (total.counts == 0).sum() < 23
    some = torch.tensor([4, 0, 4])
    torch.testing.assert_close(total.mean(some), mean[some], rtol=0, atol=0, equal_nan=True)


def test_a_label_of_one_token_needs_no_pass_of_its_own():
    # The mean of every neuron over the tokens with a label, from the sums and a table [d_vocab, labels] alone.
    x, ids = text()
    labels = torch.rand(23, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    total = TokenSums(23, 7)
    total.update(x, ids)
    table = labels.double()
    means = (table.T @ total.sums) / (table.T @ total.counts.double())[:, None]
    for label in range(3):
        np.testing.assert_allclose(means[label], x[labels[ids, label]].double().mean(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merge_and_file(tmp_path, dtype):
    x, ids = text()
    x = (x * 8).round()  # small integers: every order of the additions is exact
    whole = TokenSums(23, 7, dtype=dtype)
    whole.update(x, ids)
    parts = []
    for n, part in enumerate((slice(0, 100), slice(100, 300))):
        total = TokenSums(23, 7, dtype=dtype)
        total.update(x[part], ids[part].int())
        total.save(tmp_path / f"{n}.safetensors")
        parts.append(TokenSums.load(tmp_path / f"{n}.safetensors"))
    assert parts[0].sums.dtype == dtype
    before = parts[0].sums.clone()
    parts[1].merge(parts[0])
    assert torch.equal(parts[1].sums, whole.sums)
    assert torch.equal(parts[1].counts, whole.counts)
    assert torch.equal(parts[0].sums, before)
    parts[1].update(x, ids)
    assert torch.equal(parts[1].sums, 2 * whole.sums)


def test_strangers_are_refused(tmp_path):
    total = TokenSums(5, 3)
    with pytest.raises(InputError, match=r"cannot merge token sums of \[d_vocab, neurons\] = \[5, 4\] in float64 into \[5, 3\] in float64"):
        total.merge(TokenSums(5, 4))
    with pytest.raises(InputError, match=r"\[5, 3\] in float32 into \[5, 3\] in float64"):
        total.merge(TokenSums(5, 3, dtype=torch.float32))
    with pytest.raises(InputError, match=r"the id 7 of token 1 is outside the vocabulary, \[0, 5\)"):
        total.update(torch.ones(2, 3), torch.tensor([0, 7]))
    assert not total.counts.any()
    assert not total.sums.any()
    Histogram(3).save(tmp_path / "histogram.safetensors")
    with pytest.raises(FileError, match="holds a histogram, not a token sums"):
        TokenSums.load(tmp_path / "histogram.safetensors")


def test_the_example_is_true():
    assert doctest.testmod(token_sums, extraglobs={"torch": torch}) == (0, 4)

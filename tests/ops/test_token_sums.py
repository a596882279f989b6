"""token_sums_: numpy.add.at in float64, bit for bit on small integers, and one rounding per call and id where sums are float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyuniversal import _C
from pyuniversal.errors import InputError
from pyuniversal.ops import token_sums_

TYPES = [torch.float32, torch.float16, torch.bfloat16]
SUMS = [torch.float64, torch.float32]


def expected(x: torch.Tensor, ids: torch.Tensor, d_vocab: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, sums of |x| and counts of the ids."""
    sums, sizes = np.zeros((d_vocab, x.shape[1])), np.zeros((d_vocab, x.shape[1]))
    np.add.at(sums, ids.numpy(), x.double().numpy())
    np.add.at(sizes, ids.numpy(), np.abs(x.double().numpy()))
    return sums, sizes, np.bincount(ids.numpy(), minlength=d_vocab)


def some_ids(tokens: int, d_vocab: int, seed: int = 0) -> torch.Tensor:
    """Like text: few ids are frequent, many occur once, some never."""
    words = np.random.default_rng(seed).zipf(1.3, tokens)
    return torch.from_numpy((words * 7919) % d_vocab)


# The kernel works on 64 neurons at a time, and on 1,024 while the tokens of an id pass: around one, around several, and far from a multiple.
@pytest.mark.parametrize("sums_type", SUMS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("tokens", "neurons"), [(1, 1), (7, 63), (300, 64), (300, 65), (50, 1023), (50, 1024), (60, 2200)])
def test_against_numpy(backend, dtype, sums_type, tokens, neurons):
    x = torch.randn(tokens, neurons, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = some_ids(tokens, 41)
    sums = torch.full((41, neurons), 0.125, dtype=sums_type, device=backend.device)
    counts = torch.full((41,), 3, dtype=torch.int64, device=backend.device)
    backend.run(token_sums_, sums, counts, x.to(backend.device), ids.to(backend.device))
    want, size, many = expected(x, ids, 41)
    error = np.abs(sums.cpu().double().numpy() - 0.125 - want)
    rounding = 2.0**-24 * np.abs(want + 0.125) if sums_type == torch.float32 else 0.0
    assert (error <= rounding + 1e-15 * (size + 1) * tokens).all()
    np.testing.assert_array_equal(counts.cpu() - 3, many)


@pytest.mark.parametrize("sums_type", SUMS, ids=str)
def test_small_integers_over_many_calls_are_exact_to_the_bit(backend, sums_type):
    generator = np.random.default_rng(1)
    sums = torch.zeros(97, 150, dtype=sums_type, device=backend.device)
    counts = torch.zeros(97, dtype=torch.int64, device=backend.device)
    truth, many = np.zeros((97, 150), np.int64), np.zeros(97, np.int64)
    for call, tokens in enumerate((1, 64, 0, 333, 2)):
        values, ids = generator.integers(-8, 9, (tokens, 150)), some_ids(tokens, 97, call)
        np.add.at(truth, ids.numpy(), values)
        many += np.bincount(ids, minlength=97)
        x = torch.empty(tokens, 150, device=backend.device)  # numpy gives no tokens strides of 0, which kernels refuse
        x.copy_(torch.from_numpy(values))
        backend.run(token_sums_, sums, counts, x, ids.to(backend.device))
    np.testing.assert_array_equal(sums.cpu().double(), truth)
    np.testing.assert_array_equal(counts.cpu(), many)
    assert (many == 0).any()
    assert (many > 50).any()


def test_float32_sums_are_rounded_once_per_call(backend):
    # Each quarter alone is lost beside 2^24, where float32 counts in twos: index_add_ leaves the sum as it is.
    quarters, ids = torch.full((1000, 3), 0.25), torch.ones(1000, dtype=torch.int64)
    naive = torch.full((2, 3), 2.0**24).index_add_(0, ids, quarters)
    assert (naive[1] == 2**24).all()
    sums, counts = torch.full((2, 3), 2.0**24, device=backend.device), torch.zeros(2, dtype=torch.int64, device=backend.device)
    for _ in range(2):
        backend.run(token_sums_, sums, counts, quarters.to(backend.device), ids.to(backend.device))
    assert sums.tolist() == [[2.0**24] * 3, [2.0**24 + 500] * 3]
    # Beside the first token of an id and the last of another, and the sum that is there already: all of it in float64.
    sums, counts = torch.full((1, 1), -(2.0**24), device=backend.device), torch.zeros(1, dtype=torch.int64, device=backend.device)
    x = torch.tensor([[2.0**24], [0.5], [2.0**30], [0.25], [-(2.0**30)]], device=backend.device)
    backend.run(token_sums_, sums, counts, x, torch.zeros(5, dtype=torch.int64, device=backend.device))
    assert sums.item() == 0.75


def test_tokens_of_an_id_are_added_in_their_order(backend):
    # Over many orders of magnitude, so that another order has other bits.
    if backend.name == "reference":
        pytest.skip("the reference does not promise it: on a GPU index_add_ adds in any order")
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(300, 70, generator=generator) * 10 ** torch.empty(300, 1).uniform_(-12, 12, generator=generator)
    ids = some_ids(300, 30)
    sums, counts = torch.zeros(30, 70, dtype=torch.float64, device=backend.device), torch.zeros(30, dtype=torch.int64, device=backend.device)
    backend.run(token_sums_, sums, counts, x.to(backend.device), ids.to(backend.device))
    np.testing.assert_array_equal(sums.cpu(), expected(x, ids, 30)[0])
    assert (expected(x.flip(0), ids.flip(0), 30)[0] != expected(x, ids, 30)[0]).any()


@pytest.mark.parametrize("programs", [1, 3, 2048])
def test_more_ids_than_programs_on_a_gpu_and_fewer(backend, monkeypatch, programs):
    # Runs of 1 to 17 tokens of one id, around the eight that are read together.
    monkeypatch.setattr(pytest.importorskip("pyuniversal.kernels.token_sums"), "PROGRAMS", programs)
    many = torch.arange(1, 18)
    ids = torch.repeat_interleave(torch.arange(17) * 3, many)[torch.randperm(int(many.sum()), generator=torch.Generator().manual_seed(4))]
    x = torch.from_numpy(np.random.default_rng(5).integers(-99, 100, (len(ids), 1030))).float()
    sums = torch.zeros(51, 1030, dtype=torch.float64, device=backend.device)
    counts = torch.zeros(51, dtype=torch.int64, device=backend.device)
    backend.run(token_sums_, sums, counts, x.to(backend.device), ids.to(backend.device))
    want, _, size = expected(x, ids, 51)
    np.testing.assert_array_equal(sums.cpu(), want)
    np.testing.assert_array_equal(counts.cpu(), size)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_shows_in_its_own_id_and_neuron_alone(backend, bad):
    x, ids = torch.ones(200, 70), torch.arange(200) % 9
    x[100, 66] = bad
    sums, counts = torch.zeros(9, 70, dtype=torch.float64, device=backend.device), torch.zeros(9, dtype=torch.int64, device=backend.device)
    backend.run(token_sums_, sums, counts, x.to(backend.device), ids.to(backend.device))
    assert (~sums.isfinite()).nonzero().tolist() == [[100 % 9, 66]]
    np.testing.assert_array_equal(sums[1, 66].cpu(), bad)


@pytest.mark.parametrize("id_type", [torch.int64, torch.int32], ids=str)
def test_strided_arguments(backend, id_type):
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(2))[::2, 17:90].to(backend.device)
    ids = some_ids(150, 20)[::3].to(id_type).to(backend.device)
    whole = torch.zeros(20, 100, dtype=torch.float64, device=backend.device)
    counts = torch.zeros(20, dtype=torch.int64, device=backend.device)
    backend.run(token_sums_, whole[:, 5:78], counts, x, ids)
    want, _, many = expected(x.cpu(), ids.cpu(), 20)
    np.testing.assert_allclose(whole[:, 5:78].cpu(), want, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(counts.cpu(), many)
    assert not whole[:, :5].any()
    assert not whole[:, 78:].any()


def test_nothing_to_add(backend):
    for tokens, neurons, d_vocab in ((0, 5, 3), (4, 0, 3), (0, 0, 0)):
        sums = torch.full((d_vocab, neurons), 2.5, dtype=torch.float64, device=backend.device)
        counts = torch.zeros(d_vocab, dtype=torch.int64, device=backend.device)
        ids = torch.full((tokens,), 2, device=backend.device)
        backend.run(token_sums_, sums, counts, torch.empty(tokens, neurons, device=backend.device), ids)
        assert (sums == 2.5).all()
        assert counts.tolist() == [0, 0, tokens][:d_vocab]


@pytest.mark.backend("cpu")
@pytest.mark.parametrize("sums_type", SUMS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_threads_and_instruction_sets_change_no_bit(monkeypatch, dtype, sums_type):
    # Over many orders of magnitude, so that sums in float64 depend on the order too (not in float16, which has too few of them).
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 64 * 5 + 3, generator=generator) * 10 ** torch.empty(300, 1).uniform_(-12, 12, generator=generator)
    x = x.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else x.to(dtype)
    ids = some_ids(300, 30)
    results = []
    for isa in _C.instruction_sets():
        monkeypatch.setenv("PYUNIVERSAL_ISA", isa)
        for threads in (1, 2, 3, 7, 100):
            sums, counts = torch.zeros(30, x.shape[1], dtype=sums_type), torch.zeros(30, dtype=torch.int64)
            _C.token_sums_(sums, counts, x, ids, threads)
            results.append((sums, counts))
    for sums, counts in results:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(counts, results[0][1])
    # And those bits are a plain loop's over the tokens of each id, in their order.
    total = np.zeros((30, x.shape[1]))
    np.add.at(total, ids.numpy(), x.double().numpy())
    np.testing.assert_array_equal(results[0][0], torch.from_numpy(total).to(sums_type))


def test_contract_is_checked():
    x, ids = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    sums, counts = torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(InputError, match=r"token_sums_: x must be floating \[tokens, neurons\], not int64 \[4, 3\]"):
        token_sums_(sums, counts, x.long(), ids)
    with pytest.raises(InputError, match=r"sums must be float64 or float32 \[d_vocab, 3\] with unit stride along neurons, not float64 \[5, 2\]"):
        token_sums_(sums[:, :2], counts, x, ids)
    with pytest.raises(InputError, match=r"sums must be float64 or float32 .* not float16"):
        token_sums_(sums.half(), counts, x, ids)
    with pytest.raises(InputError, match="with unit stride along neurons"):
        token_sums_(sums.T.contiguous().T, counts, x, ids)
    with pytest.raises(InputError, match=r"counts must be contiguous int64 \[5\], not int64 \[4\]"):
        token_sums_(sums, counts[:4], x, ids)
    with pytest.raises(InputError, match=r"ids must be int64 or int32 \[4\], not int64 \[3\]"):
        token_sums_(sums, counts, x, ids[:3])
    with pytest.raises(InputError, match=r"ids must be int64 or int32 \[4\], not int16 \[4\]"):
        token_sums_(sums, counts, x, ids.short())
    with pytest.raises(InputError, match="token_sums_: ids is on meta, x on cpu"):
        token_sums_(sums, counts, x, ids.to("meta"))
    for wrong in (5, -1):
        ids[2] = wrong
        with pytest.raises(InputError, match=rf"the id {wrong} of token 2 is outside the vocabulary, \[0, 5\)"):
            token_sums_(sums, counts, x + 1, ids)
    assert not sums.any()
    assert not counts.any()


X, IDS, SUM, COUNTS = torch.ones(4, 3), torch.tensor([0, 4, 0, 1]), torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUM.half(), COUNTS, X, IDS, 1), r"token_sums_: sums must be float64 or float32, got float16"),
        ((SUM[0], COUNTS, X, IDS, 1), r"token_sums_: sums must have the dimensions \[d_vocab, neurons\], got the shape \[3\]"),
        ((SUM.T.contiguous().T, COUNTS, X, IDS, 1), r"token_sums_: sums must have neighbouring columns .* got the strides \[1, 5\] for the shape \[5, 3\]"),
        ((SUM[:4], COUNTS, X, IDS, 1), r"token_sums_: the length of counts must equal the rows of sums \(4\), got 5"),
        ((SUM, COUNTS.int(), X, IDS, 1), r"token_sums_: counts must be int64, got int32"),
        ((SUM, COUNTS, X.double(), IDS, 1), r"token_sums_: x must be float32 or float16 or bfloat16, got float64"),
        ((SUM, COUNTS, X[:, :2], IDS, 1), r"token_sums_: the columns of x must equal the neurons of sums \(3\), got 2"),
        ((SUM, COUNTS, X, IDS[:3], 1), r"token_sums_: the length of ids must equal the tokens of x \(4\), got 3"),
        ((SUM, COUNTS, X, IDS.float(), 1), r"token_sums_: ids must be int64 or int32, got float32"),
        ((SUM, COUNTS, X, IDS.repeat(2)[::2], 1), r"token_sums_: ids must be contiguous, got the strides \[2\] for the shape \[4\]"),
        ((SUM, COUNTS, X, IDS + 1, 1), r"token_sums_: ids must be within \[0, 5\), got 5 at token 1"),
        ((SUM, COUNTS, X, IDS.int() - 2, 1), r"token_sums_: ids must be within \[0, 5\), got -2 at token 0"),
        ((SUM, COUNTS, X, IDS, 0), r"token_sums_: threads must be at least 1, got 0"),
    ],
)
def test_the_raw_function_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.token_sums_(*arguments)
    assert not SUM.any()
    assert not COUNTS.any()

"""logit_stats: scipy's logsumexp and entropy in float64, small cases by hand, and what is masked, equal, extreme or not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from pyuniversal import _C
from pyuniversal.errors import BackendError, InputError
from pyuniversal.ops import LogitStats, logit_stats

TYPES = [torch.float32, torch.float16, torch.bfloat16]
NO_TOKEN = -1


def draw(tokens: int, d_vocab: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(tokens, d_vocab, generator=torch.Generator().manual_seed(seed))


def draw_ids(tokens: int, d_vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, d_vocab, tokens))


def run(backend, logits: torch.Tensor, next_id: torch.Tensor | list[int]) -> LogitStats:
    """On the host."""
    found = backend.run(logit_stats, logits.to(backend.device), torch.as_tensor(next_id, device=backend.device))
    assert [part.dtype for part in found] == [torch.float64, torch.float64, torch.int64, torch.float64]
    return LogitStats(*(part.cpu() for part in found))


def assert_close(found: LogitStats, logits: torch.Tensor, next_id: torch.Tensor) -> None:
    """To float32's rounding of a difference and a few units of its exponential, as the contract says."""
    x = logits.double().numpy()
    true = np.take_along_axis(x, next_id.numpy()[:, None], 1)
    lse, p = special.logsumexp(x, axis=1), special.softmax(x, axis=1)
    gap = np.minimum(np.where(np.isfinite(x), x.max(1, keepdims=True) - x, 0.0).max(1), 87.0)
    error = 2.0**-24 * (gap + 8)
    entropy = special.entr(p).sum(1)
    assert (np.abs(found.logsumexp.numpy() - lse) <= error * (lse - x.max(1)) + 1e-14 * (1 + np.abs(lse))).all()
    assert (np.abs(found.loss.numpy() - (lse - true[:, 0])) <= error * (lse - x.max(1)) + 1e-14 * (1 + np.abs(lse))).all()
    assert (np.abs(found.entropy.numpy() - entropy) <= 2 * error * entropy + 1e-14).all()
    np.testing.assert_array_equal(found.rank, (x > true).sum(1))


# The kernels take 32, 64 or 128 logits together and 2,048 in a block: around one, around several, and a real vocabulary.
@pytest.mark.parametrize("dtype", [*TYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("tokens", "d_vocab"), [(1, 1), (5, 2), (40, 7), (3, 127), (3, 128), (3, 129), (4, 2047), (4, 2048), (4, 2049), (2, 6200), (2, 50_257)]
)
def test_against_scipy(backend, dtype, tokens, d_vocab):
    logits, next_id = draw(tokens, d_vocab).to(dtype), draw_ids(tokens, d_vocab)
    next_id[-1] = d_vocab - 1
    assert_close(run(backend, logits, next_id), logits, next_id)


def test_by_hand(backend):
    # p = 1/4, 3/4; then four equal ones; then 1/2, 1/4, 1/4.
    third, half = math.log(3), math.log(2)
    logits = torch.tensor([[0, third, -math.inf, -math.inf], [5, 5, 5, 5], [half - 7, -7, -7, -math.inf]], dtype=torch.float64).float()
    found = run(backend, logits, [0, 3, 1])
    np.testing.assert_allclose(found.loss, [math.log(4), math.log(4), math.log(4)], rtol=1e-6)
    np.testing.assert_allclose(found.entropy, [2 * half - 0.75 * third, 2 * half, 1.5 * half], rtol=1e-6)
    np.testing.assert_allclose(found.logsumexp, [math.log(4), 5 + math.log(4), 2 * half - 7], rtol=1e-6)
    assert found.rank.tolist() == [1, 0, 1]


def test_ties_have_the_rank_of_the_first_of_them(backend):
    logits = torch.tensor([[1.0, 5.0, 5.0, -2.0, 5.0, 1.0, 4.0]]).repeat(7, 1)
    assert run(backend, logits, torch.arange(7)).rank.tolist() == [4, 0, 0, 6, 0, 4, 3]
    # Zeros of both signs are equal.
    assert run(backend, torch.tensor([[0.0, -0.0, 1.0]] * 2), [0, 1]).rank.tolist() == [1, 1]


def test_ranks_count_every_column(backend):
    # A rising, a falling and a shuffled row of 5,000 different numbers: the rank says where the true token stands.
    d_vocab = 5000
    order = torch.stack([torch.arange(d_vocab), torch.arange(d_vocab).flip(0), torch.from_numpy(np.random.default_rng(1).permutation(d_vocab))])
    for column in (0, 1, 127, 128, 2047, 2048, 4999):
        found = run(backend, order.float() / 8, torch.full((3,), column))
        assert found.rank.tolist() == (d_vocab - 1 - order[:, column]).tolist()


def test_the_largest_may_come_late_and_far_above(backend):
    # Blocks of 2,048: the largest rises in each, by little, by much, by more than e^x can say; or it falls.
    d_vocab = 9000
    step = torch.arange(d_vocab) // 1000
    logits = draw(8, d_vocab, seed=2, spread=1.0) + torch.stack([step * by for by in (0.0, 0.5, 10.0, 80.0, 100.0, -0.5, -10.0, -100.0)])
    next_id = draw_ids(8, d_vocab, seed=2)
    assert_close(run(backend, logits, next_id), logits, next_id)


def test_one_hot_rows_have_no_loss_and_no_entropy(backend):
    logits = torch.full((4, 3000), -1000.0)
    logits[0, 5], logits[1, 2999], logits[2, 0], logits[3, 7] = 0.0, 0.0, 0.0, 3e38
    logits[2, 1:] = -torch.inf
    logits[3, 8] = -3e38
    found = run(backend, logits, [5, 2999, 0, 7])
    assert found.loss.tolist() == [0.0] * 4
    assert found.entropy.tolist() == [0.0] * 4
    assert found.rank.tolist() == [0] * 4
    found = run(backend, logits, [6, 0, 0, 8])
    assert found.loss.tolist() == [1000.0, 1000.0, 0.0, 2 * float(np.float32(3e38))]
    assert found.rank.tolist() == [1, 1, 0, 2999]


@pytest.mark.parametrize("gap", [15.0, 30.0, 60.0, 80.0])
@pytest.mark.parametrize("column", [0, 2500])
def test_nearly_one_hot_rows_keep_the_digits_of_their_entropy(backend, gap, column):
    # 1 + 2,999 e^-60 is 1 in float64: what is beside the largest must be summed without it.
    logits = torch.zeros(1, 3000)
    logits[0, column] = gap
    found = run(backend, logits, [column])
    others = 2999 * math.exp(-gap)
    np.testing.assert_allclose(found.loss, [math.log1p(others)], rtol=1e-5)
    np.testing.assert_allclose(found.entropy, [math.log1p(others) + others * gap / (1 + others)], rtol=1e-5)
    if gap >= 60:
        assert special.logsumexp(logits.double().numpy()) == gap


def test_masked_logits_are_as_if_they_were_not_there(backend):
    # Two blocks of nothing first, gaps, and a padded end.
    logits, next_id = draw(4, 5000, seed=3), torch.tensor([10, 700, 0, 899])
    whole = torch.full((4, 9000), -torch.inf)
    places = torch.cat([torch.arange(4096, 4896), torch.arange(4900, 5000)])
    whole[:, places] = logits[:, :900]
    found, want = run(backend, whole, places[next_id]), run(backend, logits[:, :900], next_id)
    for name in ("loss", "entropy", "logsumexp"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-6)
    assert torch.equal(found.rank, want.rank)
    masked = run(backend, whole, torch.zeros(4, dtype=torch.int64))
    assert masked.loss.tolist() == [torch.inf] * 4
    assert masked.rank.tolist() == [900] * 4
    assert torch.equal(masked.entropy, found.entropy)
    # Halves too: their -Inf is another pattern.
    for dtype in TYPES[1:]:
        assert_close(run(backend, whole.to(dtype), places[next_id]), whole.to(dtype), places[next_id])


def test_nothing_but_masked_logits_have_no_softmax(backend):
    logits = torch.full((2, 2100), -torch.inf)
    logits[1, 2099] = 3.0
    found = run(backend, logits, [4, 2099])
    assert found.loss.isnan().tolist() == [True, False]
    assert found.entropy.isnan().tolist() == [True, False]
    assert found.rank.tolist() == [-1, 0]
    assert found.logsumexp.tolist() == [-torch.inf, 3.0]
    assert (found.loss[1].item(), found.entropy[1].item()) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 100, 2048, 2999])
def test_nan_and_infinity_show_in_their_row_alone(backend, dtype, bad, column):
    logits, next_id = draw(3, 3000, seed=4).to(dtype), torch.tensor([100, 100, 7])
    clean = run(backend, logits, next_id)
    logits[1, column] = bad
    found = run(backend, logits, next_id)
    assert found.rank[1] == -1
    for name in ("loss", "entropy", "logsumexp"):
        assert getattr(found, name).isnan().tolist() == [False, True, False]
        assert torch.equal(getattr(found, name)[[0, 2]], getattr(clean, name)[[0, 2]])
    assert torch.equal(found.rank[[0, 2]], clean.rank[[0, 2]])


def test_no_next_token(backend):
    logits, next_id = draw(3, 300, seed=5), torch.tensor([3, 299, 8])
    all_three = run(backend, logits, next_id)
    next_id[1] = NO_TOKEN
    found = run(backend, logits, next_id)
    assert found.loss.isnan().tolist() == [False, True, False]
    assert found.rank.tolist() == [all_three.rank[0], -1, all_three.rank[2]]
    assert torch.equal(found.entropy, all_three.entropy)
    assert torch.equal(found.logsumexp, all_three.logsumexp)
    assert torch.equal(found.loss[[0, 2]], all_three.loss[[0, 2]])


def test_a_shift_changes_the_logsumexp_alone(backend):
    # Multiples of 1/64 stay exact when 1,000 is added.
    logits = torch.from_numpy(np.random.default_rng(6).integers(-640, 640, (5, 4100))).float() / 64
    next_id = draw_ids(5, 4100)
    found, shifted = run(backend, logits, next_id), run(backend, logits + 1000, next_id)
    assert torch.equal(found.rank, shifted.rank)
    np.testing.assert_allclose(shifted.logsumexp, found.logsumexp + 1000, rtol=1e-15)
    np.testing.assert_allclose(shifted.loss, found.loss, rtol=1e-14)
    np.testing.assert_allclose(shifted.entropy, found.entropy, rtol=1e-14)


def test_as_close_to_float64_as_log_softmax_of_float32(backend):
    logits, next_id = draw(8, 20_000, seed=7) + 20, draw_ids(8, 20_000)
    y, exact = torch.log_softmax(logits, 1), torch.log_softmax(logits.double(), 1)
    found = run(backend, logits, next_id)
    of_loss = (found.loss + exact.gather(1, next_id[:, None])[:, 0]).abs().max()
    assert of_loss <= (y - exact).gather(1, next_id[:, None]).abs().max() + 2.0**-24
    entropy = -(exact.exp() * exact).sum(1)
    assert (found.entropy - entropy).abs().max() <= (-(y.exp() * y).sum(1) - entropy).abs().max() + 2.0**-23


def test_strided_arguments(backend):
    whole, ids = draw(12, 4200, seed=8).to(backend.device), draw_ids(18, 4001).to(backend.device)
    found = run(backend, whole[::2, 99:4100], ids[::3])
    assert_close(found, whole[::2, 99:4100].cpu(), ids[::3].cpu())
    one = whole[:1, :70].expand(3, 70)  # row stride 0
    assert_close(run(backend, one, [5, 6, 7]), one.cpu(), torch.tensor([5, 6, 7]))


def test_no_tokens(backend):
    found = run(backend, torch.empty(0, 9), torch.empty(0, dtype=torch.int64))
    assert [len(part) for part in found] == [0, 0, 0, 0]


@pytest.mark.backend("cpu")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype):
    logits, next_id = draw(11, 5000, seed=9).to(dtype), draw_ids(11, 5000)
    for isa in _C.instruction_sets():
        monkeypatch.setenv("PYUNIVERSAL_ISA", isa)
        results = []
        for threads in (1, 2, 3, 100):
            sums, greater = torch.empty(4, 11, dtype=torch.float64), torch.empty(11, dtype=torch.int64)
            _C.logit_stats(sums, greater, logits, next_id, threads)
            results.append((sums, greater))
        for sums, greater in results:
            assert torch.equal(sums, results[0][0]), isa
            assert torch.equal(greater, results[0][1]), isa


def test_contract_is_checked():
    logits, next_id = torch.zeros(4, 3), torch.tensor([0, 1, 2, -1])
    for arguments, message in (
        ((logits.long(), next_id), r"logits must be floating \[tokens, d_vocab\], not int64 \[4, 3\] on cpu"),
        ((logits[0], next_id), r"logits must be floating \[tokens, d_vocab\], not float32 \[3\] on cpu"),
        ((logits[:, :0], next_id), r"there must be one logit at least, not float32 \[4, 0\]"),
        ((logits, next_id.int()), r"next_id must be int64 \[4\], not int32 \[4\]"),
        ((logits, next_id[:3]), r"next_id must be int64 \[4\], not int64 \[3\]"),
        ((logits, next_id.to("meta")), r"next_id is on meta, logits on cpu"),
        ((logits, next_id + 1), r"next_id\[2\] is 3: it must be within the vocabulary, \[0, 3\), or -1"),
        ((logits, next_id - 1), r"next_id\[3\] is -2: it must be within the vocabulary"),
    ):
        with pytest.raises(InputError, match=f"^logit_stats: {message}"):
            logit_stats(*arguments)
    with pytest.raises(BackendError, match="the backend cpu cannot run here: does not take float64"):
        logit_stats(logits.double(), next_id, backend="cpu")
    by_columns = logits.T.contiguous().T
    with pytest.raises(BackendError, match="the backend cpu cannot run here: needs neighbouring columns"):
        logit_stats(by_columns, next_id, backend="cpu")
    assert logit_stats(by_columns, next_id).rank.tolist() == [0, 0, 0, -1]


SUMS, GREATER, LOGITS, IDS = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), torch.ones(2, 5), torch.tensor([4, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUMS.float(), GREATER, LOGITS, IDS, 1), r"logit_stats: sums must be float64, got float32"),
        ((SUMS[:3], GREATER, LOGITS, IDS, 1), r"logit_stats: the rows of sums must equal the number of sums \(4\), got 3"),
        ((SUMS[:, :1].contiguous(), GREATER, LOGITS, IDS, 1), r"logit_stats: the columns of sums must equal the tokens of logits \(2\), got 1"),
        ((SUMS.T.contiguous().T, GREATER, LOGITS, IDS, 1), r"logit_stats: sums must be contiguous, got the strides \[1, 4\] for the shape \[4, 2\]"),
        ((SUMS, GREATER.int(), LOGITS, IDS, 1), r"logit_stats: greater must be int64, got int32"),
        ((SUMS, GREATER[:1], LOGITS, IDS, 1), r"logit_stats: the length of greater must equal the tokens of logits \(2\), got 1"),
        ((SUMS, GREATER, LOGITS.double(), IDS, 1), r"logit_stats: logits must be float32 or float16 or bfloat16, got float64"),
        ((SUMS, GREATER, LOGITS.T.contiguous().T, IDS, 1), r"logit_stats: logits must have neighbouring columns"),
        ((SUMS, GREATER, LOGITS, IDS[:1], 1), r"logit_stats: the length of next_id must equal the tokens of logits \(2\), got 1"),
        ((SUMS, GREATER, LOGITS, IDS + 1, 1), r"logit_stats: next_id must be within \[0, 5\) or -1, got 5 at 0"),
        ((SUMS, GREATER, LOGITS, IDS - 1, 1), r"logit_stats: next_id must be within \[0, 5\) or -1, got -2 at 1"),
        ((SUMS, GREATER, LOGITS, IDS, 0), r"logit_stats: threads must be at least 1, got 0"),
    ],
)
def test_the_raw_function_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.logit_stats(*arguments)
    assert not SUMS.any()

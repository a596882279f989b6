"""pair_sums_: float64 sums of numpy, bit for bit on small integers, and nothing of a neuron in the sums of others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from pyuniversal import _C
from pyuniversal.errors import InputError
from pyuniversal.ops import pair_sums_

TYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(tokens: int, neurons: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, neurons, generator=torch.Generator().manual_seed(seed))


def draw_partners(x_neurons: int, candidates: int, y_neurons: int, seed: int = 0) -> torch.Tensor:
    """One in eight has no partner."""
    generator = np.random.default_rng(seed)
    partner = generator.integers(0, y_neurons, (x_neurons, candidates))
    return torch.from_numpy(np.where(generator.random(partner.shape) < 0.125, -1, partner))


def expected(x, y, centre_x, centre_y, partner) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the products and of their absolute values, zero where there is no partner."""
    d, e = (side.double().numpy() - centre.numpy() for side, centre in ((x, centre_x), (y, centre_y)))  # [tokens, neurons]
    sums, sizes = np.zeros(partner.shape), np.zeros(partner.shape)
    for n, c in np.argwhere(partner.numpy() >= 0):
        products = d[:, n] * e[:, partner[n, c]]
        sums[n, c], sizes[n, c] = products.sum(), np.abs(products).sum()
    return sums, sizes


def run(backend, sums, *arguments) -> torch.Tensor:
    """What becomes of `sums`, on the host."""
    sums = sums.clone().to(backend.device)
    backend.run(pair_sums_, sums, *(argument.to(backend.device) for argument in arguments))
    return sums.cpu()


def fresh(partner: torch.Tensor) -> torch.Tensor:
    return torch.zeros(partner.shape, dtype=torch.float64)


# The kernel takes tiles of 32 tokens, squares of 4, 8 or 16, blocks of 64 neurons of x, slots of 16 of y and 8 pairs together.
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "x_neurons", "y_neurons", "candidates"),
    [(1, 1, 1, 1), (3, 2, 200, 16), (15, 17, 15, 9), (31, 64, 16, 1), (32, 63, 17, 8), (33, 65, 33, 3), (129, 200, 31, 1), (200, 130, 300, 16)],
)
def test_against_numpy(backend, dtype, tokens, x_neurons, y_neurons, candidates):
    x, y = (draw(tokens, x_neurons, 0) + 0.5).to(dtype), (draw(tokens, y_neurons, 1) * 3).to(dtype)
    centre_x, centre_y = torch.linspace(0.1, 0.9, x_neurons, dtype=torch.float64), torch.linspace(-1, 1, y_neurons, dtype=torch.float64)
    partner = draw_partners(x_neurons, candidates, y_neurons)
    before = draw(x_neurons, candidates, 2).double()
    got = run(backend, before, x, y, centre_x, centre_y, partner)
    want, size = expected(x, y, centre_x, centre_y, partner)
    assert (np.abs((got - before).numpy() - want) <= (tokens + 8) * 2.0**-52 * (size + before.abs().numpy())).all()
    assert torch.equal(got[partner < 0], before[partner < 0])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_small_integers_over_many_calls_are_exact_to_the_bit(backend, dtype):
    generator = np.random.default_rng(1)
    partner = draw_partners(150, 5, 97)
    centre_x, centre_y = (torch.from_numpy(generator.integers(-4, 5, neurons) / 2) for neurons in (150, 97))
    sums, truth = fresh(partner), np.zeros(partner.shape)
    for tokens in (1, 64, 0, 333, 2, 127, 5000):
        x, y = (torch.empty(tokens, neurons).random_(-8, 9, generator=torch.Generator().manual_seed(tokens)).to(dtype) for neurons in (150, 97))
        truth += expected(x, y, centre_x, centre_y, partner)[0]
        sums = run(backend, sums, x, y, centre_x, centre_y, partner)
    np.testing.assert_array_equal(sums, truth)
    assert len(np.unique(truth)) > 300


def test_who_has_no_partner_keeps_its_sum_whatever_it_holds(backend):
    # Blocks of 64 neurons with partners, without any, with one; -0.0 and NaN would not survive an addition of zero or a comparison.
    partner = torch.full((200, 3), -1)
    partner[5, 1], partner[199, 2] = 40, 0
    x, y = torch.full((70, 200), torch.nan), torch.full((70, 41), torch.nan)
    x[:, [5, 199]], y[:, [40, 0]] = 2.0, 3.0
    before = torch.tensor([-0.0, torch.nan, torch.inf], dtype=torch.float64).repeat(200, 1)
    before[5, 1], before[199, 2] = 1.0, -1.0
    centres = torch.zeros(200, dtype=torch.float64), torch.zeros(41, dtype=torch.float64)
    got = run(backend, before, x, y, *centres, partner)
    before[5, 1], before[199, 2] = 421.0, 419.0
    assert torch.equal(got.view(torch.int64), before.view(torch.int64))
    nobody = torch.full((200, 3), -1)
    assert torch.equal(run(backend, before, x, y, *centres, nobody).view(torch.int64), before.view(torch.int64))
    without_y = run(backend, before, x, y[:, :0], centres[0], centres[1][:0], nobody)
    assert torch.equal(without_y.view(torch.int64), before.view(torch.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("token", [0, 31, 32, 69])
def test_nonfinite_shows_only_in_the_sums_of_its_neuron_and_of_those_whose_partner_it_is(backend, bad, token):
    partner = draw_partners(70, 4, 50)
    x, y = torch.ones(70, 70), torch.ones(70, 50)
    centres = torch.zeros(70, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    spoilt = x.clone()
    spoilt[token, 66] = bad
    got = run(backend, fresh(partner), spoilt, y, *centres, partner)
    want = torch.where(partner < 0, 0.0, 70.0).double()
    want[66] = torch.where(partner[66] < 0, 0.0, bad).double()
    np.testing.assert_array_equal(got, want)

    chosen = int(partner[3].max())
    spoilt = y.clone()
    spoilt[token, chosen] = bad
    got = run(backend, fresh(partner), x, spoilt, *centres, partner)
    want = torch.where(partner < 0, 0.0, 70.0).double()
    want[partner == chosen] = bad
    np.testing.assert_array_equal(got, want)
    assert 1 < (partner == chosen).sum() < 20


def test_values_far_from_zero_with_centres_near_their_means_lose_nothing(backend):
    # x - centre is exact here. Centring afterwards, sum(x y) - centre sum(x), would lose nine digits of sixteen; centring in float32 all of them.
    x, y = 4e4 + draw(500, 40, 3), -3e4 + draw(500, 30, 4)
    centre_x, centre_y = (side.double().mean(0) for side in (x, y))
    partner = draw_partners(40, 3, 30)
    got = run(backend, fresh(partner), x, y, centre_x, centre_y, partner)
    want, size = expected(x, y, centre_x, centre_y, partner)
    assert (np.abs(got.numpy() - want) <= 1e-14 * size).all()
    d, e = x.double().numpy() - centre_x.numpy(), y.double().numpy()
    late = np.array([[d[:, n] @ e[:, p] - centre_y[p] * d[:, n].sum() if p >= 0 else 0.0 for p in row] for n, row in enumerate(partner.numpy())])
    assert (np.abs(late - want) > 1e-14 * size).any()


def test_a_centre_far_from_the_mean_loses_no_more_than_float64_does(backend):
    # Against exact arithmetic: a difference and a product round once each, a sum of t terms t - 1 times.
    tokens = 300
    x, y = draw(tokens, 6, 5), draw(tokens, 5, 6)
    centre_x, centre_y = torch.full((6,), 1e6 + 0.1, dtype=torch.float64), torch.full((5,), -1e7 - 0.3, dtype=torch.float64)
    partner = torch.tensor([[0], [4], [2], [2], [-1], [1]])
    got = run(backend, fresh(partner), x, y, centre_x, centre_y, partner)
    for n, p in enumerate(partner[:, 0].tolist()):
        if p < 0:
            continue
        exact, size = Fraction(0), Fraction(0)
        for a, b in zip(x[:, n].tolist(), y[:, p].tolist(), strict=True):
            product = (Fraction(a) - Fraction(centre_x[n].item())) * (Fraction(b) - Fraction(centre_y[p].item()))
            exact, size = exact + product, size + abs(product)
        assert abs(Fraction(got[n, 0].item()) - exact) <= (tokens + 3) * Fraction(2) ** -53 * size
        assert abs(Fraction(float(np.float32(got[n, 0].item()))) - exact) > (tokens + 3) * Fraction(2) ** -53 * size


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_every_half_precision_number_is_read_exactly(backend, dtype):
    # All 65,536 patterns as x and as y, each beside a one; interpreted, which takes long, one in 17.
    step = 17 if backend.interpreted else 1
    patterns = torch.arange(-32768, 32768, step, dtype=torch.int32).to(torch.int16).view(dtype)[None, :]
    many = patterns.shape[1]
    ones, centre = torch.ones(1, many, dtype=dtype), torch.zeros(many, dtype=torch.float64)
    itself = torch.arange(many)[:, None]
    for x, y in ((patterns, ones), (ones, patterns)):
        np.testing.assert_array_equal(run(backend, fresh(itself), x, y, centre, centre, itself)[:, 0], patterns[0].double())


def test_strided_arguments(backend):
    x, y = draw(200, 300, 7)[::2, 17:90].to(backend.device), draw(300, 100, 8)[::3, 5:46].to(backend.device)
    centre_x, centre_y = torch.arange(146, dtype=torch.float64)[::2] / 64, torch.full((1,), 0.25, dtype=torch.float64).expand(41)
    partner = draw_partners(73, 2, 41)
    got = run(backend, fresh(partner), x, y, centre_x, centre_y, partner)
    want, size = expected(x.cpu(), y.cpu(), centre_x, centre_y, partner)
    assert (np.abs(got.numpy() - want) <= 1e-13 * size).all()
    one_row = draw(1, 73, 9).to(backend.device).expand(70, 73)  # row stride 0
    got = run(backend, fresh(partner), one_row, one_row[:, :41], centre_x, centre_y, partner)
    want, size = expected(one_row.cpu(), one_row[:, :41].cpu(), centre_x, centre_y, partner)
    assert (np.abs(got.numpy() - want) <= 1e-13 * size).all()


def test_few_tokens_at_a_time(backend, monkeypatch):
    # On a GPU both sides are transposed for as many tokens as its cache holds: here for 64, so that there are four strips, the last of 9.
    monkeypatch.setattr(pytest.importorskip("pyuniversal.kernels.pair_sums"), "STRIP_BYTES", 1)
    x, y = draw(201, 70, 10), draw(201, 45, 11)
    centre_x, centre_y = torch.linspace(-1, 1, 70, dtype=torch.float64), torch.linspace(1, 2, 45, dtype=torch.float64)
    partner = draw_partners(70, 3, 45)
    got = run(backend, fresh(partner), x, y, centre_x, centre_y, partner)
    want, size = expected(x, y, centre_x, centre_y, partner)
    assert (np.abs(got.numpy() - want) <= 1e-14 * size).all()


def test_a_matrix_with_itself_gives_its_sums_of_squares(backend):
    x = torch.from_numpy(np.random.default_rng(2).integers(-9, 10, (321, 130))).float()
    centre, itself = torch.full((130,), 0.5, dtype=torch.float64), torch.arange(130)[:, None]
    got = run(backend, fresh(itself), x, x, centre, centre, itself)
    np.testing.assert_array_equal(got[:, 0], ((x.double() - 0.5) ** 2).sum(0))


def test_nothing_to_add(backend):
    for tokens, x_neurons, y_neurons, candidates in ((0, 5, 3, 2), (4, 0, 3, 2), (4, 5, 3, 0), (0, 0, 0, 0)):
        sums = torch.full((x_neurons, candidates), 2.5, dtype=torch.float64)
        x, y = torch.ones(tokens, x_neurons), torch.ones(tokens, y_neurons)
        centres = torch.zeros(x_neurons, dtype=torch.float64), torch.zeros(y_neurons, dtype=torch.float64)
        got = run(backend, sums, x, y, *centres, torch.full((x_neurons, candidates), 2))
        assert torch.equal(got, sums)


@pytest.mark.backend("cpu")
@pytest.mark.parametrize("candidates", [1, 16])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype, candidates):
    # Products over many orders of magnitude, so that their sums depend on the order; seven rounds, in which threads must wait for one another.
    generator = torch.Generator().manual_seed(3)
    sizes = 10 ** torch.empty(5000, 1).uniform_(-4, 4, generator=generator)
    x, y = ((torch.randn(5000, neurons, generator=generator) * sizes).to(dtype) for neurons in (64 * 9 + 3, 150))
    centre_x, centre_y = torch.full((x.shape[1],), 0.1, dtype=torch.float64), torch.full((150,), 0.2, dtype=torch.float64)
    partner = draw_partners(x.shape[1], candidates, 150)
    for isa in _C.instruction_sets():
        monkeypatch.setenv("PYUNIVERSAL_ISA", isa)
        want = fresh(partner)
        _C.pair_sums_(want, x, y, centre_x, centre_y, partner, 1)
        for threads in (2, 3, 7, 100):
            sums = fresh(partner)
            _C.pair_sums_(sums, x, y, centre_x, centre_y, partner, threads)
            assert torch.equal(sums, want), (isa, threads)
        # Nor does it matter which other pairs there are.
        fewer = torch.where(torch.rand(partner.shape, generator=generator) < 0.5, -1, partner)
        sums = fresh(partner)
        _C.pair_sums_(sums, x, y, centre_x, centre_y, fewer, 2)
        assert torch.equal(sums[fewer >= 0], want[fewer >= 0]), isa
        # The order does matter to these numbers, so equal bits say something.
        backwards = fresh(partner)
        _C.pair_sums_(backwards, x.flip(0), y.flip(0), centre_x, centre_y, partner, 1)
        assert not torch.equal(backwards, want)


def test_contract_is_checked():
    x, y, partner = torch.ones(4, 3), torch.ones(4, 5), torch.tensor([[0, 4], [-1, 2], [1, 1]])
    sums, centre_x, centre_y = fresh(partner), torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    good = {"sums": sums, "x": x, "y": y, "centre_x": centre_x, "centre_y": centre_y, "partner": partner}
    for wrong, message in (
        ({"x": x.long()}, r"x must be floating \[tokens, neurons\], not int64 \[4, 3\] on cpu"),
        ({"y": y[0]}, r"y must be floating \[tokens, neurons\], not float32 \[5\] on cpu"),
        ({"x": x.T.contiguous().T}, r"x must have unit stride along neurons, not strides \(1, 4\)"),
        ({"y": y.T.contiguous().T}, r"y must have unit stride along neurons, not strides \(1, 4\)"),
        ({"y": y.half()}, r"x is torch\.float32, y is torch\.float16: both must have one dtype"),
        ({"y": y[:3]}, r"x has 4 tokens, y has 3: both must hold the same tokens"),
        ({"centre_x": centre_x.float()}, r"centre_x must be float64 \[3\], not float32 \[3\]"),
        ({"centre_y": centre_x}, r"centre_y must be float64 \[5\], not float64 \[3\]"),
        ({"partner": partner.int()}, r"partner must be contiguous int64 \[3, candidates\], not int32 \[3, 2\]"),
        ({"partner": partner[:2]}, r"partner must be contiguous int64 \[3, candidates\], not int64 \[2, 2\]"),
        ({"partner": partner.T.contiguous().T}, r"partner must be contiguous int64 \[3, candidates\]"),
        ({"sums": sums.float()}, r"sums must be contiguous float64 \[3, 2\], not float32 \[3, 2\]"),
        ({"sums": sums[:, :1]}, r"sums must be contiguous float64 \[3, 2\], not float64 \[3, 1\]"),
        ({"sums": sums.T.contiguous().T}, r"sums must be contiguous float64 \[3, 2\]"),
        ({"sums": sums.to("meta")}, r"sums is on meta, x on cpu"),
        ({"centre_y": centre_y.to("meta")}, r"centre_y is on meta, x on cpu"),
        ({"partner": partner + 1}, r"partner\[0, 1\] is 5: it must be a neuron of y, \[0, 5\), or -1"),
        ({"partner": partner - 1}, r"partner\[1, 0\] is -2: it must be a neuron of y, \[0, 5\), or -1"),
    ):
        with pytest.raises(InputError, match=f"^pair_sums_: {message}"):
            pair_sums_(*(good | wrong).values())
    assert not sums.any()


X, Y, PARTNER, SUM = torch.ones(4, 3), torch.ones(4, 5), torch.tensor([[0, 4], [-1, 2], [1, 1]]), torch.zeros(3, 2, dtype=torch.float64)
CX, CY = torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUM.float(), X, Y, CX, CY, PARTNER, 1), r"sums must be float64, got float32"),
        ((SUM.T.contiguous().T, X, Y, CX, CY, PARTNER, 1), r"sums must be contiguous, got the strides \[1, 3\] for the shape \[3, 2\]"),
        ((SUM[:2], X, Y, CX, CY, PARTNER, 1), r"the rows of sums must equal the columns of x \(3\), got 2"),
        ((SUM, X.double(), Y, CX, CY, PARTNER, 1), r"x must be float32 or float16 or bfloat16, got float64"),
        ((SUM, X, Y.half(), CX, CY, PARTNER, 1), r"y must have the dtype of x, float32, got float16"),
        ((SUM, X, Y[:3], CX, CY, PARTNER, 1), r"the tokens of y must equal those of x \(4\), got 3"),
        ((SUM, X, Y.T.contiguous().T, CX, CY, PARTNER, 1), r"y must have neighbouring columns .* got the strides \[1, 4\] for the shape \[4, 5\]"),
        ((SUM, X, Y, CX.float(), CY, PARTNER, 1), r"centre_x must be float64, got float32"),
        ((SUM, X, Y, CX[:2], CY, PARTNER, 1), r"the length of centre_x must equal the columns of x \(3\), got 2"),
        ((SUM, X, Y, CX, CY[::2], PARTNER, 1), r"centre_y must be contiguous, got the strides \[2\] for the shape \[3\]"),
        ((SUM, X, Y, CX, CX, PARTNER, 1), r"the length of centre_y must equal the columns of y \(5\), got 3"),
        ((SUM, X, Y, CX, CY, PARTNER.int(), 1), r"partner must be int64, got int32"),
        ((SUM, X, Y, CX, CY, PARTNER[:2], 1), r"the rows of partner must equal the columns of x \(3\), got 2"),
        ((SUM, X, Y, CX, CY, PARTNER[:, :1].contiguous(), 1), r"the columns of partner must equal those of sums \(2\), got 1"),
        ((SUM, X, Y, CX, CY, PARTNER + 1, 1), r"partner must be within \[0, 5\) or -1, got 5 at \[0, 1\]"),
        ((SUM, X, Y, CX, CY, PARTNER - 1, 1), r"partner must be within \[0, 5\) or -1, got -2 at \[1, 0\]"),
        ((SUM, X, Y, CX, CY, PARTNER, 0), r"threads must be at least 1, got 0"),
    ],
)
def test_the_raw_function_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=f"^pair_sums_: {message}"):
        _C.pair_sums_(*arguments)
    assert not SUM.any()

"""quantize: to the bit as its contract says, unbiased, its added variance exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import absmax_about, product_, quantize, unpack
from pyuniversal.ops._dither import dither, neuron_keys, token_keys
from pyuniversal.ops.quantize import fma


def activations(tokens: int, neurons: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.nn.functional.gelu(torch.tensor(generator.standard_t(3, (tokens, neurons)) - 1)).float()


def keys(tokens: int, neurons: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return token_keys(seed, torch.arange(tokens)), neuron_keys(seed, 0, neurons)


def operands(x: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, ...]:
    centre = x.mean(0)
    return x, centre, absmax_about(centre, x.amin(0), x.amax(0)), *keys(*x.shape, seed)


def to_float32(value: Fraction) -> float:
    """Round a fraction to the nearest float32, ties to even, from exact integers alone."""
    if value == 0:
        return 0.0
    sign, value = (-1, -value) if value < 0 else (1, value)
    exponent = 0
    while value >= 2**24:
        value, exponent = value / 2, exponent + 1
    while value < 2**23:
        value, exponent = value * 2, exponent - 1
    whole, rest = divmod(value.numerator, value.denominator)
    twice = 2 * Fraction(rest, value.denominator)
    whole += twice > 1 or (twice == 1 and whole % 2)
    return sign * float(whole * Fraction(2) ** exponent)


def test_bit_for_bit_against_exact_fractions(backend):
    x = activations(40, 6)
    x, centre, absmax, key_t, key_n = (t.to(backend.device) for t in operands(x))
    packed = backend.run(quantize, x, centre, absmax, key_t, key_n, precision="int8")
    u = dither(key_t, key_n)
    for n in range(6):
        scale = to_float32(Fraction(absmax[n].item()) / Fraction("126.5"))
        inverse = Fraction(to_float32(1 / Fraction(scale)))
        assert packed.scale[n].item() == scale
        variance = fourth = Fraction(0)
        for t in range(40):
            centred = Fraction(to_float32(Fraction(x[t, n].item()) - Fraction(centre[n].item())))
            q = to_float32(centred * inverse + Fraction(u[t, n].item())) // 1
            assert unpack(packed)[t, n].item() == q
            fraction = centred * inverse % 1
            added = fraction * (1 - fraction) * Fraction(scale) ** 2 / 40
            variance += added
            fourth += added * (centred * inverse * Fraction(scale)) ** 2
        assert packed.added_variance[n].item() == pytest.approx(float(variance), rel=1e-12)
        assert packed.added_fourth[n].item() == pytest.approx(float(fourth), rel=1e-12)


def test_fma_has_one_rounding():
    generator = torch.Generator().manual_seed(0)
    a = torch.cat([torch.randn(2000, generator=generator), torch.tensor([1 + 2**-12, 1.0, 0.0, 126.5])])
    b = torch.cat([torch.randn(2000, generator=generator) * 100, torch.tensor([1 + 2**-12, 3.0, 5.0, 1.0])])
    c = torch.cat([torch.rand(2000, generator=generator), torch.tensor([2.0**-30, -3.0, 0.0, 1 - 2**-24])])
    expected = [to_float32(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert fma(a, b, c).tolist() == expected


def test_fma_where_float64_would_round_twice():
    # 1 + 2^-24 is a tie of float32; a term of 2^-60 breaks it, but vanishes in float64.
    a, b = torch.tensor([1 + 2**-23, -1 - 2**-23]), torch.tensor([2.0**-24, 2.0**-24])
    c = torch.tensor([1.0, -1.0])
    tie = torch.tensor([2.0**-60, 0.0])
    assert fma(a, b, c).tolist() == [1 + 2**-23, -1 - 2**-23]
    assert fma(tie, torch.ones(2), torch.tensor([1 + 2**-23, 1.0])).tolist() == [1 + 2**-23, 1.0]


def test_nothing_is_clipped_and_extremes_are_reached(backend):
    x = torch.tensor([[-1.0, 0.0, 5.0], [1.0, 0.0, -3.0], [0.5, 0.0, 5.0]], device=backend.device).repeat(2000, 1)
    centre = torch.zeros(3, device=backend.device)
    key_t, key_n = (k.to(backend.device) for k in keys(6000, 3))
    packed = backend.run(quantize, x, centre, absmax_about(centre, x.amin(0), x.amax(0)), key_t, key_n, precision="int8")
    q = unpack(packed)
    assert q[:, 0].unique().tolist() == [-127, -126, 63, 64, 126, 127]
    assert q[:, 1].unique().tolist() == [0]
    assert packed.scale[1].item() == 0
    assert packed.added_variance[1].item() == 0


def test_unbiased_with_the_variance_that_it_states():
    x = activations(64, 8)
    _, centre, absmax, _, _ = operands(x)
    draws = torch.stack(
        [unpack(quantize(x, centre, absmax, token_keys(seed, torch.arange(64)), neuron_keys(seed, 0, 8), precision="int8")).double() for seed in range(3000)]
    )
    packed = quantize(x, centre, absmax, *keys(64, 8), precision="int8")
    error = draws * packed.scale.double() - (x - centre).double()  # [draws, tokens, neurons]
    z = error.mean(0) / (error.std(0) / 3000**0.5 + 1e-12)
    assert z.square().mean() == pytest.approx(1, abs=0.25)
    assert z.abs().max() < 5
    np.testing.assert_allclose(error.var(0).mean(0), packed.added_variance, rtol=0.03)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32), ("float64", torch.float64)])
def test_other_precisions_are_centred_and_cast(backend, precision, dtype):
    x, centre, absmax, key_t, key_n = (t.to(backend.device) for t in operands(activations(50, 7)))
    packed = backend.run(quantize, x, centre, absmax, key_t, key_n, precision=precision)
    expected = x.double() - centre.double() if precision == "float64" else (x - centre).to(dtype)
    assert torch.equal(unpack(packed), expected)
    assert packed.scale.tolist() == [1.0] * 7
    assert packed.added_variance.tolist() == packed.added_fourth.tolist() == [0.0] * 7


def test_columns_are_the_same_as_packing_them_alone(backend):
    x, centre, absmax, key_t, key_n = (t.to(backend.device) for t in operands(activations(90, 12)))
    for precision in ("int8", "float32"):
        part = backend.run(quantize, x, centre, absmax, key_t, key_n, precision=precision).columns(3, 9)
        s = slice(3, 9)
        alone = backend.run(quantize, x[:, s].contiguous(), centre[s], absmax[s], key_t, key_n[s], precision=precision)
        assert torch.equal(unpack(part), unpack(alone))
        assert torch.equal(part.added_variance, alone.added_variance)
        assert (part.neurons, part.tokens) == (6, 90)
        assert unpack(backend.run(quantize, x, centre, absmax, key_t, key_n, precision=precision).columns(9, 99)).shape == (90, 3)


def test_contract_is_checked():
    x, centre, absmax, key_t, key_n = operands(activations(5, 4))
    with pytest.raises(InputError, match="unknown precision 'int4'; choose one of int8, bf16, float32, float64"):
        quantize(x, centre, absmax, key_t, key_n, precision="int4")
    with pytest.raises(InputError, match=r"centre must be float32 \[4\], not float64 \[4\]"):
        quantize(x, centre.double(), absmax, key_t, key_n, precision="int8")
    with pytest.raises(InputError, match=r"token_key must be int32 \[5\], not int32 \[4\]"):
        quantize(x, centre, absmax, key_t[:4], key_n, precision="int8")


SHAPES = [(1, 1), (62, 3), (130, 70), (1024, 64), (2065, 41)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "neurons"), SHAPES)
def test_ragged_chunks_of_wider_rows_to_the_bit(backend, dtype, tokens, neurons):
    x = activations(tokens + 2, neurons + 9)[2:, 5 : 5 + neurons].to(dtype)
    x = torch.nn.functional.pad(x, (3, 4)).to(backend.device)[:, 3 : 3 + neurons]
    centre = x.float().mean(0) + 0.25
    key_t, key_n = (k.to(backend.device) for k in keys(tokens, neurons, seed=tokens))
    arguments = (x, centre, absmax_about(centre, x.amin(0), x.amax(0)), key_t, key_n)
    packed = backend.run(quantize, *arguments, precision="int8")
    expected = quantize(*arguments, precision="int8", backend="reference")
    assert torch.equal(unpack(packed), unpack(expected))
    for got, exact in ((packed.added_variance, expected.added_variance), (packed.added_fourth, expected.added_fourth)):
        np.testing.assert_allclose(got.cpu(), exact.cpu(), rtol=1e-12, atol=1e-300)
    for precision in ("bf16", "float32"):
        packed = backend.run(quantize, *arguments, precision=precision)
        assert torch.equal(unpack(packed), (x.float() - centre).to(packed.data.dtype))


def test_integers_are_kept_where_the_dither_is_zero(backend):
    # Equal keys make it 0, and a scale of 1 leaves the numbers as they are: each is the largest integer that is not above it.
    x = (torch.arange(-506, 507)[:, None] / 4).to(backend.device)  # [tokens, 1], by quarters
    zero, absmax, key = torch.zeros(1), torch.tensor([126.5]), torch.tensor([12345], dtype=torch.int32)
    arguments = (x, *(t.to(backend.device) for t in (zero, absmax, key.expand(len(x)), key)))
    packed = backend.run(quantize, *arguments, precision="int8")
    assert torch.equal(unpack(packed), x.floor().to(torch.int8))
    assert packed.added_variance.item() == pytest.approx(sum(n % 4 * (4 - n % 4) / 16 for n in range(-506, 507)) / 1013, rel=1e-14)


def test_an_empty_chunk(backend):
    x = torch.empty(0, 5, device=backend.device)
    vector, key_t, key_n = torch.zeros(5, device=backend.device), *(k.to(backend.device) for k in keys(0, 5))
    for precision in ("int8", "float32"):
        packed = backend.run(quantize, x, vector, vector, key_t, key_n, precision=precision)
        assert unpack(packed).shape == (0, 5)
        assert packed.added_variance.tolist() == packed.added_fourth.tolist() == [0.0] * 5


@pytest.mark.parametrize("precision", ["int8", "bf16", "float32"])
def test_rows_may_lie_apart(backend, precision):
    # Kernels of products read rows that begin at multiples of 16 bytes: an operand is a view of padded rows, whose columns are views in turn.
    x, *rest = (t.to(backend.device) for t in operands(activations(37, 21)))
    packed = backend.run(quantize, x, *rest, precision=precision)
    plain = quantize(x, *rest, precision=precision, backend="reference")
    if backend.name == "triton":
        assert packed.data.stride(0) * packed.data.element_size() % 16 == 0
        assert packed.data.stride(1) == 1
    for a, b in ((packed, plain), (packed.columns(3, 17), plain.columns(3, 17))):
        total, expected = (torch.zeros(a.neurons, a.neurons, dtype=torch.float32, device=backend.device) for _ in range(2))
        product_(total, a, a)
        product_(expected, b, b, backend="reference")
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)

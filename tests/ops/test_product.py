"""product_: exact integers bit for bit, every precision against float64, blocks and tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyuniversal.errors import InputError
from pyuniversal.ops import Packed, product_, unpack
from pyuniversal.ops.product import MAX_TOKENS
from pyuniversal.ops.quantize import in_panels
from pyuniversal.totals import pack


def integers(neurons: int, tokens: int, seed: int, *, scale: float = 1.0) -> Packed:
    """An int8 operand of random integers that reach both extremes."""
    data = torch.randint(-127, 128, (neurons, tokens), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    data[0] = 127
    data[-1] = -127
    ones = torch.ones(neurons)
    return Packed(data, ones * scale, ones * 0, ones.double() * 0, ones.double() * 0, "neurons,tokens", "int8", neurons, tokens)


def on(packed: Packed, device: str) -> Packed:
    return Packed(*(v.to(device) if isinstance(v, torch.Tensor) else v for v in vars(packed).values()))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (33, 65, 130), (130, 33, 1041), (64, 128, 4096)])
def test_integers_bit_for_bit(backend, shape):
    n, m, tokens = shape
    x, y = integers(n, tokens, 0), integers(m, tokens, 1)
    total = torch.full((n, m), 3.0, device=backend.device)
    backend.run(product_, total, on(x, backend.device), on(y, backend.device))
    exact = x.data.numpy().astype(np.int64) @ y.data.numpy().astype(np.int64).T
    assert total[0, 0].item() == np.float32(3) + np.float32(exact[0, 0])
    # 127 * 127 * 4096 < 2^26: above 2^24 float32 itself rounds, once.
    np.testing.assert_array_equal(
        total.cpu().numpy(), (exact + np.float32(3).astype(np.float64)).astype(np.float32) if tokens < 1041 else exact.astype(np.float32) + np.float32(3)
    )


def test_scales_multiply_and_chunks_add(backend):
    total = torch.zeros(8, 6, device=backend.device)
    exact = np.zeros((8, 6))
    for seed in range(3):
        x, y = integers(8, 50, seed, scale=0.5**seed), integers(6, 50, seed + 10, scale=3.0)
        backend.run(product_, total, on(x, backend.device), on(y, backend.device))
        exact += (x.data.double() @ y.data.double().T).numpy() * 0.5**seed * 3
    np.testing.assert_allclose(total.cpu(), exact, rtol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-15), ("float32", 3e-7), ("bf16", 3e-7)])
def test_other_precisions_against_float64(backend, precision, tolerance):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(700, 40, generator=generator) ** 3, torch.randn(700, 30, generator=generator) + 5
    sides = [
        pack(side.to(backend.device), side.mean(0).to(backend.device), torch.arange(700), source=i, seed=0, precision=precision)
        for i, side in enumerate((x, y))
    ]
    total = torch.zeros(40, 30, dtype=torch.float64 if precision == "float64" else torch.float32, device=backend.device)
    backend.run(product_, total, *sides)
    a, b = (side.data.double().cpu().numpy() for side in sides)
    size = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    assert (np.abs(total.cpu().numpy() - a.T @ b) / size).max() < tolerance


@pytest.mark.parametrize("neurons", [5, 100, 500])
def test_a_source_with_itself(backend, neurons):
    # Half of it may be computed and written twice; 500 neurons are several blocks down and across. What was there before is no more symmetric than it likes.
    x = on(in_panels(integers(neurons, 130, 0)), backend.device)  # as quantize leaves it: other layouts are copied, and two copies are two sources
    total = torch.arange(neurons * neurons, dtype=torch.float32, device=backend.device).reshape(neurons, neurons) % 7
    before = total.double()
    backend.run(product_, total, x, x)
    data = unpack(x).double()
    assert torch.equal(total.double(), before + data.T @ data)


def test_a_block_of_a_larger_total(backend):
    x, y = integers(8, 64, 0), integers(6, 64, 1)
    whole = torch.zeros(20, 30, device=backend.device)
    backend.run(product_, whole[4:12, 10:16], on(x, backend.device), on(y, backend.device))
    assert torch.equal(whole[4:12, 10:16].cpu(), (x.data.float() @ y.data.float().T))
    whole[4:12, 10:16] = 0
    assert (whole == 0).all()


def test_contract_is_checked():
    x, y = integers(4, 10, 0), integers(3, 10, 1)
    with pytest.raises(InputError, match=r"total must be float32 \[4, 3\]"):
        product_(torch.zeros(3, 4), x, y)
    with pytest.raises(InputError, match="one side has 10 tokens, the other 9"):
        product_(torch.zeros(4, 3), x, integers(3, 9, 1))
    many = Packed(
        torch.zeros(1, 1, dtype=torch.int8).expand(1, MAX_TOKENS + 1),
        torch.ones(1),
        torch.zeros(1),
        torch.zeros(1),
        torch.zeros(1),
        "neurons,tokens",
        "int8",
        1,
        MAX_TOKENS + 1,
    )
    with pytest.raises(InputError, match="exact up to 133,144 tokens a chunk, not 133,145"):
        product_(torch.zeros(1, 1), many, many)

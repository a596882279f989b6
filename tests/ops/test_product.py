"""product_: exact integers bit for bit, every precision against float64, blocks and tails."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyuniversal import _C
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
        pack(side.to(backend.device), side.mean(0).to(backend.device), torch.arange(700, device=backend.device), source=i, seed=0, precision=precision)
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


@pytest.mark.parametrize("start", [0, 3, 16])
def test_operands_that_begin_anywhere(backend, start):
    # Rows of 117 bytes, of which no two begin alike, and neurons from the middle of a source; the total too begins and ends in the middle of a larger one.
    x, y = (on(integers(90, 100, seed), backend.device) for seed in (0, 1))
    wide = torch.full((90, 117), 99, dtype=torch.int8, device=backend.device)
    wide[:, 7:107] = x.data
    left, right = replace(x, data=wide[:, 7:107]).columns(start, start + 70), y.columns(5, 5 + 66)
    whole = torch.full((80, 79), 2.0, device=backend.device)
    backend.run(product_, whole[3:73, 1:67], left, right)
    expected = torch.full((80, 79), 2.0, dtype=torch.float64)
    expected[3:73, 1:67] += x.data.cpu()[start : start + 70].double() @ y.data.cpu()[5:71].double().T
    assert torch.equal(whole.cpu().double(), expected)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_neurons_from_the_middle_of_a_source(backend, precision):
    x, y = (torch.randint(-100, 101, (300, 90), generator=torch.Generator().manual_seed(seed)).float() for seed in (0, 1))
    none = torch.zeros(90, device=backend.device)
    sides = [
        pack(side.to(backend.device), none, torch.arange(300, device=backend.device), source=i, seed=0, precision=precision).columns(3 + i, 73)
        for i, side in enumerate((x, y))
    ]
    total = torch.ones(70, 69, device=backend.device)
    backend.run(product_, total, *sides)
    assert torch.equal(total.cpu(), x[:, 3:73].T @ y[:, 4:73] + 1)  # below 2^24: exact


def test_nothing_to_add(backend):
    total = torch.full((4, 3), 5.0, device=backend.device)
    backend.run(product_, total, on(integers(4, 20, 0).columns(0, 4), backend.device), on(integers(3, 20, 1), backend.device))
    before = total.clone()
    x, y = (replace(on(integers(n, 1, 0), backend.device), data=torch.empty(n, 0, dtype=torch.int8, device=backend.device), tokens=0) for n in (4, 3))
    backend.run(product_, total, x, y)
    assert torch.equal(total, before)


@pytest.mark.backend("triton")
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("programs", [1, 5, 1000])
@pytest.mark.parametrize(
    ("name", "band", "shape", "start"),
    [("WIDE", 2, (300, 530, 260), 4), ("SMALL", 1, (150, 300, 140), 4), ("SMALL", 3, (290, 260, 40), 5), ("ODD", 16, (260, 130, 130), 5)],
)
def test_each_tile_is_made_once(name, band, shape, start, programs, same):
    kernel = pytest.importorskip("pyuniversal.kernels.product")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    rows, columns, tokens = (shape[0], shape[0], shape[2]) if same else shape
    padded = [torch.randint(-127, 128, (n, -(-tokens // 16) * 16), dtype=torch.int8, generator=generator) for n in (rows, columns)]
    x, y = (side[:, :tokens] for side in padded)
    x_scale, y_scale = 0.5 ** torch.arange(rows).remainder(3), 0.5 ** torch.arange(columns).remainder(5)
    if same:
        y, y_scale = x, x_scale
    # The total lies in a larger one, whose rows begin at multiples of 16 bytes; so do its own if it starts at its fourth column.
    whole = torch.randint(-9, 10, (rows + 2, -(-columns // 4) * 4 + 12), generator=generator).float()
    inside = (slice(1, 1 + rows), slice(start, start + columns))
    expected = whole.double()
    expected[inside] += (x.double() @ y.double().T) * x_scale[:, None] * y_scale
    # Cut anew: on its way to a device a part of wider rows loses what lies between them.
    whole, x_scale, (x, y) = whole.to(device), x_scale.to(device), (side.to(device)[:, :tokens] for side in padded)
    y, y_scale = (x, x_scale) if same else (y, y_scale.to(device))
    assert kernel.described(whole[inside]) == (start == 4)
    kernel.product(whole[inside], x, y, x_scale, y_scale, tiles=getattr(kernel, name) | {"BAND": band}, programs=programs)
    assert torch.equal(whole.cpu().double(), expected)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
@pytest.mark.parametrize(("start", "extra"), [(0, 0), (2, 2), (1, 0), (1, 1)])
def test_every_tile_of_a_large_product(backend, start, extra):
    # 17 pairs of tiles down and 33 across, eight or nine for each two multiprocessors, the last of both cut, the last band too. The total lies in a larger one:
    # its rows begin at multiples of 8 bytes, between them, or now here and now there.
    rows, columns, tokens = 4096 + 128, 8192 + 64, 1040
    x, y = (on(integers(neurons, tokens, seed), "cuda") for seed, neurons in enumerate((rows, columns)))
    x, y = (replace(side, scale=0.5 ** torch.arange(side.neurons, device="cuda").remainder(6)) for side in (x, y))
    whole = torch.randint(-9, 10, (rows, start + columns + extra), device="cuda").float()
    expected = whole.clone()
    expected[:, start : start + columns] += torch._int_mm(x.data, y.data.T).float() * x.scale[:, None] * y.scale
    again = whole.clone()
    for total in (whole, again):
        backend.run(product_, total[:, start : start + columns], x, y)
    assert torch.equal(whole, expected)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_products_are_queued_on_the_current_stream(backend):
    # What the stream does before is slow; a product on another stream would see the operand before it is written.
    x, y = on(integers(256, 2048, 0), "cuda"), on(integers(512, 2048, 1), "cuda")
    total, late = torch.zeros(256, 512, device="cuda"), replace(x, data=torch.zeros_like(x.data))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.data.copy_(x.data)
        backend.run(product_, total, late, y)
        result = total.clone()
    torch.cuda.synchronize()
    assert torch.equal(result.cpu().double(), x.data.cpu().double() @ y.data.cpu().double().T)


@pytest.mark.backend("triton")
@pytest.mark.parametrize("total_described", [True, False])
def test_large_totals_have_large_tiles(total_described):
    kernel = pytest.importorskip("pyuniversal.kernels.product")
    wide = kernel.WIDE if total_described else kernel.ODD
    assert kernel.configuration(3072, 3072, int8=True, total_described=total_described) == wide
    assert kernel.configuration(3072, 3072, int8=False, total_described=total_described) == wide | {"TOKENS": 64}
    assert kernel.configuration(36_864, 50, int8=True, total_described=total_described) == kernel.SMALL


def test_the_cuda_kernel_says_what_it_does_not_take():
    x, y = integers(4, 10, 0), integers(3, 10, 1)
    assert product_.why_not("cuda", torch.zeros(4, 3), x, y) == "does not take cpu tensors"
    total = SimpleNamespace(is_cuda=True, device=torch.device("cuda"))
    assert product_.why_not("cuda", total, replace(x, precision="bf16"), replace(y, precision="bf16")) == "bf16 is not implemented"


@pytest.mark.parametrize(
    ("capability", "has_cuda", "problem", "reason"),
    [
        ((8, 0), True, "", r"needs a GPU of compute capability 9\.0 .* has 8\.0"),
        ((9, 0), False, "", "not built .*nvcc"),
        ((9, 0), True, "the driver is too old", "the driver is too old"),
        ((9, 0), True, "", "None"),
    ],
)
def test_the_cuda_kernel_needs_a_gpu_and_a_build_for_it(monkeypatch, capability, has_cuda, problem, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(_C, "has_cuda", has_cuda)
    monkeypatch.setattr(_C, "cuda_problem", lambda: problem, raising=False)
    total = SimpleNamespace(is_cuda=True, device=torch.device("cuda"))
    assert re.match(reason, str(product_.why_not("cuda", total, integers(4, 10, 0), integers(3, 10, 1))))


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

"""The raw functions of pyuniversal._C against numpy in float64. How the ops choose between implementations is tested beside each op."""

from __future__ import annotations

import ctypes
import warnings

import numpy as np
import pytest
import torch

from pyuniversal import _C

COUNT, MEAN, M2, M3, M4, POSITIVE, MINIMUM, MAXIMUM = range(8)
HALF_TYPES = [torch.float16, torch.bfloat16]
TYPES = [torch.float32, *HALF_TYPES]


def empty_state(sets: int, neurons: int) -> torch.Tensor:
    state = torch.zeros(sets, 8, neurons, dtype=torch.float64)  # [sets, fields, neurons]
    state[:, MINIMUM], state[:, MAXIMUM] = torch.inf, -torch.inf
    return state


def moments(x: torch.Tensor, ends: list[int], threads: int = 1) -> np.ndarray:
    state = empty_state(len(ends), x.shape[1])
    _C.moments_(state, x, ends, threads)
    return state.numpy()


def expected_moments(x: torch.Tensor) -> np.ndarray:
    """[8, neurons] by two passes in float64; an empty x has the fields of an empty state."""
    values = x.double().numpy()  # [tokens, neurons]
    if len(values) == 0:
        return empty_state(1, x.shape[1])[0].numpy()
    mean = values.mean(0)
    d = values - mean
    counts = np.full(x.shape[1], len(values))
    return np.stack([counts, mean, (d**2).sum(0), (d**3).sum(0), (d**4).sum(0), (values > 0).sum(0), values.min(0), values.max(0)])


def assert_moments_close(got: np.ndarray, x: torch.Tensor, rtol: float = 1e-10) -> None:
    """Central sums up to rtol of their natural size, count * sd^k: M3 of a symmetric neuron is nearly zero and has no relative accuracy of its own."""
    want = expected_moments(x)
    size = np.sqrt(want[M2] / np.maximum(want[COUNT], 1))
    np.testing.assert_array_equal(got[[COUNT, POSITIVE, MINIMUM, MAXIMUM]], want[[COUNT, POSITIVE, MINIMUM, MAXIMUM]])
    np.testing.assert_allclose(got[MEAN], want[MEAN], rtol=1e-13, atol=1e-13 * size.max(initial=1))
    for order, field in ((2, M2), (3, M3), (4, M4)):
        assert (np.abs(got[field] - want[field]) <= rtol * want[COUNT] * size**order).all(), f"order {order}"


def heavy_tailed(tokens: int, neurons: int, seed: int = 0) -> torch.Tensor:
    """GELU of Student's t with 5 degrees of freedom: skewed, mostly near zero, with rare large values, like neurons."""
    generator = np.random.default_rng(seed)
    return torch.nn.functional.gelu(torch.from_numpy(generator.standard_t(5, (tokens, neurons))).float())


# Tiles are 128 tokens by 64 neurons: around one, around several, and far from a multiple.
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("tokens", "neurons"), [(1, 1), (2, 63), (127, 64), (128, 65), (129, 1), (256, 128), (1000, 130)])
def test_moments_match_two_passes_in_float64(tokens, neurons, dtype):
    x = heavy_tailed(tokens, neurons).to(dtype)
    assert_moments_close(moments(x, [tokens])[0], x)


def test_moments_survive_an_offset_ten_thousand_times_the_spread():
    x = (1e4 + torch.from_numpy(np.random.default_rng(1).standard_normal((5000, 70)))).float()
    got = moments(x, [5000])[0]
    assert_moments_close(got, x, rtol=1e-9)
    # The naive way in the same dtype, sum(x^2) - n mean^2, has lost every digit.
    naive = ((x**2).sum(0) - 5000 * x.mean(0) ** 2).double().numpy()
    assert np.abs(naive / got[M2] - 1).max() > 0.1


def test_moments_are_closer_to_float64_than_two_passes_in_float32():
    x = heavy_tailed(20_000, 64) + 3
    d = x - x.mean(0)
    want, got = expected_moments(x), moments(x, [len(x)])[0]
    for order, field in ((2, M2), (3, M3), (4, M4)):
        torch_error = np.abs((d**order).sum(0).double().numpy() - want[field]).max()
        assert np.abs(got[field] - want[field]).max() < 1e-3 * torch_error


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_small_integers_are_exact_to_the_bit(dtype):
    # Every mean, deviation and power is a binary fraction of less than 53 bits when the number of tokens is a power of two: any masking, stride or tail error
    # changes a bit.
    generator = np.random.default_rng(2)
    for tokens in (1, 2, 4, 64, 128, 256):
        x = torch.from_numpy(generator.integers(-8, 9, (tokens, 97))).to(dtype)
        np.testing.assert_array_equal(moments(x, [tokens])[0], expected_moments(x))


def test_many_tiles_with_one_mean_are_exact_to_the_bit():
    # Pairs a, 4 - a: every tile has the mean 2, so that merging adds integers. The tail is ragged.
    half = torch.from_numpy(np.random.default_rng(3).integers(-9, 10, (777, 66)))
    x = torch.stack([half, 4 - half], dim=1).reshape(-1, 66).float()
    np.testing.assert_array_equal(moments(x, [len(x)])[0], expected_moments(x))


@pytest.mark.parametrize("ends", [[0], [300], [10, 200, 300], [100, 100, 300], [0, 0, 300], [300, 300, 300], [0, 128, 256], [5, 6, 7]], ids=str)
def test_every_set_holds_its_prefix_of_the_tokens(ends):
    x = heavy_tailed(300, 66)
    for end, got in zip(ends, moments(x, ends), strict=True):
        assert_moments_close(got, x[:end])


def test_moments_accumulate_over_calls_as_over_one():
    x = heavy_tailed(1500, 40) + 5
    state = empty_state(2, 40)
    parts = [slice(0, 1), slice(1, 1), slice(1, 700), slice(700, 1500)]
    for part in parts:
        tokens = part.stop - part.start
        _C.moments_(state, x[part], [tokens // 2, tokens], 1)
    firsts = torch.cat([x[part][: (part.stop - part.start) // 2] for part in parts])
    assert_moments_close(state[0].numpy(), firsts)
    assert_moments_close(state[1].numpy(), x)


def test_empty_batches_change_nothing():
    state = empty_state(2, 5)
    _C.moments_(state, heavy_tailed(64, 5), [32, 64], 1)
    before = state.clone()
    _C.moments_(state, torch.empty(0, 5), [0, 0], 2)
    _C.moments_(state, torch.ones(7, 5), [0, 0], 2)
    assert torch.equal(state, before)
    _C.moments_(empty_state(1, 0), torch.empty(7, 0), [7], 2)


def test_rows_may_be_strided_and_numpy_arrays_will_do():
    wide = heavy_tailed(500, 200)
    x = wide[::3, 17:90]
    assert_moments_close(moments(x, [len(x)])[0], x.contiguous())
    row = torch.randn(1, 8).expand(130, 8)  # row stride 0
    assert_moments_close(moments(row, [130])[0], row.contiguous())
    state = empty_state(1, 73).numpy()
    _C.moments_(state, x.numpy(), [len(x)], 1)
    assert_moments_close(state[0], x.contiguous())


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_every_half_precision_number_is_read_exactly(dtype):
    # All 65,536 bit patterns: subnormals, both zeros, infinities, NaN. One neuron each, so that nothing but the conversion is at work.
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)[None, :]
    got = moments(x, [1])[0]
    want = x[0].double().numpy()
    finite = np.isfinite(want)
    assert finite.sum() in (63488, 65280)  # float16 spends 2 * 1024 patterns on Inf and NaN, bfloat16 2 * 128
    np.testing.assert_array_equal(got[MINIMUM], want)
    np.testing.assert_array_equal(got[MAXIMUM], want)
    np.testing.assert_array_equal(got[MEAN][finite], want[finite])
    np.testing.assert_array_equal(got[POSITIVE], want > 0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("token", [0, 130, 299])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_token_shows_in_its_neuron_and_its_sets_only(poison, token, dtype):
    x = heavy_tailed(300, 70).to(dtype)
    x[token, 66] = poison
    first, second = moments(x, [200, 300])
    assert_moments_close(second[:, :66], x[:, :66])
    assert_moments_close(second[:, 67:], x[:, 67:])
    if token >= 200:
        assert_moments_close(first, x[:200])
    assert not np.isfinite(second[MEAN, 66])
    assert not np.isfinite(second[M2, 66])
    # Extremes are those of torch: a NaN wins, an infinity is a number.
    np.testing.assert_array_equal(second[MINIMUM, 66], x[:, 66].amin().item())
    np.testing.assert_array_equal(second[MAXIMUM, 66], x[:, 66].amax().item())


def test_a_nan_stays_when_later_batches_are_clean_and_opposite_infinities_are_no_nan():
    state = empty_state(1, 2)
    _C.moments_(state, torch.tensor([[torch.nan, torch.inf], [1.0, -torch.inf]]), [2], 1)
    _C.moments_(state, torch.zeros(3, 2), [3], 1)
    assert state[0, [MEAN, M2, MINIMUM, MAXIMUM], 0].isnan().all()
    assert state[0, [MINIMUM, MAXIMUM], 1].tolist() == [-torch.inf, torch.inf]
    assert state[0, [COUNT, POSITIVE], :].tolist() == [[5, 5], [1, 1]]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(dtype):
    x = heavy_tailed(700, 64 * 5 + 3).to(dtype)
    edges = torch.linspace(-1, 3, 50)
    want = moments(x, [100, 650, 700])
    counts = torch.zeros(x.shape[1], 51, dtype=torch.int64)
    _C.histogram_(counts, x, edges, 1)
    for threads in (2, 3, 4, 5, 7, 100):
        np.testing.assert_array_equal(moments(x, [100, 650, 700], threads), want)
        again = torch.zeros_like(counts)
        _C.histogram_(again, x, edges, threads)
        assert torch.equal(again, counts)


def expected_histogram(x: torch.Tensor, edges: torch.Tensor) -> np.ndarray:
    bins = np.searchsorted(edges.double().numpy(), x.double().numpy(), side="left")  # [tokens, neurons]
    return np.stack([np.bincount(column, minlength=len(edges) + 1) for column in bins.T])


def assert_histogram_exact(x: torch.Tensor, edges: torch.Tensor, threads: int = 2) -> None:
    counts = torch.full((x.shape[1], len(edges) + 1), 7, dtype=torch.int64)
    _C.histogram_(counts, x, edges, threads)
    np.testing.assert_array_equal(counts.numpy() - 7, expected_histogram(x, edges))


EDGES = {
    "paper": torch.linspace(-10, 15, 256),
    "uniform": torch.linspace(-0.7, 1.3, 33),
    "far from zero": torch.linspace(1e4, 1e4 + 1, 100),
    "not uniform": torch.tensor([-3.0, -1e-3, 0.0, 1e-30, 0.5, 1.0, 1.0000001, 2.0, 100.0]),
    "repeated": torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.5, 0.5]),
    "one": torch.tensor([0.25]),
    "none": torch.empty(0),
    "all equal": torch.zeros(4),
    "infinite": torch.tensor([-torch.inf, -1.0, 0.0, 1.0, torch.inf]),
    "huge": torch.tensor([-3e38, 0.0, 3e38]),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_histograms_match_searchsorted(edges, dtype):
    x = heavy_tailed(300, 19).to(dtype)
    # Onto the edges, a step beside them, and beyond them all.
    near = torch.cat([edges, torch.nextafter(edges, torch.tensor(torch.inf)), torch.nextafter(edges, torch.tensor(-torch.inf))])
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-40])
    assert_histogram_exact(x, edges)
    with warnings.catch_warnings(action="ignore"):  # float16 has no 3e38
        assert_histogram_exact(torch.cat([near, special]).to(dtype)[:, None].repeat(1, 17), edges)


@pytest.mark.parametrize(("tokens", "neurons"), [(0, 3), (1, 1), (255, 16), (256, 17), (600, 15), (5, 0)])
def test_histograms_of_ragged_and_strided_rows(tokens, neurons):
    x = torch.randn(tokens * 2, neurons + 5)[::2, 3 : neurons + 3]
    if tokens and neurons:
        assert_histogram_exact(x, torch.linspace(-2, 2, 20))
    else:
        counts = torch.zeros(neurons, 21, dtype=torch.int64)
        _C.histogram_(counts, x, torch.linspace(-2, 2, 20), 1)
        assert counts.sum() == 0


class Elsewhere:
    """A tensor on a device that this machine may not have: as much of one as can be looked at here, in host memory."""

    def __init__(self, kind: int = 2, tensor: torch.Tensor | None = None) -> None:
        self.kind, self.tensor, self.streams = kind, tensor, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 1

    def __dlpack__(self, stream: object = None) -> object:
        self.streams.append(stream)
        if self.tensor is None:
            raise BufferError("on another device than the current one")
        return self.tensor.__dlpack__()


X, STATE = torch.zeros(4, 3), empty_state(2, 3)


class Versioned:
    """A tensor of a library that lends capsules of another kind."""

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(1, b"dltensor_versioned", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STATE.float(), X, [2, 4], 1), r"moments_: state must be float64, got float32"),
        ((STATE[0], X, [2, 4], 1), r"moments_: state must have the dimensions \[sets, 8, neurons\], got the shape \[8, 3\]"),
        ((STATE.mT.contiguous().mT, X, [2, 4], 1), r"moments_: state must be contiguous, got the strides \[24, 1, 8\] for the shape \[2, 8, 3\]"),
        ((STATE[:, :7].contiguous(), X, [2, 4], 1), r"second dimension of state must equal the number of fields \(8\), got 7"),
        ((STATE, X.double(), [2, 4], 1), r"moments_: x must be float32 or float16 or bfloat16, got float64"),
        ((STATE, X.bool(), [2, 4], 1), r"moments_: x must be .* got bool"),
        ((STATE, X.to(torch.uint8), [2, 4], 1), r"moments_: x must be .* got uint8"),
        ((STATE, X[0], [2, 4], 1), r"moments_: x must have the dimensions \[tokens, neurons\], got the shape \[3\]"),
        ((STATE, X.T.contiguous().T, [2, 4], 1), r"moments_: x must have neighbouring columns .* got the strides \[1, 4\] for the shape \[4, 3\]"),
        ((STATE, X[:, :2], [2, 4], 1), r"moments_: the columns of x must equal the neurons of state \(3\), got 2"),
        ((STATE, X, [4], 1), r"moments_: the number of ends must equal the sets of state \(2\), got 1"),
        ((STATE, X, [2, 5], 1), r"moments_: ends must rise from 0 to at most the 4 tokens of x, got \[2, 5\]"),
        ((STATE, X, [3, 2], 1), r"ends must rise .* got \[3, 2\]"),
        ((STATE, X, [-1, 2], 1), r"ends must rise .* got \[-1, 2\]"),
        ((STATE, X, [2, 4], 0), r"moments_: threads must be at least 1, got 0"),
        ((STATE, [[1.0]], [2, 4], 1), r"moments_: x must be a tensor, got a list"),
        ((STATE, X.clone().requires_grad_(), [2, 4], 1), r"moments_: x must be a tensor, got one that cannot be borrowed \(.*gradient.*\)"),
        ((STATE, Versioned(), [2, 4], 1), r"moments_: x must be a tensor, got one that cannot be borrowed \(.*PyCapsule_GetPointer.*\)"),
        ((STATE, X.to("meta"), [2, 4], 1), r"moments_: x must be a tensor, got one that cannot be borrowed \(.*meta.*\)"),
        ((STATE, Elsewhere(), [2, 4], 1), r"moments_: x must be on the device cpu, got one on cuda:1"),
    ],
)
def test_moments_says_what_is_wrong_with_which_argument(arguments, message):
    before = STATE.clone()
    with pytest.raises(ValueError, match=message):
        _C.moments_(*arguments)
    assert torch.equal(STATE, before)


def test_tensors_on_a_gpu_are_borrowed_without_waiting_and_those_elsewhere_not_at_all():
    # -1 is the array API standard's word for no synchronisation. ROCm's (10) and Metal's (8) have no op here.
    for kind, streams, name in ((2, [-1], "cuda:1"), (10, [], "DLPack device 10:1"), (8, [], "DLPack device 8:1")):
        x = Elsewhere(kind, X)
        with pytest.raises(ValueError, match=f"moments_: x must be on the device cpu, got one on {name}"):
            _C.moments_(STATE, x, [2, 4], 1)
        assert x.streams == streams


@pytest.mark.skipif(not _C.has_cuda, reason="built without nvcc")
def test_cuda_product_says_what_is_wrong_with_which_argument():
    x, y, ones = torch.zeros(4, 32, dtype=torch.int8), torch.zeros(3, 32, dtype=torch.int8), torch.ones(4)
    total = torch.zeros(4, 3)
    arguments = {"total": total, "x": x, "y": y, "x_scale": ones, "y_scale": ones[:3]}
    for name, wrong, message in (
        ("total", total.double(), r"product_: total must be float32, got float64"),
        ("x", x.T, r"product_: x must have neighbouring columns"),
        ("y", y.int(), r"product_: y must be int8, got int32"),
        ("y", x, r"product_: the neurons of y must equal the columns of total \(3\), got 4"),
        ("x_scale", ones[:3], r"product_: the length of x_scale must equal the rows of total \(4\), got 3"),
        ("y", y[:, 1:], r"product_: the rows of y must begin at multiples of 16 bytes"),
        ("y", y[:, :16], r"product_: the tokens of y must equal those of x \(32\), got 16"),
        ("x", torch.zeros(4, 24, dtype=torch.int8), r"product_: the rows of x must begin at multiples of 16 bytes, got the strides \[24, 1\]"),
    ):
        on_gpu = {key: Elsewhere(2, wrong if key == name else value) for key, value in arguments.items()}
        with pytest.raises(ValueError, match=message):
            _C.cuda_product_(*on_gpu.values(), 0)
    with pytest.raises(ValueError, match="product_: total must be on the device cuda, got one on cpu"):
        _C.cuda_product_(*arguments.values(), 0)
    with pytest.raises(ValueError, match="product_: y must be on the device cuda:1, got one on cpu"):
        _C.cuda_product_(*[value if key == "y" else Elsewhere(2, value) for key, value in arguments.items()], 0)
    if _C.cuda_problem():  # there is no GPU, or its driver is too old
        with pytest.raises(RuntimeError, match=f"product_: CUDA could not .*: {_C.cuda_problem()}"):
            _C.cuda_product_(*[Elsewhere(2, value) for value in arguments.values()], 0)


COUNTS, BOUNDS = torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((COUNTS.int(), X, BOUNDS, 1), r"histogram_: counts must be int64, got int32"),
        ((COUNTS[:, 1:], X, BOUNDS[1:], 1), r"histogram_: counts must be contiguous, got the strides \[4, 1\] for the shape \[3, 3\]"),
        ((COUNTS, X, BOUNDS.double(), 1), r"histogram_: edges must be float32, got float64"),
        ((COUNTS, X, BOUNDS[:2], 1), r"histogram_: the number of edges \+ 1 must equal the bins of counts \(4\), got 3"),
        ((COUNTS, X, BOUNDS.flip(0), 1), r"histogram_: edges must ascend, got 1\.0+ at 1"),
        ((COUNTS, X, torch.tensor([0.0, torch.nan, 2.0]), 1), r"histogram_: edges must ascend, got nan at 1"),
        ((COUNTS, X[:, :2], BOUNDS, 1), r"histogram_: the columns of x must equal the neurons of counts \(3\), got 2"),
        ((COUNTS, X.long(), BOUNDS, 1), r"histogram_: x must be float32 or float16 or bfloat16, got int64"),
        ((torch.zeros(0, 2**26 + 1, dtype=torch.int64), X[:, :0], torch.empty(2**26), 1), r"histogram_: there can be at most 2\^26 bins"),
        ((COUNTS, X, BOUNDS, -3), r"histogram_: threads must be at least 1, got -3"),
    ],
)
def test_histogram_says_what_is_wrong_with_which_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.histogram_(*arguments)
    assert COUNTS.sum() == 0


def test_ceilings_are_not_below_what_ops_reach():
    # A square float32 product runs at half of the peak and more; a wrong count or a loop that is optimised away would be off by factors.
    assert _C.peak("float32", 1, 0.05) > 1e9
    assert _C.peak("int8", 1, 0.05) < 1e14
    assert 1e8 < _C.read_bandwidth(torch.ones(2**24), 1) < 1e13
    with pytest.raises(ValueError, match="peak: kind must be int8 or float32, got int4"):
        _C.peak("int4", 1, 0.1)
    with pytest.raises(ValueError, match="read_bandwidth: x must hold at least 1048576 bytes"):
        _C.read_bandwidth(torch.ones(3), 1)


def test_the_instruction_set_is_the_best_unless_the_environment_says(monkeypatch):
    monkeypatch.delenv("PYUNIVERSAL_ISA", raising=False)
    known = _C.instruction_sets()
    assert known[0] == "generic"
    assert _C.instruction_set() == known[-1]
    monkeypatch.setenv("PYUNIVERSAL_ISA", "generic")
    assert _C.instruction_set() == "generic"
    monkeypatch.setenv("PYUNIVERSAL_ISA", "mmx")
    with pytest.raises(ValueError, match=f"PYUNIVERSAL_ISA is mmx; this CPU and this build have {', '.join(known)}"):
        moments(torch.ones(2, 2), [2])

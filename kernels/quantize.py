"""Activations of a chunk to the operand of a product: int8, rounded stochastically and transposed, or centred in their own layout.

q = floor(fma(x - centre, 1 / scale, u)) with u from the hash of pyuniversal/ops/_dither.py; float32 arithmetic to the bit, so a multiplication may meet an
addition nowhere but where the product is exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A thread holds four neighbouring neurons of four tokens, and packs the tokens into words, which are what is transposed; loads run two tiles ahead, in shared
# memory. Twice as many neurons a thread need 164 registers and more, which leave room for 8 warps where these have 16, and spill in Triton 3.9.
INT8 = {"PART": 1024, "ROWS": 16, "WIDTH": 64, "STAGES": 3}
INT8_WARPS = 8
CENTRED = {"ROWS": 16, "WIDTH": 256}
CENTRED_WARPS = 4
SUMS = {"WIDTH": 128}
SUMS_WARPS = 4
ALIGNED = 16  # bytes of a row of int8, and elements of a row of the others, so that descriptors can read them


@triton.jit
def _mixed(key):
    # The first step of lowbias32 is linear in xor: it is taken once for each key and not for each pair.
    return key ^ (key >> 16)


@triton.jit
def _dither(mixed):
    h = mixed * 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    h ^= h >> 16
    return (h >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def _round(variance, fourth, data, x, token_key, word, row, neuron, here, mean, inverse, key, tokens, words, stride, MASKED: tl.constexpr):
    """4 * ROWS tokens to as many words of every neuron, and what their rounding adds to the sums, float64 [ROWS, WIDTH] each."""
    packed = tl.zeros(variance.shape, tl.int32)
    for i in tl.static_range(4):
        token = 4 * (word + row) + i
        at = x + token.to(tl.int64)[:, None] * stride + neuron[None, :]
        if MASKED:
            inside = (token < tokens)[:, None] & here
            token_mixed = _mixed(tl.load(token_key + token, mask=token < tokens, other=0).to(tl.uint32, bitcast=True))
            # Beyond the last token the operand is 0.
            centred = tl.where(inside, tl.load(at, mask=inside, other=0.0).to(tl.float32) - mean, 0.0)
        else:
            token_mixed = _mixed(tl.load(token_key + token).to(tl.uint32, bitcast=True))
            centred = tl.load(at, mask=here, other=0.0).to(tl.float32) - mean
        shifted = tl.fma(centred, inverse, _dither(key ^ token_mixed[:, None]))
        # Adding 1.5 2^23 rounds to the nearest integer and leaves it in the lowest bits; less one where it rounded up, that is floor.
        lifted = shifted + 12582912.0
        q = lifted.to(tl.int32, bitcast=True) - (lifted - 12582912.0 > shifted).to(tl.int32)
        packed |= (q & 255) << (8 * i)
        # f (1 - f), f the fractional part of y, is |d| - d^2 with d the distance to the nearest integer. y is exact.
        y = centred.to(tl.float64) * inverse.to(tl.float64)
        d = y - ((y + 6755399441055744.0) - 6755399441055744.0)
        added = tl.abs(d) - d * d
        variance += added
        fourth += y * y * added
    target = data + neuron.to(tl.int64)[:, None] * words + (word + row)[None, :]
    kept = tl.trans(here)
    if MASKED:
        kept = kept & (word + row < words)[None, :]
    tl.store(target, tl.trans(packed), mask=kept)
    return variance, fourth


@triton.jit
def _quantize(
    data,  # int32 [neurons, 4 * lines], each four tokens
    rounding,  # float64 [parts, 2, neurons]
    x,  # [tokens, neurons], rows `stride` apart
    centre,
    inverse,  # float32 [neurons]
    token_key,
    neuron_key,
    tokens,
    neurons,
    stride,
    lines,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    neuron = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ROWS)
    part = tl.program_id(1)
    here = (neuron < neurons)[None, :]
    mean = tl.load(centre + neuron, mask=neuron < neurons, other=0.0)[None, :]
    reciprocal = tl.load(inverse + neuron, mask=neuron < neurons, other=0.0)[None, :]
    key = _mixed(tl.load(neuron_key + neuron, mask=neuron < neurons, other=0).to(tl.uint32, bitcast=True))[None, :]
    variance = tl.zeros((ROWS, WIDTH), tl.float64)
    fourth = tl.zeros((ROWS, WIDTH), tl.float64)
    words = 4 * lines  # a multiple of 4 that the compiler sees, for stores of 16 bytes
    first = part * (PART // 4)
    last = tl.minimum(first + PART // 4, words)
    whole = first + (tl.minimum(first * 4 + PART, tokens) - first * 4) // (4 * ROWS) * ROWS
    for word in tl.range(first, whole, ROWS, num_stages=STAGES):
        variance, fourth = _round(variance, fourth, data, x, token_key, word, row, neuron, here, mean, reciprocal, key, tokens, words, stride, MASKED=False)
    for word in range(whole, last, ROWS):
        variance, fourth = _round(variance, fourth, data, x, token_key, word, row, neuron, here, mean, reciprocal, key, tokens, words, stride, MASKED=True)
    sums = rounding + part.to(tl.int64) * 2 * neurons + neuron
    tl.store(sums, tl.sum(variance, 0), mask=neuron < neurons)
    tl.store(sums + neurons, tl.sum(fourth, 0), mask=neuron < neurons)


@triton.jit
def _add_parts(total, sums, parts, length, WIDTH: tl.constexpr):
    """total[i] = sum over p of sums[p, i], in the order of p."""
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    result = tl.zeros((WIDTH,), tl.float64)
    for part in range(parts):
        result += tl.load(sums + tl.cast(part, tl.int64) * length + i, mask=i < length, other=0.0)
    tl.store(total + i, result, mask=i < length)


@triton.jit
def _centre(data, x, centre, tokens, neurons, stride, pitch, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """x - centre in float32; rounded to nearest where data, [tokens, neurons] with rows `pitch` apart, is int16, which stands for bfloat16."""
    blocks = tl.cdiv(neurons, WIDTH)
    neuron = tl.program_id(0) % blocks * WIDTH + tl.arange(0, WIDTH)
    token = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    inside = (token < tokens)[:, None] & (neuron < neurons)[None, :]
    mean = tl.load(centre + neuron, mask=neuron < neurons, other=0.0)[None, :]
    value = tl.load(x + token.to(tl.int64)[:, None] * stride + neuron[None, :], mask=inside, other=0.0).to(tl.float32) - mean
    if data.dtype.element_ty == tl.int16:
        # On the bits, since Triton's interpreter truncates; memory takes longer than this.
        bits = value.to(tl.uint32, bitcast=True)
        value = tl.where(value != value, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
    tl.store(data + token.to(tl.int64)[:, None] * pitch + neuron[None, :], value, mask=inside)


def quantize(x: Tensor, centre: Tensor, inverse: Tensor, token_key: Tensor, neuron_key: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [neurons, tokens], rows padded with zeros to a multiple of 16 bytes, and float64 [2, neurons]: sums over tokens of f (1 - f) and of y^2 f (1 - f).

    x [tokens, neurons]; centre, inverse float32 [neurons]; keys int32 [tokens] and [neurons].
    """
    tokens, neurons = x.shape
    lines, parts = triton.cdiv(tokens, ALIGNED), triton.cdiv(tokens, INT8["PART"])
    data = torch.empty(neurons, lines * ALIGNED, dtype=torch.int8, device=x.device)
    rounding = torch.zeros(2, neurons, dtype=torch.float64, device=x.device)
    if not tokens or not neurons:
        return data[:, :tokens], rounding
    sums = torch.empty(parts, 2, neurons, dtype=torch.float64, device=x.device)
    vectors = (v.contiguous() for v in (centre, inverse, token_key, neuron_key))
    grid = (triton.cdiv(neurons, INT8["WIDTH"]), parts)
    _quantize[grid](data.view(torch.int32), sums, x, *vectors, tokens, neurons, x.stride(0), lines, **INT8, num_warps=INT8_WARPS)
    _add_parts[(triton.cdiv(2 * neurons, SUMS["WIDTH"]),)](rounding, sums, parts, 2 * neurons, **SUMS, num_warps=SUMS_WARPS)
    return data[:, :tokens], rounding


def centred(x: Tensor, centre: Tensor, dtype: torch.dtype) -> Tensor:
    """x - centre of x [tokens, neurons] and float32 [neurons], bfloat16 or float32 as `dtype` says; rows are padded to a multiple of 16 elements."""
    tokens, neurons = x.shape
    data = torch.empty(tokens, triton.cdiv(neurons, ALIGNED) * ALIGNED, dtype=dtype, device=x.device)
    if tokens and neurons:
        grid = (triton.cdiv(neurons, CENTRED["WIDTH"]) * triton.cdiv(tokens, CENTRED["ROWS"]),)
        words = data.view(torch.int16) if dtype == torch.bfloat16 else data
        _centre[grid](words, x, centre.contiguous(), tokens, neurons, x.stride(0), data.stride(0), **CENTRED, num_warps=CENTRED_WARPS)
    return data[:, :neurons]

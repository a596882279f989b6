// A tile of activations as float: rows of tokens, a fixed width of neurons, neighbours in memory. Reading x once into a tile makes every later loop
// independent of x's dtype, row stride and ragged edge, and spares it the cache conflicts of a power-of-two row stride.
#pragma once

#include "activations.h"
#include "simd.h"

namespace pyuniversal::cpu::PYUNIVERSAL_ISA {
namespace {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

PYUNIVERSAL_INLINE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

PYUNIVERSAL_INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

PYUNIVERSAL_INLINE float to_float(float x) { return x; }

PYUNIVERSAL_INLINE float to_float(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

// Exact, by selects only, so that a loop over it vectorises on machines without a conversion instruction. float's exponent has 112 more below half's;
// a subnormal half gets one more and loses it again by a subtraction, which normalises it.
PYUNIVERSAL_INLINE float to_float(Half x) {
    const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t exponent = magnitude & 0x0f800000u;
    const uint32_t normal = magnitude + (exponent == 0x0f800000u ? 224u << 23 : 112u << 23);  // an exponent of all ones stays so: Inf and NaN
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude + (113u << 23)) - bits_to_float(113u << 23));
    return bits_to_float((exponent == 0 ? subnormal : normal) | sign);
}

// x points to the tile's first element, `width` <= Width; lanes beyond it are zero.
template <int64_t Width, typename T> PYUNIVERSAL_INLINE void fill_tile(float* __restrict tile, const T* x, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; ++row) {
        float* to = tile + row * Width;
        const T* from = x + row * stride;
        if (width == Width) {
            for (int64_t i = 0; i < Width; ++i) to[i] = to_float(from[i]);
        } else {
            for (int64_t i = 0; i < Width; ++i) to[i] = i < width ? to_float(from[i]) : 0.0f;
        }
    }
}

// The tile of `rows` tokens and `width` neurons at [token, neuron].
template <int64_t Width> void load_tile(float* tile, const Activations& x, int64_t token, int64_t neuron, int64_t rows, int64_t width) {
    const int64_t offset = token * x.stride + neuron;
    if (x.type == Float::float32) return fill_tile<Width>(tile, static_cast<const float*>(x.data) + offset, x.stride, rows, width);
    if (x.type == Float::float16) return fill_tile<Width>(tile, static_cast<const Half*>(x.data) + offset, x.stride, rows, width);
    fill_tile<Width>(tile, static_cast<const BFloat16*>(x.data) + offset, x.stride, rows, width);
}

}  // namespace
}  // namespace pyuniversal::cpu::PYUNIVERSAL_ISA

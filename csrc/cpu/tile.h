// Tiles of activations as float: rows of tokens, a fixed width of neurons, neighbours in memory. Reading x once into tiles makes every later loop independent
// of x's dtype, row stride and ragged edge, and spares it the cache conflicts of a power-of-two row stride.
#pragma once

#include "activations.h"
#include "simd.h"

namespace pyuniversal::cpu::PYUNIVERSAL_ISA {
namespace {

constexpr int64_t kTileRows = 128, kTileWidth = 64;

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

// As many as a vector holds. Written for vectors, since GCC 12 takes a short loop over to_float apart and leaves it scalar: a histogram of float16 took twice
// as long.
PYUNIVERSAL_INLINE Floats load_floats(const float* from) { return load<Floats>(from); }

PYUNIVERSAL_INLINE Words load_words(const void* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(load<__m256i>(from)));  // GCC 12 widens the halves one by one
#else
    return __builtin_convertvector(load<HalfWords>(from), Words);
#endif
}

PYUNIVERSAL_INLINE Floats load_floats(const BFloat16* from) { return reinterpret_cast<Floats>(load_words(from) << 16); }

PYUNIVERSAL_INLINE Floats load_floats(const Half* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_cvtph_ps(load<__m256i>(from)));
#else
    const Words bits = load_words(from);
    const Words magnitude = (bits & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
    const Words normal = magnitude + (112u << 23) + (reinterpret_cast<Words>(exponent == 0x0f800000u) & (112u << 23));
    const Words subnormal = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude + (113u << 23)) - bits_to_float(113u << 23));
    return reinterpret_cast<Floats>((exponent == 0 ? subnormal : normal) | (bits & 0x8000u) << 16);
#endif
}

// The first `width` lanes of a tile, or all of them; lanes beyond are zero.
template <typename T> PYUNIVERSAL_INLINE void fill_row(float* __restrict to, const T* from, int64_t width) {
    if (width >= kTileWidth) {
        for (int64_t i = 0; i < kTileWidth; i += kFloats) store(to + i, load_floats(from + i));
    } else {
        for (int64_t i = 0; i < kTileWidth; ++i) to[i] = i < width ? to_float(from[i]) : 0.0f;
    }
}

template <typename T> void fill_rows(float* tiles, const T* x, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t at = 0; at < width; at += kTileWidth) {
            fill_row(tiles + at * kTileRows + row * kTileWidth, x + row * stride + at, width - at);
        }
    }
}

// Lines of memory that will be read soon, to be asked for one by one while something else is computed.
struct Ahead {
    const char* data;
    int64_t stride;  // bytes between rows
    int shift;       // a row has 2^shift lines

    PYUNIVERSAL_INLINE void fetch(int64_t line) const { __builtin_prefetch(data + (line >> shift) * stride + (line & ((1 << shift) - 1)) * 64, 0, 2); }
};

// Tiles of the tokens [begin, end) and the neurons [first, last), four side by side at a time, in the order of memory. While one of the four is worked on, a
// quarter of the rows of the next four is fetched, and then copied: memory is read in pieces of 1 KB, which is four times as fast as pieces of one tile where
// rows are a power of two apart, and the computation hides it.
class Tiles {
  public:
    static constexpr int64_t kSide = 4, kPart = kTileRows / kSide;

    int64_t token = 0, neuron = 0, rows = 0, width = 0;  // what stands in the tiles

    Tiles(const Activations& activations, int64_t first_neuron, int64_t last_neuron, int64_t first_token, int64_t last_token)
        : x(activations), first(first_neuron), last(last_neuron), end(last_token), next_token(first_token), next_neuron(first_neuron) {}

    // Go on to the next tiles; false where there are none.
    bool next() {
        if (next_token >= end || first >= last) return false;
        while (parts < kSide) load();
        token = next_token, neuron = next_neuron, rows = next_rows(), width = next_width();
        next_neuron += width;
        if (next_neuron == last) next_neuron = first, next_token += kTileRows;
        current ^= 1, parts = 0;
        return true;
    }

    // Tile `side`, float [rows, kTileWidth]; lanes beyond the last neuron are zero.
    float* tile(int64_t side) { return buffer[current] + side * kTileRows * kTileWidth; }

    // What the next `load` will read.
    Ahead ahead() const {
        const int64_t size = x.type == Float::float32 ? 4 : 2;
        return {static_cast<const char*>(x.data) + offset() * size, x.stride * size, size == 4 ? 4 : 3};
    }

    // Copy a quarter of the rows of the next tiles.
    void load() {
        const int64_t row = kPart * parts, left = next_token < end ? next_rows() - row : 0;
        if (left > 0 && parts < kSide) {
            float* to = buffer[current ^ 1] + row * kTileWidth;
            const int64_t count = left < kPart ? left : kPart;
            if (x.type == Float::float32) {
                fill_rows(to, static_cast<const float*>(x.data) + offset(), x.stride, count, next_width());
            } else if (x.type == Float::float16) {
                fill_rows(to, static_cast<const Half*>(x.data) + offset(), x.stride, count, next_width());
            } else {
                fill_rows(to, static_cast<const BFloat16*>(x.data) + offset(), x.stride, count, next_width());
            }
        }
        ++parts;
    }

  private:
    int64_t next_rows() const { return end - next_token < kTileRows ? end - next_token : kTileRows; }
    int64_t next_width() const { return last - next_neuron < kSide * kTileWidth ? last - next_neuron : kSide * kTileWidth; }
    int64_t offset() const { return (next_token + kPart * parts) * x.stride + next_neuron; }

    const Activations& x;
    const int64_t first, last, end;
    int64_t next_token, next_neuron, parts = 0;  // the next tiles, and how many quarters of them are copied
    int current = 0;
    alignas(64) float buffer[2][kSide * kTileRows * kTileWidth];
};

}  // namespace
}  // namespace pyuniversal::cpu::PYUNIVERSAL_ISA

// Vectors as wide as the registers of the instruction set that this file is compiled for; the compilers' vector extensions do the arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define PYUNIVERSAL_INLINE __attribute__((always_inline)) inline

namespace pyuniversal::cpu::PYUNIVERSAL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32;
#else
constexpr int64_t kBytes = 16;
#endif
constexpr int64_t kFloats = kBytes / 4, kDoubles = kBytes / 8;

typedef float Floats __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int64_t Longs __attribute__((vector_size(kBytes)));
typedef float HalfFloats __attribute__((vector_size(kBytes / 2)));  // as many as there are Doubles

template <typename Vector> PYUNIVERSAL_INLINE Vector load(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename Vector> PYUNIVERSAL_INLINE void store(void* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// kDoubles floats, widened.
PYUNIVERSAL_INLINE Doubles load_doubles(const float* from) { return __builtin_convertvector(load<HalfFloats>(from), Doubles); }

PYUNIVERSAL_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
PYUNIVERSAL_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

}  // namespace
}  // namespace pyuniversal::cpu::PYUNIVERSAL_ISA

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
typedef uint16_t HalfWords __attribute__((vector_size(kBytes / 2)));  // as many as there are Words
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int64_t Longs __attribute__((vector_size(kBytes)));
typedef float HalfFloats __attribute__((vector_size(kBytes / 2)));  // as many as there are Doubles

template <typename Vector> PYUNIVERSAL_INLINE Vector load(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename Vector> PYUNIVERSAL_INLINE void store(void* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// kDoubles floats, widened. Written out, since compilers take the conversion apart.
PYUNIVERSAL_INLINE Doubles widen(HalfFloats x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Doubles>(_mm512_cvtps_pd(reinterpret_cast<__m256>(x)));
#elif defined(__AVX2__)
    return reinterpret_cast<Doubles>(_mm256_cvtps_pd(reinterpret_cast<__m128>(x)));
#else
    return __builtin_convertvector(x, Doubles);
#endif
}

PYUNIVERSAL_INLINE Doubles load_doubles(const float* from) { return widen(load<HalfFloats>(from)); }

// The lower (0) or upper (1) half of x, widened.
PYUNIVERSAL_INLINE Doubles half_of(Floats x, int half) {
#if defined(__AVX512F__)
    const __m512d bits = reinterpret_cast<__m512d>(x);
    return widen(reinterpret_cast<HalfFloats>(half ? _mm512_extractf64x4_pd(bits, 1) : _mm512_castpd512_pd256(bits)));
#elif defined(__AVX2__)
    const __m256 bits = reinterpret_cast<__m256>(x);
    return widen(reinterpret_cast<HalfFloats>(half ? _mm256_extractf128_ps(bits, 1) : _mm256_castps256_ps128(bits)));
#else
    HalfFloats part;
    std::memcpy(&part, reinterpret_cast<const char*>(&x) + half * (kBytes / 2), sizeof part);
    return widen(part);
#endif
}

PYUNIVERSAL_INLINE Doubles absolute(Doubles x) { return reinterpret_cast<Doubles>(reinterpret_cast<Longs>(x) & INT64_MAX); }

// a b + c; with a single rounding where there is an instruction for it.
PYUNIVERSAL_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Doubles>(_mm512_fmadd_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<Doubles>(_mm256_fmadd_pd(reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b), reinterpret_cast<__m256d>(c)));
#else
    return a * b + c;
#endif
}

// One more in the lanes where x is positive.
PYUNIVERSAL_INLINE Ints count_positive(Floats x, Ints count) {
#if defined(__AVX512F__)
    const __m512i sum = reinterpret_cast<__m512i>(count);
    const __mmask16 positive = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_setzero_ps(), _CMP_GT_OQ);
    return reinterpret_cast<Ints>(_mm512_mask_sub_epi32(sum, positive, sum, _mm512_set1_epi32(-1)));
#else
    return count - (x > 0);  // a comparison is -1 where it holds
#endif
}

PYUNIVERSAL_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
PYUNIVERSAL_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

}  // namespace
}  // namespace pyuniversal::cpu::PYUNIVERSAL_ISA

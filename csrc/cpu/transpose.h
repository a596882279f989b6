// Squares of vectors: turned, or added up along their lanes.
#pragma once

#include "simd.h"

namespace pyuniversal::cpu::PYUNIVERSAL_ISA {
namespace {

template <int... I> struct Lanes {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> {
    typedef Lanes<I...> type;
};
template <typename Vector> struct LanesOf;
template <> struct LanesOf<Floats> {
    typedef Ints Mask;
    static constexpr int count = kFloats;
};
template <> struct LanesOf<Doubles> {
    typedef Longs Mask;
    static constexpr int count = kDoubles;
};

template <int kFrom, typename Vector, int... I> PYUNIVERSAL_INLINE Vector interleave(Vector a, Vector b, Lanes<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (kFrom + I / 2 + I % 2 * static_cast<int>(sizeof...(I)))...);
#else  // GCC has the other from 12 on
    return __builtin_shuffle(a, b, typename LanesOf<Vector>::Mask{(kFrom + I / 2 + I % 2 * static_cast<int>(sizeof...(I)))...});
#endif
}

// a0 b0 a1 b1 ... of the lower halves.
template <typename Vector> PYUNIVERSAL_INLINE Vector interleave_lower(Vector a, Vector b) {
    return interleave<0>(a, b, typename Count<LanesOf<Vector>::count>::type());
}

// The same of the upper halves.
template <typename Vector> PYUNIVERSAL_INLINE Vector interleave_upper(Vector a, Vector b) {
    return interleave<LanesOf<Vector>::count / 2>(a, b, typename Count<LanesOf<Vector>::count>::type());
}

// Lane j of vector i goes to lane i of vector j.
PYUNIVERSAL_INLINE void transpose(Floats (&square)[kFloats]) {
#pragma GCC unroll 4
    for (int64_t step = 1; step < kFloats; step *= 2) {
        Floats mixed[kFloats];
#pragma GCC unroll 8
        for (int64_t i = 0; i < kFloats / 2; ++i) {
            mixed[2 * i] = interleave_lower(square[i], square[i + kFloats / 2]);
            mixed[2 * i + 1] = interleave_upper(square[i], square[i + kFloats / 2]);
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < kFloats; ++i) square[i] = mixed[i];
    }
}

// Lane i is the sum of the lanes of vector i, of kDoubles; each is added up in the same order.
PYUNIVERSAL_INLINE Doubles add_lanes(Doubles* square) {
#pragma GCC unroll 3
    for (int64_t half = kDoubles / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < half; ++i) square[i] = interleave_lower(square[i], square[i + half]) + interleave_upper(square[i], square[i + half]);
    }
    return square[0];
}

}  // namespace
}  // namespace pyuniversal::cpu::PYUNIVERSAL_ISA

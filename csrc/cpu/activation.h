// Activation functions of MLPs on vectors, to a few units in the last place of what models compute in float32 (which is 1e-7 of |x| for the GELUs, whose tails
// cancel there too).
#pragma once

#include "simd.h"
#ifdef PYUNIVERSAL_BORDER
#include <stdexcept>
#include <string>
#endif

namespace pyuniversal::cpu {

enum class Activation { none, relu, gelu, gelu_new, silu };

#ifdef PYUNIVERSAL_BORDER
inline Activation activation_named(const std::string& name, const std::string& op) {
    const char* const names[] = {"", "relu", "gelu", "gelu_new", "silu"};
    for (int i = 0; i < 5; ++i) {
        if (name == names[i]) return static_cast<Activation>(i);
    }
    throw std::invalid_argument(op + ": activation must be relu, gelu, gelu_new or silu, got " + name);
}
#endif

namespace PYUNIVERSAL_ISA {
namespace {

PYUNIVERSAL_INLINE Floats all(float value) { return Floats{} + value; }

// e^x to two units in the last place, for |x| <= 87: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, n added to the exponent.
PYUNIVERSAL_INLINE Floats exponential(Floats x) {
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 2^23 rounds to the nearest integer and leaves it in the lowest bits
    const Ints n = reinterpret_cast<Ints>(shifted) - 0x4b400000;
    const Floats whole = shifted - 12582912.0f;
    const Floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return reinterpret_cast<Floats>(reinterpret_cast<Ints>(p) + (n << 23));
}

// x / (1 + e^-y); a NaN of x stays.
PYUNIVERSAL_INLINE Floats times_sigmoid(Floats x, Floats y) { return x / (1.0f + exponential(smaller(larger(-y, all(-87)), all(87)))); }

// Odd rational approximation on [-4, 4], where |erf| comes to 1 in float32.
PYUNIVERSAL_INLINE Floats error_function(Floats x) {
    x = smaller(larger(x, all(-4)), all(4));
    const Floats s = x * x;
    Floats p = all(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    Floats q = all(-1.45660718464996e-05f);
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

template <Activation A> PYUNIVERSAL_INLINE Floats activate(Floats x) {
    if (A == Activation::relu) return x < 0 ? Floats{} : x;
    if (A == Activation::gelu) return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
    if (A == Activation::gelu_new) return times_sigmoid(x, 1.59576912f * (x + 0.044715f * x * x * x));  // tanh(u) = 2 sigmoid(2 u) - 1
    if (A == Activation::silu) return times_sigmoid(x, x);
    return x;
}

template <Activation A> void activate_all(float* x, int64_t count) {
    for (int64_t i = 0; i < count; i += kFloats) store(x + i, activate<A>(load<Floats>(x + i)));
}

// x[i] = f(x[i]); count is a multiple of a vector's.
[[maybe_unused]] void activate_all(float* x, int64_t count, Activation activation) {
    if (activation == Activation::relu) activate_all<Activation::relu>(x, count);
    if (activation == Activation::gelu) activate_all<Activation::gelu>(x, count);
    if (activation == Activation::gelu_new) activate_all<Activation::gelu_new>(x, count);
    if (activation == Activation::silu) activate_all<Activation::silu>(x, count);
}

}  // namespace
}  // namespace PYUNIVERSAL_ISA
}  // namespace pyuniversal::cpu

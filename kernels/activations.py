"""Activation functions of MLPs on float32 tensors, to a few units in the last place of what models compute in float32."""

import triton
import triton.language as tl


@triton.jit
def _error_function(x):
    # Odd rational approximation on [-4, 4], where |erf| comes to 1 in float32; that of csrc/cpu/activation.h.
    x = tl.minimum(tl.maximum(x, -4.0), 4.0)
    s = x * x
    p = s * -2.72614225801306e-10 + 2.77068142495902e-08
    p = p * s - 2.10102402082508e-06
    p = p * s - 5.69250639462346e-05
    p = p * s - 7.34990630326855e-04
    p = p * s - 2.95459980854025e-03
    p = p * s - 1.60960333262415e-02
    q = s * -1.45660718464996e-05 - 2.13374055278905e-04
    q = q * s - 1.68282697438203e-03
    q = q * s - 7.37332916720468e-03
    q = q * s - 1.42647390514189e-02
    return x * p / q


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """f(x) for ACTIVATION "" (none), "relu", "gelu", "gelu_new" or "silu". NaN stays, and f(0) = 0."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + _error_function(x * 0.707106781))
    elif ACTIVATION == "gelu_new":
        # tanh(u) = 2 sigmoid(2 u) - 1, and e^inf is no harm below a fraction.
        x = x / (1.0 + tl.exp(x * (-1.59576912 - 0.0713548162726 * x * x)))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(ACTIVATION == "", "unknown activation")
    return x

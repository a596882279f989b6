"""`moments_(state, x, ends, activation=None)`: fold the tokens of a batch into streaming central moments of every neuron, for nested token sets, in one read.

    state   float64 [sets, 8, neurons], contiguous, updated in place; the 8 fields are `FIELDS`: count, mean, M2, M3, M4 (M_k = sum (x - mean)^k), positive (how
            many x > 0), minimum, maximum. `empty(sets, neurons)` makes one that holds nothing.
    x       float16 / bfloat16 / float32 / float64 [tokens, neurons], unit stride along neurons; float64 only in the reference
    ends    sets increasing integers: set s is the tokens [0, ends[s]), so the sets are nested and each token is read once; ends[-1] <= tokens
    activation  None, or one of `ACTIVATIONS`: the moments are those of activation(x), which is computed on the way and stored nowhere, to 1e-6 of max(1, |x|)

Sums are never of raw powers: each block of tokens gets its own mean, and blocks are merged pairwise (Chan, Golub & LeVeque 1982; orders 3 and 4: Pebay 2008,
SAND2008-6212), all in float64. NaN and Inf propagate into the mean and M2 of their neuron, so that a caller sees them. Merging is `merge_moments_`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ._op import FLOATING, Op, describe, require, require_device

FIELDS = ("count", "mean", "M2", "M3", "M4", "positive", "minimum", "maximum")


def empty(sets: int, neurons: int, device: torch.device | str = "cpu") -> Tensor:
    """A state that holds no token: zeros, minimum +inf, maximum -inf."""
    state = torch.zeros(sets, len(FIELDS), neurons, dtype=torch.float64, device=device)
    state[:, 6], state[:, 7] = torch.inf, -torch.inf
    return state


# As Hugging Face names them; float64 [tokens, neurons] -> the same.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def check(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    require(x.ndim == 2 and x.dtype in FLOATING, "moments_", f"x must be floating [tokens, neurons], not {describe(x)}")
    shape = [len(ends), len(FIELDS), x.shape[1]]
    require(
        state.dtype == torch.float64 and list(state.shape) == shape and state.is_contiguous(),
        "moments_",
        f"state must be contiguous float64 {shape}, not {describe(state)}",
    )
    require_device("moments_", x.device, state=state)
    require(activation is None or activation in ACTIVATIONS, "moments_", f"unknown activation {activation!r}; choose None or one of {', '.join(ACTIVATIONS)}")
    bounds = [0, *ends, x.shape[0]]
    require(bounds == sorted(bounds), "moments_", f"ends {list(ends)} must increase and stay within the {x.shape[0]} tokens of x")


def reference(state: Tensor, x: Tensor, ends: Sequence[int], *, activation: str | None = None) -> None:
    """Two-pass float64 moments of each segment between two ends, merged into every set that contains it."""
    start = 0
    for first, end in enumerate(ends):
        if end > start:
            segment = _moments_of(x[start:end], ACTIVATIONS[activation] if activation else None)
            for s in range(first, len(ends)):
                merge_moments_(state[s], segment)
        start = end


def _moments_of(x: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """[8, neurons] of the tokens of x, or of activation(x), in blocks so that the float64 copy stays small."""
    total = empty(1, x.shape[1], x.device)[0]
    for block in x.split(2048):
        v = block.double() if activation is None else activation(block.double())  # [tokens, neurons]
        mean = v.mean(0)
        d = v - mean
        d2 = d * d
        count = torch.full_like(mean, v.shape[0])
        powers = (d2.sum(0), (d2 * d).sum(0), (d2 * d2).sum(0))
        merge_moments_(total, torch.stack([count, mean, *powers, (v > 0).sum(0).double(), v.amin(0), v.amax(0)]))
    return total


def merge_moments_(a: Tensor, b: Tensor) -> None:
    """Merge state b into a, both float64 [..., 8, neurons] (Pebay 2008, eqs. 2.1 and 3.1 for orders 2 to 4). Empty states are neutral on either side."""
    na, ma, a2, a3, a4 = a[..., :5, :].clone().unbind(-2)
    nb, mb, b2, b3, b4 = b[..., :5, :].unbind(-2)
    n = na + nb
    safe = n.clamp(min=1)
    d = mb - ma
    fa, fb = na / safe, nb / safe
    a[..., 0, :] = n
    # Weighted so that merging into an empty state returns b's mean to the bit.
    a[..., 1, :] = torch.where(na == 0, mb, ma + d * fb)
    a[..., 2, :] = a2 + b2 + d**2 * na * fb
    a[..., 3, :] = a3 + b3 + d**3 * na * fb * (fa - fb) + 3 * d * (fa * b2 - fb * a2)
    a[..., 4, :] = a4 + b4 + d**4 * na * fb * (fa**2 - fa * fb + fb**2) + 6 * d**2 * (fa**2 * b2 + fb**2 * a2) + 4 * d * (fa * b3 - fb * a3)
    a[..., 5, :] += b[..., 5, :]
    a[..., 6, :] = torch.minimum(a[..., 6, :], b[..., 6, :])
    a[..., 7, :] = torch.maximum(a[..., 7, :], b[..., 7, :])
    # The mean of equal float64 values is inexact, and what is left of their powers is no variance.
    a[..., 2:5, :].masked_fill_((a[..., 6, :] == a[..., 7, :]).unsqueeze(-2), 0.0)


FASTER = {"cpu": "pyuniversal.ops._native:moments_", "triton": "pyuniversal.ops._triton.moments:moments_"}
moments_ = Op("moments_", check=check, reference=reference, faster=FASTER)

"""`moments_`: one read of the activations, against the same statistics in eager torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyuniversal.ops import merge_moments_, moments_
from pyuniversal.ops.moments import FIELDS, empty

from .data import activations
from .trial import Contender, Setting, Trial, implementations, within

# Blocks of tokens whose temporaries stay in the cache are slower still: the merging of many small states costs more than memory.
EAGER = "float32 torch: mean, deviations, their squares, a product and a sum for each order, compare, amin, amax; each token once, sets merged in float64"


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons = (2048, 512) if setting.quick else (16_384, 8192)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield _trial(setting, activations(tokens, neurons, seed=0, device=setting.device, dtype=dtype))


def _trial(setting: Setting, x: Tensor) -> Trial:
    tokens, neurons = x.shape
    ends = (tokens - tokens // 32, tokens - tokens // 128, tokens)  # as BOS and newlines leave them
    name = str(x.dtype).removeprefix("torch.")

    # A state of its own for everyone, which goes on growing as in a pass; the first call is the one that is checked. Made before: the threads of torch
    # that fill it would still spin on our cores.
    states = {name: empty(3, neurons, x.device) for name in ("cpu", "cuda", "triton", "reference")}

    def ours(backend: str) -> Tensor:
        moments_(states[backend], x, ends, backend=backend)
        return states[backend]

    truth = empty(3, neurons, x.device)
    moments_(truth, x, ends, backend="reference")

    def verify(name: str, state: Tensor) -> dict[str, float]:
        got, true = (dict(zip(FIELDS, s.unbind(1), strict=True)) for s in (state, truth))  # each [sets, neurons]
        variance = true["M2"] / true["count"]
        unequal = sum((got[f] != true[f]).sum() for f in ("count", "positive", "minimum", "maximum"))
        scaled = {f"M{k}": ((got[f"M{k}"] - true[f"M{k}"]).abs() / (true["count"] * variance ** (k / 2))).max() for k in (2, 3)}
        scaled["M4"] = ((got["M4"] - true["M4"]).abs() / true["M4"]).max()
        limit = 1e-6 if name in contenders else 1e-3
        allowed = {"unequal": 0.0, "mean": limit, "M2": limit, "M3": limit, "M4": limit}
        return within(allowed, unequal=unequal, mean=((got["mean"] - true["mean"]).abs() / variance.sqrt()).max(), **scaled)

    contenders = implementations(moments_, setting, ours, truth, x, ends)
    return Trial(
        op="moments_",
        case=f"{name} [{tokens}, {neurons}], 3 nested sets",
        shape={"tokens": tokens, "neurons": neurons, "sets": 3},
        ours=contenders,
        opponents={"eager": Contender(lambda: eager(x, ends), does=EAGER)},
        verify=verify,
        bytes=x.numel() * x.element_size(),
        counting="bytes: x read once; the state (192 bytes a neuron) is not counted",
        work=x.numel(),
        unit="elements/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def eager(x: Tensor, ends: Sequence[int]) -> Tensor:
    """The state of `moments_` by plain torch in float32; segments between the ends, so that nested sets do not read a token twice."""
    state = empty(len(ends), x.shape[1], x.device)
    start = 0
    for first, end in enumerate(ends):
        v = x[start:end].float()  # [tokens, neurons]
        mean = v.mean(0)
        d = v - mean
        d2 = d * d
        fields = (torch.full_like(mean, v.shape[0]), mean, d2.sum(0), (d2 * d).sum(0), (d2 * d2).sum(0), (v > 0).sum(0), v.amin(0), v.amax(0))
        segment = torch.stack([f.double() for f in fields])
        for s in range(first, len(ends)):
            merge_moments_(state[s], segment)
        start = end
    return state

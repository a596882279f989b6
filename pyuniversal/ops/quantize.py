"""`quantize(x, centre, absmax, token_key, neuron_key, precision=...)`: activations of a chunk -> the operand of a product.

    x           floating [tokens, neurons]
    centre      float32 [neurons]: subtracted first (the pilot mean; any fixed vector keeps the product exact, a good one keeps it precise)
    absmax      float32 [neurons]: max |x - centre| over these tokens (`absmax_about`); read by int8 alone
    token_key   int32 [tokens], neuron_key int32 [neurons]: the keys of `_dither`; read by int8 alone
    precision   "int8", "bf16", "float32", "float64"
    -> Packed

int8: scale D = absmax / 126.5; q = floor(fma(x - centre, 1/D, u)) with u uniform in [0, 1), so that E[D q] = x - centre exactly, whatever the tails: rounding
to nearest is biased on heavy-tailed neurons and the bias does not fall with the number of tokens. |x - centre| / D <= 126.5, so nothing is ever clipped. Where
D = 0, q = 0. The rounding adds the variance D^2 f (1 - f) to a token, f the fractional part; its mean over the chunk is `added_variance`, exact. It is larger
where x is: the mean of (x - centre)^2 times it is `added_fourth`, from which the error of the correlation of two neurons that fire together is known.

The float32 arithmetic is fixed to the bit (one rounding in x - centre, in D, in 1/D and in the fma), so every backend returns the same q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._dither import dither
from ._op import FLOATING, Op, describe, require, require_device

PRECISIONS = ("int8", "bf16", "float32", "float64")
DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
STEPS = 126.5
PANEL, GROUP = 16, 4  # neurons and tokens that lie together in panels


@dataclass(frozen=True)
class Packed:
    """One side of a product: x - centre is about scale * data.

    data            int8 / bfloat16 / float32 / float64, shaped as `layout` says; rows may lie apart
    scale           float32 [neurons]; ones unless int8
    centre          float32 [neurons]
    added_variance  float64 [neurons]: mean over the tokens of the variance that the rounding added; zeros unless int8
    added_fourth    float64 [neurons]: mean over the tokens of that variance times (x - centre)^2; zeros unless int8
    layout          of data: "tokens,neurons"; "neurons,tokens" (int8); or "panels" (int8 on a CPU): [neurons / 16, tokens / 4, 16, 4], both rounded up, so that
                    64 neighbouring bytes are four tokens of sixteen neurons; tokens beyond the last are 0, neurons beyond the last anything
    precision       one of PRECISIONS
    """

    data: Tensor
    scale: Tensor
    centre: Tensor
    added_variance: Tensor
    added_fourth: Tensor
    layout: str
    precision: str
    neurons: int
    tokens: int

    def columns(self, start: int, end: int) -> Packed:
        """The neurons [start, end) alone; views, no copy, but for panels that are cut in two."""
        if self.layout == "panels" and start % PANEL:
            return in_panels(replace(self, data=unpack(self).T, layout="neurons,tokens").columns(start, end))
        part = slice(start, end)
        return replace(
            self,
            data={"panels": self.data[start // PANEL : -(-end // PANEL)], "neurons,tokens": self.data[part], "tokens,neurons": self.data[:, part]}[self.layout],
            scale=self.scale[part],
            centre=self.centre[part],
            added_variance=self.added_variance[part],
            added_fourth=self.added_fourth[part],
            neurons=len(self.scale[part]),
        )


def absmax_about(centre: Tensor, minimum: Tensor, maximum: Tensor) -> Tensor:
    """max |x - centre| in float32 from the minimum and maximum of x: float32 subtraction is monotone, so the extremes of x give it to the bit."""
    return torch.maximum(maximum.float() - centre, centre - minimum.float())


def check(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> None:
    """Raise `InputError` unless the arguments keep the contract above."""
    require(x.ndim == 2 and x.dtype in FLOATING, "quantize", f"x must be floating [tokens, neurons], not {describe(x)}")
    require(precision in PRECISIONS, "quantize", f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    tokens, neurons = x.shape
    for name, vector, dtype, length in (
        ("centre", centre, torch.float32, neurons),
        ("absmax", absmax, torch.float32, neurons),
        ("token_key", token_key, torch.int32, tokens),
        ("neuron_key", neuron_key, torch.int32, neurons),
    ):
        require(
            vector.dtype == dtype and list(vector.shape) == [length],
            "quantize",
            f"{name} must be {str(dtype).removeprefix('torch.')} [{length}], not {describe(vector)}",
        )
    require_device("quantize", x.device, centre=centre, absmax=absmax, token_key=token_key, neuron_key=neuron_key)


def reference(x: Tensor, centre: Tensor, absmax: Tensor, token_key: Tensor, neuron_key: Tensor, *, precision: str) -> Packed:
    """Exact float32 fma by way of float64, rounded to odd; blocks of tokens keep the float64 copies small."""
    tokens, neurons = x.shape
    if precision != "int8":
        # Centred in float32 first, as every other backend does, except where float64 was asked for.
        data = x.double() - centre.double() if precision == "float64" else (x.float() - centre).to(DTYPES[precision])
        none = torch.zeros_like(centre, dtype=torch.float64)
        return Packed(data, torch.ones_like(centre), centre, none, none, "tokens,neurons", precision, neurons, tokens)
    scale, inverse = scales(absmax)
    data = torch.empty(neurons, tokens, dtype=torch.int8, device=x.device)
    rounding = torch.zeros(2, neurons, dtype=torch.float64, device=x.device)
    for start in range(0, tokens, 1024):
        block = slice(start, start + 1024)
        centred = x[block].float() - centre  # [tokens, neurons]
        # Where the scale is 0, so is the product, and the floor of the dither alone is 0.
        data[:, block] = fma(centred, inverse.expand_as(centred), dither(token_key[block], neuron_key)).floor().to(torch.int8).T
        y = centred.double() * inverse.double()
        fraction = y - y.floor()
        added = fraction * (1 - fraction)
        rounding += torch.stack([added.sum(0), (y * y * added).sum(0)])
    return packed_int8(data, scale, centre, rounding, "neurons,tokens", neurons, tokens)


def scales(absmax: Tensor) -> tuple[Tensor, Tensor]:
    """D and 1 / D, float32 [neurons]; both 0 for a neuron that does not leave the centre, or by so little (3e-37) that 1 / D is no float32."""
    scale = absmax / STEPS
    usable = (scale > 0) & torch.isfinite(1 / scale)
    zero = torch.zeros_like(scale)
    return torch.where(usable, scale, zero), torch.where(usable, 1 / scale, zero)


def packed_int8(data: Tensor, scale: Tensor, centre: Tensor, rounding: Tensor, layout: str, neurons: int, tokens: int) -> Packed:
    """`Packed` of int8 data; rounding, [2, neurons] = sums over tokens of f (1 - f) and of y^2 f (1 - f), f the fractional part of y = (x - centre) / D."""
    square = scale.double() ** 2
    variance, fourth = rounding / max(tokens, 1)
    return Packed(data, scale, centre, square * variance, square**2 * fourth, layout, "int8", neurons, tokens)


def empty_panels(neurons: int, tokens: int) -> Tensor:
    """Uninitialised data of the layout "panels"."""
    return torch.empty(-(-neurons // PANEL), -(-tokens // GROUP), PANEL, GROUP, dtype=torch.int8)


def in_panels(packed: Packed) -> Packed:
    """The same int8 operand in the layout "panels"; itself where it is so already."""
    if packed.layout == "panels":
        return packed
    panels, groups = -(-packed.neurons // PANEL), -(-packed.tokens // GROUP)
    padded = torch.zeros(panels * PANEL, groups * GROUP, dtype=torch.int8, device=packed.data.device)
    padded[: packed.neurons, : packed.tokens] = unpack(packed).T
    return replace(packed, data=padded.view(panels, PANEL, groups, GROUP).transpose(1, 2).contiguous(), layout="panels")


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """float32 a * b + c with a single rounding. The product is exact in float64; the sum is rounded to odd, so that rounding it again to float32 is exact."""
    product, c = a.double() * b.double(), c.double()
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)  # TwoSum (Knuth): total + error is the exact sum
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    even = (bits & 1) == 0
    return torch.where((error != 0) & even, bits + step, bits).view(torch.float64).float()


def unpack(packed: Packed) -> Tensor:
    """The operand as [tokens, neurons], whatever the layout: int8 for int8, else the operand's dtype."""
    if packed.layout == "panels":
        panels, groups, _, _ = packed.data.shape
        return packed.data.permute(1, 3, 0, 2).reshape(groups * GROUP, panels * PANEL)[: packed.tokens, : packed.neurons]
    return packed.data.T if packed.layout == "neurons,tokens" else packed.data


FASTER = {"cpu": "pyuniversal.ops._native:quantize", "triton": "pyuniversal.ops._triton.quantize:quantize"}
quantize = Op("quantize", check=check, reference=reference, faster=FASTER)

"""`pair_sums_`: products of neurons with chosen partners, against gathering in eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyuniversal.ops import pair_sums_

from .data import activations
from .trial import Contender, Setting, Trial, implementations, within

BLOCK = 128  # tokens of the eager ways: of 32 to 2,048, the fastest or within a tenth of it


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons = (1024, 256) if setting.quick else (16_384, 8192)
    x, y = (activations(tokens, neurons, seed=seed, device=setting.device) for seed in (0, 1))
    for candidates in (1, 16):
        yield _trial(setting, x, y, candidates)


def _trial(setting: Setting, x: Tensor, y: Tensor, candidates: int) -> Trial:
    tokens, neurons = x.shape
    generator = torch.Generator().manual_seed(candidates)
    partner = torch.randint(0, y.shape[1], (neurons, candidates), generator=generator).to(x.device)
    centre_x, centre_y = (side[:1024].mean(0, dtype=torch.float64) for side in (x, y))
    # Sums of its own for everyone, which go on growing; the first call is the one that is checked.
    state = {name: torch.zeros_like(partner, dtype=torch.float64) for name in ("cpu", "cuda", "triton", "reference", "columns", "rows", "truth")}
    pair_sums_(state["truth"], x, y, centre_x, centre_y, partner, backend="reference")
    size = x.std(0).double()[:, None] * y.std(0).double()[partner] * tokens

    def ours(backend: str) -> Tensor:
        pair_sums_(state[backend], x, y, centre_x, centre_y, partner, backend=backend)
        return state[backend]

    def verify(name: str, found: Tensor) -> dict[str, float]:
        return within(1e-5 if name in ("columns", "rows") else 1e-12, error=((found - state["truth"]).abs() / size).max())

    return Trial(
        op="pair_sums_",
        case=f"float32 [{tokens}, {neurons}] twice, {candidates} candidates",
        shape={"tokens": tokens, "neurons": neurons, "candidates": candidates},
        ours=implementations(pair_sums_, setting, ours, state["truth"], x, y, centre_x, centre_y, partner),
        opponents={
            "columns": Contender(
                lambda: columns(state["columns"], x, y, centre_x, centre_y, partner),
                does=f"{BLOCK} tokens at a time, centred in float32: for each candidate index_select of columns of y, times x in float32, summed in float64",
            ),
            "rows": Contender(
                lambda: rows(state["rows"], x, y, centre_x, centre_y, partner),
                does=f"{BLOCK} tokens at a time, centred in float32 and transposed: for each candidate index_select of rows of y, vecdot with x in float32; "
                "blocks added in float64",
            ),
        },
        verify=verify,
        bytes=(x.numel() + y.numel()) * x.element_size(),
        operations=2 * tokens * neurons * candidates,
        counting="bytes: x and y read once; operations: a multiplication and an addition for each neuron, candidate and token, centring not counted",
        work=tokens * neurons * candidates,
        unit="products/s",
        ceilings=("read",),
    )


def columns(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> Tensor:
    """Partners gathered from rows of tokens."""
    mean_x, mean_y, partners = centre_x.float(), centre_y.float(), partner.T.contiguous()
    for left, right in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        d, e = left - mean_x, right - mean_y  # [tokens, neurons]
        for candidate, p in enumerate(partners):
            sums[:, candidate] += e.index_select(1, p).mul_(d).sum(0, dtype=torch.float64)
    return sums


def rows(sums: Tensor, x: Tensor, y: Tensor, centre_x: Tensor, centre_y: Tensor, partner: Tensor) -> Tensor:
    """Partners gathered from rows of neurons, which needs both sides transposed; a sum stays float32 for a block of tokens."""
    mean_x, mean_y, partners = centre_x.float(), centre_y.float(), partner.T.contiguous()
    for left, right in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        d, e = (left - mean_x).T.contiguous(), (right - mean_y).T.contiguous()  # [neurons, tokens]
        for candidate, p in enumerate(partners):
            sums[:, candidate] += torch.linalg.vecdot(e.index_select(0, p), d)
    return sums

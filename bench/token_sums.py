"""`token_sums_`: activations summed by the id of their token, against index_add_."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyuniversal.ops import token_sums_

from .data import activations
from .trial import Contender, Setting, Trial, implementations, within


def trials(setting: Setting) -> Iterator[Trial]:
    tokens, neurons, d_vocab = (1024, 256, 300) if setting.quick else (16_384, 2048, 50_257)
    x = activations(tokens, neurons, seed=0, device=setting.device)
    # Zipf's law, as words have it.
    ids = torch.multinomial(1 / torch.arange(1.0, d_vocab + 1), tokens, replacement=True, generator=torch.Generator().manual_seed(0)).to(setting.device)
    for dtype in (torch.float64, torch.float32):
        yield _trial(setting, x, ids, d_vocab, dtype)


def _trial(setting: Setting, x: Tensor, ids: Tensor, d_vocab: int, dtype: torch.dtype) -> Trial:
    tokens, neurons = x.shape
    # A total of its own for everyone, which goes on growing; the first call is the one that is checked.
    state = {name: _empty(d_vocab, neurons, dtype, x) for name in ("cpu", "cuda", "triton", "reference", "index_add_")}

    def ours(backend: str) -> Tensor:
        token_sums_(*state[backend], x, ids, backend=backend)
        return state[backend][0]

    def index_add() -> Tensor:
        sums, counts = state["index_add_"]
        counts += torch.bincount(ids, minlength=d_vocab)
        return sums.index_add_(0, ids, x.to(dtype))

    sums, counts = _empty(d_vocab, neurons, torch.float64, x)
    token_sums_(sums, counts, x, ids, backend="reference")
    allowed = 1e-12 if dtype == torch.float64 else 1e-5
    name, present = str(dtype).removeprefix("torch."), int((counts > 0).sum())
    return Trial(
        op="token_sums_",
        case=f"float32 [{tokens}, {neurons}], {name} sums of {d_vocab} ids",
        shape={"tokens": tokens, "neurons": neurons, "d_vocab": d_vocab, "present": present},
        ours=implementations(token_sums_, setting, ours, *_empty(d_vocab, neurons, dtype, x), x, ids),
        opponents={"index_add_": Contender(index_add, does="sums.index_add_(0, ids, x), x in the dtype of the sums, and a bincount")},
        verify=lambda name, found: within(allowed, error=(found - sums).abs().max() / sums.abs().max()),
        bytes=x.numel() * x.element_size() + 2 * present * neurons * dtype.itemsize,
        counting="bytes: x read once, the sums of the ids that occur read and written once",
        work=x.numel(),
        unit="elements/s",
        ceilings=("read",),
        notes={"dtype": name},
    )


def _empty(d_vocab: int, neurons: int, dtype: torch.dtype, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(d_vocab, neurons, dtype=dtype, device=x.device), torch.zeros(d_vocab, dtype=torch.int64, device=x.device)

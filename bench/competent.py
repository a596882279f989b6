"""What a competent user of torch writes instead of the study's code: no copies, no float64 matrix, one large product a batch.

Both models forward once a batch, activations straight into one float32 matrix [tokens, neurons] a model, one `addmm_` into a resident float32 total of all
pairs of neurons, sums and squares in float64. The rotated baseline is a second pass, as for anyone who does not see that it follows from the covariances.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyuniversal.float32 import tf32_products

from .models import Rows, post_activations, sizes
from .original import BATCH_ROWS, Outcome, now

TOP_K = 50


def competent(modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor]) -> Outcome:
    """Correlate all neurons of two models, then again with each layer of the second rotated; only the best r is taken of the rotated ones."""
    with tf32_products(rows.ids.is_cuda):
        return _competent(modules, rows, rotations)


def _competent(modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor]) -> Outcome:
    device = rows.ids.device
    clock = [time.perf_counter()]
    total = torch.empty(*(layers * d_mlp for layers, d_mlp in map(sizes, modules)), device=device).zero_()  # its pages are touched here, not in the pass
    clock.append(now(device))
    if device.type == "cuda":  # its libraries are loaded, and its memory taken, before the clock runs
        _stream(total, modules, rows.first(BATCH_ROWS * rows.ids.shape[1]), None)
        total.zero_()
    clock.append(now(device))
    r = _stream(total, modules, rows, None)
    clock.append(now(device))
    top, partner = r.topk(min(TOP_K, r.shape[1]), dim=1)
    r.T.topk(min(TOP_K, r.shape[0]), dim=1)
    clock.append(now(device))
    r = _stream(total.zero_(), modules, rows, [rotation.float().to(device) for rotation in rotations])
    clock.append(now(device))
    chance = r.amax(1)
    clock.append(now(device))
    start, _, plain, partners, rotated, maxima = (b - a for a, b in itertools.pairwise(clock))
    seconds = {"pass": plain, "summary": start + partners, "rotated pass": rotated, "rotated summary": maxima}
    return Outcome(top[:, 0], partner[:, 0], chance, seconds)


def _stream(total: Tensor, modules: Sequence[Any], rows: Rows, rotations: Sequence[Tensor] | None) -> Tensor:
    """r, float32 [x neurons, y neurons], in place of `total`, which holds zeros."""
    sums, squares = ([torch.zeros(n, dtype=torch.float64, device=total.device) for n in total.shape] for _ in range(2))
    n = 0
    for ids, kept in rows.batches(BATCH_ROWS):
        x, y = (_activations(module, ids, kept) for module in modules)  # [tokens, neurons]
        if rotations is not None:
            for rotation, layer in zip(rotations, y.split(len(rotations[0]), dim=1), strict=True):
                layer.copy_(layer @ rotation.T)
        total.addmm_(x.T, y)
        for side, s, square in zip((x, y), sums, squares, strict=True):
            s += side.sum(0, dtype=torch.float64)
            square += torch.linalg.vector_norm(side, dim=0, dtype=torch.float64) ** 2
        n += len(kept)
    spread_x, spread_y = ((square - s**2 / n).sqrt().float() for s, square in zip(sums, squares, strict=True))
    total.addr_((sums[0] / n).float(), sums[1].float(), alpha=-1)
    return total.div_(spread_x[:, None]).div_(spread_y)


def _activations(module: Any, ids: Tensor, kept: Tensor) -> Tensor:
    layers = post_activations(module, ids)
    width = layers[0].shape[-1]
    x = torch.empty(len(kept), width * len(layers), device=ids.device)
    for number, layer in enumerate(layers):
        x[:, number * width : (number + 1) * width] = layer.flatten(0, 1)[kept]
    return x

"""The plan of a run that has not been started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .. import zoo
from ..errors import InputError
from ..models import Model, load_config
from ..streaming import Plan, make_plan
from ..tokens import load_tokens
from .inputs import default_batch, resolve_device, shape_of

PLAN_TOKENS = 100_000_000


def plan(
    models: Sequence[Any] | None,
    *,
    tokens: str | os.PathLike[str] | None,
    max_tokens: int | None,
    dense_tokens: int | None,
    layers: Sequence[int] | None,
    trust_remote_code: bool,
    device: str,
    batch_tokens: int | None,
    **options: Any,
) -> Plan:
    """The plan of a run that has not been started."""
    names = list(models) if models is not None else [str(p) for p in zoo.models()]
    if models is None and tokens is None:
        tokens, max_tokens = zoo.tokens(), max_tokens or zoo.MAX_TOKENS
    if dense_tokens is not None and dense_tokens < 1:
        raise InputError(f"--dense-tokens must be at least 1, not {dense_tokens}")
    count = PLAN_TOKENS if max_tokens is None else max_tokens
    if tokens is not None:
        held = load_tokens(tokens).n_tokens
        count = min(held, max_tokens or held)
    shapes = []
    for name in names:
        config = name.config if isinstance(name, Model) else load_config(name, trust_remote_code=trust_remote_code)
        shapes.append(shape_of(str(name), config, range(config.n_layers) if layers is None else layers))
    device = resolve_device(device)
    return make_plan(shapes, tokens=count, dense_tokens=dense_tokens, device=device, batch_tokens=batch_tokens or default_batch(device), **options)

"""Tensors and a little metadata in one safetensors file: written whole or not at all, checked when read, never unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..files import atomic


def save_state(path: str | os.PathLike[str], kind: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and `meta` (JSON-able) to `path` as the state of a `kind`."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata={"kind": kind, "meta": json.dumps(meta)})


def load_state(path: str | os.PathLike[str], kind: str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, onto `device`.

    Raises:
        FileError: the file is absent, truncated or damaged, or holds another kind of state.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="pt", device=str(device)) as file:
            found = (file.metadata() or {}).get("kind")
            if found != kind:
                raise FileError(f"{path} holds {'a ' + found if found else 'no pyuniversal state'}, not a {kind}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise FileError(f"{path} is truncated or damaged ({error}); make it again (of a run: the same command with --overwrite)") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error

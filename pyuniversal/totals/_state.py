"""Tensors and a little metadata in one safetensors file: written whole or not at all, checked when read, never unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..files import atomic, check_fields, safe_name

AGAIN = "make it again (of a run: the same command with --overwrite)"


def save_state(path: str | os.PathLike[str], kind: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and `meta` (JSON-able) to `path` as the state of a `kind`.

    Raises:
        FileError: it cannot be written (the disk is full, say); names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata={"kind": kind, "meta": json.dumps(meta)})
        except SafetensorError as error:
            raise OSError(f"{error}") from error  # which `atomic` puts in words
        temporary.chmod(mode)  # safetensors' own are for their owner alone, and runs are shared


def load_state(
    path: str | os.PathLike[str],
    kind: str,
    device: torch.device | str = "cpu",
    *,
    tensors: Mapping[str, tuple[Sequence[torch.dtype], int]] | None = None,
    meta: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, onto `device`.

    Args:
        path: the file.
        kind: what it must hold.
        device: where the tensors go.
        tensors: those that must be there: name -> (the dtypes it may have, number of axes). Not looked at where None.
        meta: what the metadata must hold: name -> kind of `files.KINDS`.

    Raises:
        FileError: the file is absent, truncated or damaged, or holds another kind of state.
    """
    from safetensors import safe_open

    try:
        with safe_open(Path(path), framework="pt", device=str(device)) as file:
            about = file.metadata() or {}
            if about.get("kind") != kind:
                raise FileError(f"{path} holds {'a ' + about['kind'] if about.get('kind') else 'no pyuniversal state'}, not a {kind}")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            values = json.loads(about.get("meta", ""))
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of the file's bytes: SafetensorError, but also what torch says of a dtype, and json of the metadata
        raise FileError(f"{path} is truncated or damaged ({error}); {AGAIN}") from error
    check_fields(values, meta or {}, path)
    for name, (dtypes, axes) in (tensors or {}).items():
        tensor = found.get(name)
        if tensor is None or tensor.dtype not in dtypes or tensor.ndim != axes:
            what = "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise damaged(path, f"{name} is {what}, not {' or '.join(map(str, dtypes))} of {axes} axes")
    return found, values


def check_sources(found: Any, where: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The fields of the sources of a ledger (those of `SourceInfo`, layers as a tuple), if they are some: their names become those of files.

    Raises:
        FileError: they are not; names `where`.
    """
    sources = check_fields({"sources": found}, {"sources": "a list"}, where)["sources"]
    kinds = {"name": "text", "site": "text", "layers": "a list", "width": "a whole number", "hash": "text"}
    for number, source in enumerate(sources):
        check_fields(source, kinds, f"source {number} of {os.fspath(where)}")
        safe_name(source["name"], where)
        layers = source["layers"]
        sound = all(type(layer) is int and 0 <= layer < 2**15 for layer in layers) and 0 < len(layers) == len(set(layers))
        if set(source) != set(kinds) or not sound or not 1 <= source["width"] * len(layers) < 2**31:
            raise FileError(f"{os.fspath(where)} is damaged: its source {source['name']} has {len(layers)} layers of {source['width']} neurons; {AGAIN}")
    if not sources or len({source["name"] for source in sources}) < len(sources):
        raise FileError(f"{os.fspath(where)} is damaged: it has {len(sources)} sources, or two of one name; {AGAIN}")
    return [source | {"layers": tuple(source["layers"])} for source in sources]


def damaged(path: str | os.PathLike[str], problem: str) -> FileError:
    """The error for a state whose parts do not fit."""
    return FileError(f"{path} is of an earlier version of pyuniversal, or damaged: {problem}; {AGAIN}")

"""The pass hands a GPU its work and reads no number back but one a source and chunk.

Seen here on the CPU, as far as reading goes: copies between devices, which do not happen there, are looked at by tests/test_cuda.py.
"""

from __future__ import annotations

import traceback

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyuniversal import load_model, observe, tokenize
from pyuniversal.streaming import one_pass

READINGS = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "bincount", "repeat_interleave", "unique_consecutive", "_unique2"}
# What is asked only of tensors in host memory, and the one question to the device.
ON_THE_HOST = {("base.py", "_checked"), ("histogram.py", "check"), ("histogram.py", "__init__"), ("_dither.py", "_scalar")}
ASKED = ("nonfinite.py", "known")


class Watch(TorchDispatchMode):
    """Every operation that needs a number of a tensor in order to go on, by the function of ours that is nearest to it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READINGS or by_mask:
            frames = traceback.extract_stack()
            ours = [f for f in frames if "/pyuniversal/" in f.filename.replace("\\", "/")]
            self.places.append((ours[-1].filename.replace("\\", "/").rpartition("/")[2], ours[-1].name))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
def test_one_number_is_read_for_each_source_and_chunk(architecture, tmp_path, monkeypatch):
    folders = [getattr(tiny, architecture)(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    models = [load_model(folder) for folder in folders]
    tokens = tokenize(tiny.sentences(40), models[0].tokenizer, out=tmp_path / "tokens", row_tokens=32, progress=False)
    watch = Watch()

    def watched(function):
        def run(*arguments, **options):
            with watch:
                return function(*arguments, **options)

        return run

    for name in ("_see", "_refuse", "_add"):
        monkeypatch.setattr(one_pass, name, watched(getattr(one_pass, name)))
    totals = observe(models, tokens, chunk_tokens=256, progress=False)
    assert totals.n_chunks > 2
    read = [place for place in watch.places if place not in ON_THE_HOST]
    assert read == [ASKED] * (2 * totals.n_chunks)

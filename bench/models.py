"""Small text and two random GPT-2s for `run`, and plain torch hooks for its opponents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import pyuniversal
from pyuniversal import Tokens, zoo


@dataclass(frozen=True)
class Shape:
    """Of a GPT-2; the vocabulary is the zoo's, 4,096 tokens, so that embedding costs next to nothing."""

    layers: int
    d_mlp: int
    d_model: int
    heads: int
    row_tokens: int


@dataclass(frozen=True)
class Rows:
    """Rows of tokens as a pass takes them: ids int64 [rows, positions], kept bool of the same shape (no BOS, no padding, no lone newline)."""

    ids: Tensor
    kept: Tensor

    @property
    def tokens(self) -> int:
        """Positions that go through the models."""
        return self.ids.numel()

    def first(self, tokens: int) -> Rows:
        """As many whole rows as hold at most so many tokens, one at least."""
        rows = max(1, tokens // self.ids.shape[1])
        return Rows(self.ids[:rows], self.kept[:rows])

    def batches(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """ids [rows, positions] and kept, flat: int64, the places of kept tokens among rows x positions."""
        places = [kept.flatten().nonzero().flatten() for kept in self.kept.split(rows)]  # all before the first batch: on a GPU they are waited for
        yield from zip(self.ids.split(rows), places, strict=True)


def make_models(folder: Path, shape: Shape) -> list[Path]:
    """Two Hugging Face folders, random weights. The second has those of the first but draws every other neuron anew, so that there is something to find."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.models()[0])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=shape.row_tokens,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.d_mlp,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.bos_token_id,
    )
    with torch.random.fork_rng(devices=[]), _no_progress_bars():
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(config)
        for block in model.transformer.h:
            block.mlp.c_fc.weight.data.normal_(std=1.5 / shape.d_model**0.5)  # pre-activations of about that standard deviation
        paths = []
        for name in ("a", "b"):
            if name == "b":
                for block in model.transformer.h:
                    block.mlp.c_fc.weight.data[:, 1::2].normal_(std=1.5 / shape.d_model**0.5)
            paths.append(folder / name)
            model.save_pretrained(paths[-1])
            tokenizer.save_pretrained(paths[-1])
    return paths


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' own, which last a moment and litter the output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def make_tokens(folder: Path, *, row_tokens: int, tokens: int) -> Tokens:
    """The zoo's held-out text in full rows, joined as in the study: enough of it, from all its subsets, for a run of `tokens` that leaves a tenth out."""
    held = pyuniversal.load_tokens(zoo.tokens())
    tokenizer: Any = AutoTokenizer.from_pretrained(zoo.models()[0])
    needed = int(1.3 * tokens) + 8 * row_tokens
    text = []
    for document in range(0, held.n_documents, max(1, held.n_tokens // (2 * needed))):
        rows = held.documents == document
        text.append(tokenizer.decode([i for ids, length in zip(held.ids[rows], held.lengths[rows], strict=True) for i in ids[1:length].tolist()]))
    return pyuniversal.tokenize(text, tokenizer, out=folder, row_tokens=row_tokens, max_tokens=needed, packing="joined", progress=False)


def take_rows(tokens: Tokens, rows: Any, device: str) -> Rows:
    """Rows of a folder of tokens."""
    ids, lengths = tokens.rows(rows)
    kept = (torch.arange(ids.shape[1]) < lengths[:, None]) & (ids != tokens.bos)
    if tokens.newline is not None:
        kept &= ids != tokens.newline
    return Rows(ids.to(device), kept.to(device))


def sizes(module: Any) -> tuple[int, int]:
    """Layers and d_mlp of a Hugging Face GPT-2."""
    blocks = module.transformer.h
    return len(blocks), blocks[0].mlp.c_fc.nf


def post_activations(module: Any, ids: Tensor) -> list[Tensor]:
    """One forward pass of a Hugging Face GPT-2 without its unembedding: what each MLP's W_out multiplies, [rows, positions, d_mlp] a layer."""
    blocks = module.transformer.h
    seen: list[Any] = [None] * len(blocks)

    def keep(layer: int, _: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = inputs[0]

    with torch.inference_mode(), ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.mlp.c_proj.register_forward_pre_hook(partial(keep, layer)).remove)
        module.transformer(ids, use_cache=False)
    return seen

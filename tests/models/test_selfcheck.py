"""A model that breaks an identity is refused at load, in words that say which, where and by how much."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from pyuniversal.errors import ActivationError, InputError
from pyuniversal.models import load_model

REMEDY = "Is it a model of another kind than its configuration says, or was its code changed?"


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(tiny.gpt2(tmp_path / "seed-a"))


def message(model: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(model)
    assert REMEDY in str(caught.value)
    return str(caught.value)


def bypassed(mlp: Any) -> Callable[[Tensor], Tensor]:
    """An MLP with the same function that never calls its output projection."""
    return lambda x: mlp.act(mlp.c_fc(x)) @ mlp.c_proj.weight + mlp.c_proj.bias


def test_a_bypassed_output_projection(theirs: Any) -> None:
    mlp = theirs.transformer.h[1].mlp
    mlp.forward = bypassed(mlp)
    assert "seed-a, layer 1: mlp.post is never computed in a forward." in message(theirs)


def test_an_output_that_is_more_than_w_out_post(theirs: Any) -> None:
    """A scale of 1.01 on the way out: invisible in any picture."""
    mlp = theirs.transformer.h[2].mlp
    forward = mlp.forward
    mlp.forward = lambda x: 1.01 * forward(x)
    text = message(theirs)
    assert "seed-a, layer 2: the MLP's output is not W_out^T post + b_out." in text
    found = re.search(r"The largest difference is ([\d.e-]+) of the sum of its terms, 1e-05 is allowed", text)
    assert found
    assert 1e-4 < float(found[1]) <= 0.0101


def test_a_missing_bias(theirs: Any) -> None:
    projection = theirs.transformer.h[0].mlp.c_proj
    projection.forward = lambda x: x @ projection.weight
    assert "seed-a, layer 0: the MLP's output is not W_out^T post + b_out." in message(theirs)


@pytest.mark.parametrize("layer", [1, 2])
def test_an_mlp_whose_output_is_thrown_away(theirs: Any, layer: int) -> None:
    """The middle layer of three and the last are those that are checked."""
    block = theirs.transformer.h[layer]

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        block.mlp(block.ln_2(hidden))
        return hidden + block.attn(block.ln_1(hidden), **{k: v for k, v in kwargs.items() if k == "attention_mask"})[0]

    block.forward = forward
    text = message(theirs)
    assert f"seed-a, layer {layer}: an edit of mlp.post does not reach the logits. They change by 0, their largest is " in text


def test_an_untrained_model_whose_mlps_write_nothing_yet_is_no_broken_one(theirs: Any) -> None:
    for block in theirs.transformer.h:
        block.mlp.c_proj.weight.data.zero_()
    assert load_model(theirs).config.n_layers == 3


def test_nan_weights_name_model_layer_and_neuron(theirs: Any) -> None:
    theirs.transformer.h[1].mlp.c_fc.weight.data[5, 7] = torch.nan
    with pytest.raises(ActivationError, match=r"seed-a, layer 1, neuron 7: mlp\.post is nan on eight ordinary tokens\. Look for NaN or Inf in the weights"):
        load_model(theirs)


def test_float16_overflow_names_the_dtype(tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny.gpt2(tmp_path / "wide"))
    theirs.transformer.h[0].mlp.c_fc.bias.data[3] = 1e5
    theirs.half()
    with pytest.raises(ActivationError, match=r"wide, layer 0, neuron 3: mlp\.post is inf .* wider dtype than torch\.float16"):
        load_model(theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_sound_model_passes_in_every_dtype(family: str, dtype: str, tmp_path: Path) -> None:
    model = load_model(tiny.FAMILIES[family](tmp_path), dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    exact = load_model(tmp_path)
    tokens = tiny.token_rows(2, 12)
    with model.record("mlp.post") as rough, exact.record("mlp.post") as fine:
        model.forward(tokens)
        exact.forward(tokens)
    error = (rough["mlp.post", 2].double() - fine["mlp.post", 2].double()).abs().max() / fine["mlp.post", 2].abs().max()
    assert float(error) < {"float16": 1e-2, "bfloat16": 1e-1, "float64": 2e-6}[dtype]

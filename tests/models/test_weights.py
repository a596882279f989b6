"""Folded weights compute what the model computes, in the basis that folding promises; and the model stays as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pyuniversal.errors import InputError
from pyuniversal.models import Weights, load_model

TOKENS = tiny.token_rows(2, 16)
NORM = {"gpt2": "ln_2", "gpt_neox": "post_attention_layernorm", "llama": "post_attention_layernorm"}
FINAL = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm", "llama": "norm"}


@pytest.fixture(scope="module", params=[*tiny.FAMILIES, "gpt_neox sequential", "llama with biases"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Weights]:
    """Family, plain float64 model, folded weights."""
    family, _, variant = request.param.partition(" ")
    overrides = {"": {}, "sequential": {"use_parallel_residual": False}, "with biases": {"mlp_bias": True}}[variant]
    folder = tiny.FAMILIES[family](tmp_path_factory.mktemp(family), **overrides)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    return family, plain, load_model(folder).weights()


def layers(plain: Any) -> Any:
    return getattr(plain.base_model, "h", None) or plain.base_model.layers


def run(plain: Any, *modules: Any) -> tuple[list[Tensor], Tensor]:
    """The first input of each module, and the logits."""
    seen: dict[int, Tensor] = {}
    handles = [module.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0]})) for i, module in enumerate(modules)]
    with torch.no_grad():
        logits = plain(input_ids=TOKENS).logits
    for handle in handles:
        handle.remove()
    return [seen[i] for i in range(len(modules))], logits


def normalised(x: Tensor, rms: bool, eps: float) -> Tensor:
    """A norm without weight and bias, by its definition."""
    x = x if rms else x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def eps(plain: Any) -> float:
    c = plain.config
    return float(getattr(c, "layer_norm_epsilon", None) or getattr(c, "layer_norm_eps", None) or c.rms_norm_eps)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_folded_mlp_reads_the_bare_norm_and_writes_the_same(case: tuple[str, Any, Weights], layer: int) -> None:
    family, plain, weights = case
    rms, mlp, w = family == "llama", layers(plain)[layer].mlp, weights.layer(layer)
    into, out = (mlp.c_fc, mlp.c_proj) if family == "gpt2" else (mlp.up_proj, mlp.down_proj) if rms else (mlp.dense_h_to_4h, mlp.dense_4h_to_h)
    (residual, x, post), _ = run(plain, getattr(layers(plain)[layer], NORM[family]), into, out)
    bare = normalised(residual, rms, eps(plain))
    torch.testing.assert_close(bare @ w.W_in.double() + w.b_in.double(), into(x), rtol=0, atol=2e-6)
    if rms:
        assert w.W_gate is not None
        assert w.b_gate is not None
        torch.testing.assert_close(bare @ w.W_gate.double() + w.b_gate.double(), mlp.gate_proj(x), rtol=0, atol=2e-6)
    else:
        assert w.W_gate is None
        assert w.b_gate is None
        assert float(w.W_in.sum(0).abs().max()) < 1e-5
        assert float(w.W_out.sum(1).abs().max()) < 1e-5
        assert float(w.b_out.sum().abs()) < 1e-5
    written, expected = post @ w.W_out.double() + w.b_out.double(), out(post)
    torch.testing.assert_close(written, expected if rms else expected - expected.mean(-1, keepdim=True), rtol=0, atol=5e-6)


def test_the_folded_unembedding_gives_the_same_probabilities(case: tuple[str, Any, Weights]) -> None:
    family, plain, weights = case
    (residual,), logits = run(plain, getattr(plain.base_model, FINAL[family]))
    folded = normalised(residual, family == "llama", eps(plain)) @ weights.W_U.double() + weights.b_U.double()
    torch.testing.assert_close(folded.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=5e-6)
    # centred over the whole vocabulary, so no logit is moved by a constant any more
    torch.testing.assert_close(folded, logits - logits.mean(-1, keepdim=True), rtol=0, atol=1e-5)
    if family != "llama":
        assert float(weights.W_U.sum(0).abs().max()) < 1e-4
        assert float(weights.W_E.sum(1).abs().max()) < 1e-5
    assert weights.W_U.shape == (16, plain.config.vocab_size)


def test_embedding(case: tuple[str, Any, Weights]) -> None:
    family, plain, weights = case
    raw = plain.get_input_embeddings().weight.detach()
    torch.testing.assert_close(weights.W_E.double(), raw if family == "llama" else raw - raw.mean(1, keepdim=True), rtol=0, atol=1e-6)


def test_everything_is_float32_on_the_cpu_and_detached(tmp_path: Path) -> None:
    weights = load_model(tiny.gpt2(tmp_path), dtype="bfloat16").weights()
    tensors = [*(x for x in vars(weights.layer(1)).values() if x is not None), weights.W_U, weights.b_U, weights.W_E]
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad for x in tensors)
    with pytest.raises(InputError, match=r"there is no layer 3: the model has layers 0 to 2"):
        weights.layer(3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_callers_model_stays_as_it_was(family: str, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny.FAMILIES[family](tmp_path))
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    logits = theirs(input_ids=TOKENS).logits
    weights = load_model(theirs).weights()
    for made in (weights.W_E, weights.W_U, weights.b_U, *(x for x in vars(weights.layer(0)).values() if x is not None)):
        made.add_(1)  # what was given away shares no memory with the model
    after = theirs.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(theirs(input_ids=TOKENS).logits, logits)


def test_weight_hash(tmp_path: Path) -> None:
    model = load_model(tiny.neox(tmp_path / "a"))
    state = model.module.state_dict()
    text = b"".join(f"{name} {x.dtype} {list(x.shape)}\n".encode() + x.numpy().tobytes() for name, x in sorted(state.items()))
    assert model.weight_hash == hashlib.sha256(text).hexdigest()
    assert load_model(tiny.neox(tmp_path / "twin")).weight_hash == model.weight_hash
    assert load_model(tiny.neox(tmp_path / "b", seed=1)).weight_hash != model.weight_hash
    assert load_model(tmp_path / "a", dtype="float64").weight_hash != model.weight_hash
    parameter = state["gpt_neox.layers.2.mlp.dense_4h_to_h.bias"]
    parameter[7] = torch.nextafter(parameter[7], torch.tensor(9.0))
    assert load_model(model.module).weight_hash != model.weight_hash

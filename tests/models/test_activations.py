"""The plain path against transformers itself: other hooks, eager attention, weights changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    masking_utils,
)

from pyuniversal.errors import InputError
from pyuniversal.models import HFModel, Model, load_model

TOKENS = tiny.token_rows(3, 20)
OUT = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h", "llama": "down_proj"}


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.FAMILIES[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


@pytest.fixture
def plain(folder: Path) -> Any:
    """The same model as transformers loads it, in float64 and with eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()


def mlps(plain: Any) -> list[Any]:
    return [layer.mlp for layer in getattr(plain.base_model, "h", None) or plain.base_model.layers]


def record_plain(plain: Any, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    """mlp.pre and mlp.post seen at the activation function, not at the projections."""
    seen: dict[tuple[str, int], Tensor] = {}

    def hook(layer: int, mlp: Any) -> Any:
        def after(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen["mlp.pre", layer], seen["mlp.post", layer] = args[0], output

        def gate(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen["mlp.post", layer] = seen["mlp.post", layer] * module.up_proj(args[0])

        handles = [getattr(mlp, "act", None) or mlp.act_fn]
        return [handles[0].register_forward_hook(after)] + ([mlp.register_forward_hook(gate)] if hasattr(mlp, "up_proj") else [])

    handles = [handle for layer, mlp in enumerate(mlps(plain)) for handle in hook(layer, mlp)]
    with torch.no_grad():
        plain(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def recorded(model: Model, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
    with model.record(["mlp.pre", "mlp.post"]) as activations:
        model.forward(tokens)
    return activations


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the largest value: float32 rounding through three layers."""
    assert actual.shape == expected.shape
    assert float((actual.double() - expected.double()).abs().max()) <= tolerance * float(expected.abs().max())


def test_activations_are_those_of_the_activation_function(model: Model, plain: Any) -> None:
    ours, theirs = recorded(model, TOKENS), record_plain(plain, TOKENS)
    assert ours.keys() == theirs.keys() == {(site, layer) for site in ("mlp.pre", "mlp.post") for layer in range(3)}
    for key, expected in theirs.items():
        assert ours[key].dtype == torch.float32
        assert_near(ours[key], expected)


def test_logits(model: Model, plain: Any) -> None:
    with torch.no_grad():
        assert_near(model.logits(TOKENS), plain(input_ids=TOKENS).logits)


def test_padding_on_the_right_changes_nothing(model: Model) -> None:
    padded = torch.cat([TOKENS, torch.zeros(3, 9, dtype=torch.int64)], 1)
    alone, beside = recorded(model, TOKENS), recorded(model, padded)
    for key, expected in alone.items():
        assert_near(beside[key][:, :20], expected)


def test_record_chooses_layers_and_follows_the_last_forward(model: Model) -> None:
    whole = recorded(model, TOKENS)
    with model.record("mlp.post", layers=[2]) as activations:
        model.forward(TOKENS)
        assert activations.keys() == {("mlp.post", 2)}
        assert torch.equal(activations["mlp.post", 2], whole["mlp.post", 2])
        model.forward(TOKENS[:1, :5])
        assert activations["mlp.post", 2].shape == (1, 5, model.config.d_mlp)
        kept = activations["mlp.post", 2]
    model.forward(TOKENS)
    assert activations["mlp.post", 2] is kept


def test_an_edit_of_post_is_a_change_of_w_out(model: Model, plain: Any, family: str) -> None:
    """Doubling neuron 3's activation is doubling its row of W_out."""
    weight = getattr(mlps(plain)[1], OUT[family]).weight.data
    (weight[3] if family == "gpt2" else weight[:, 3]).mul_(2)

    def double(activations: Tensor) -> Tensor:
        return torch.cat([activations[..., :3], 2 * activations[..., 3:4], activations[..., 4:]], -1)

    before = model.logits(TOKENS)
    with model.edit("mlp.post", 1, double):
        edited = model.logits(TOKENS)
    with torch.no_grad():
        assert_near(edited, plain(input_ids=TOKENS).logits)
    assert float((edited - before).abs().max()) > 1e-3
    assert torch.equal(model.logits(TOKENS), before)


def test_an_edit_of_pre_goes_through_the_activation_function(model: Model, plain: Any) -> None:
    with model.edit("mlp.pre", 0, lambda pre: pre - 0.5), model.record(["mlp.pre", "mlp.post"]) as edited:
        model.forward(TOKENS)
    whole = record_plain(plain, TOKENS)
    mlp = mlps(plain)[0]
    act = getattr(mlp, "act", None) or mlp.act_fn
    post = act(whole["mlp.pre", 0] - 0.5)
    if hasattr(mlp, "up_proj"):
        post = post * whole["mlp.post", 0] / act(whole["mlp.pre", 0])
    assert_near(edited["mlp.pre", 0], whole["mlp.pre", 0] - 0.5)
    assert_near(edited["mlp.post", 0], post, 1e-5)


def test_the_order_of_edit_and_record_is_the_order_of_entering(model: Model) -> None:
    whole = recorded(model, TOKENS)
    with model.record("mlp.post") as before, model.edit("mlp.post", 1, torch.zeros_like), model.record("mlp.post") as after:
        model.forward(TOKENS)
    assert torch.equal(before["mlp.post", 1], whole["mlp.post", 1])
    assert not after["mlp.post", 1].any()


def hooks(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def test_nothing_stays_behind_after_an_error(model: Model) -> None:
    before = hooks(model.module)
    with pytest.raises(ZeroDivisionError), model.record(["mlp.pre", "mlp.post"]), model.edit("mlp.pre", 0, lambda x: 1 / 0):
        model.forward(TOKENS)
    assert hooks(model.module) == before


def test_transformers_is_told_of_one_sequence_a_row_by_our_forwards_alone(model: Model) -> None:
    joined = torch.tensor([[0, 1, 2, 0, 1]])  # positions of two sequences in one row
    told: list[Any] = []

    def asked() -> None:
        told.append(masking_utils.find_packed_sequence_indices(joined))

    def ours(activations: Tensor) -> Tensor:
        asked()
        other = Thread(target=asked)  # a model of somebody else's, meanwhile
        other.start()
        other.join()
        raise KeyError

    with model.edit("mlp.post", 0, ours), pytest.raises(KeyError):
        model.forward(tiny.token_rows())
    asked()
    assert told[0] is None
    assert [t.tolist() for t in told[1:]] == [[[0, 0, 0, 1, 1]]] * 2


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(InputError) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


def test_edits_that_are_refused(model: Model) -> None:
    where = f"the edit of mlp.post in layer 1 of {model.label}"
    width = model.config.d_mlp
    with refused(where, f"torch.float32 [3, 20, 1] for torch.float32 [3, 20, {width}]", "the same shape"), model.edit("mlp.post", 1, lambda x: x[..., :1]):
        model.forward(TOKENS)
    with refused(where, "torch.float64"), model.edit("mlp.post", 1, lambda x: x.double()):
        model.forward(TOKENS)
    with refused(where, "returned NoneType"), model.edit("mlp.post", 1, lambda x: None):
        model.forward(TOKENS)
    with refused(where, "changed its argument in place", "activations.clone()"), model.edit("mlp.post", 1, lambda x: x.mul_(2)):
        model.forward(TOKENS)


def test_sites_layers_and_tokens_that_are_refused(model: Model) -> None:
    with refused("no site 'resid'", "mlp.pre, mlp.post"), model.record("resid"):
        pass
    with refused(f"{model.label} has no layer 3", "0 to 2"), model.edit("mlp.post", 3, torch.zeros_like):
        pass
    with refused(f"rows of 65 tokens are longer than the context of {model.label}", "at most 64 tokens"):
        model.forward(torch.zeros(1, 65, dtype=torch.int64))
    with refused(f"token ids 0 to {model.config.d_vocab} do not fit {model.label}, which has {model.config.d_vocab}", "its own tokenizer"):
        model.forward(torch.tensor([[0, model.config.d_vocab]]))
    with refused("int64 [rows, positions], not torch.int64 [4]"):
        model.forward(torch.zeros(4, dtype=torch.int64))
    with refused("not torch.float32"):
        model.logits(torch.zeros(1, 4))


def test_a_model_in_training_mode_runs_without_dropout_and_stays_in_training_mode(tmp_path: Path) -> None:
    """The tiny GPT-2 has dropout 0.1 everywhere."""
    theirs = GPT2LMHeadModel.from_pretrained(tiny.gpt2(tmp_path))
    expected = recorded(load_model(tmp_path), TOKENS)
    theirs.train()
    theirs.transformer.h[1].attn.eval()
    modes = {name: module.training for name, module in theirs.named_modules()}
    model = load_model(theirs)
    for key, value in recorded(model, TOKENS).items():
        assert torch.equal(value, expected[key])
    assert {name: module.training for name, module in theirs.named_modules()} == modes
    assert modes["transformer.drop"]
    assert not modes["transformer.h.1.attn"]


def test_no_gradients(model: Model) -> None:
    assert not model.logits(TOKENS).requires_grad
    assert not any(x.requires_grad for x in recorded(model, TOKENS).values())


RELATIVES = {
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 4}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {}),
}


@pytest.mark.parametrize("kind", RELATIVES)
def test_models_with_llamas_names(kind: str, tmp_path: Path) -> None:
    model_class, config_class, extra = RELATIVES[kind]
    config = config_class(
        vocab_size=tiny.D_VOCAB, max_position_embeddings=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=36, bos_token_id=0, eos_token_id=0, pad_token_id=0, **extra,
    )  # fmt: skip
    model = load_model(tiny.save(model_class, config, tmp_path, seed=1))
    assert isinstance(model, HFModel)
    assert model.config.architecture == "llama"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64).eval()
    ours, theirs = recorded(model, TOKENS), record_plain(plain, TOKENS)
    for key, expected in theirs.items():
        assert_near(ours[key], expected)

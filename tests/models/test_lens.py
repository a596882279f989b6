"""TransformerLens's objects give the plain model's activations and weights, and their own processing is what ours is compared with."""

from __future__ import annotations

import gc
import hashlib
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pyuniversal.errors import InputError
from pyuniversal.models import BridgeModel, HookedModel, Model, load_model
from pyuniversal.tokenizer_identity import tokenizer_hash

TOKENS = tiny.token_rows(3, 20)
LENSES = [
    pytest.param(tiny.bridge, BridgeModel, id="bridge", marks=pytest.mark.lens(4)),
    pytest.param(tiny.hooked, HookedModel, id="hooked", marks=pytest.mark.lens(3)),
]
every_lens = pytest.mark.parametrize(("make", "kind"), LENSES)
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
raw_and_processed = pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])


def recorded(model: Model, tokens: Tensor = TOKENS) -> dict[tuple[str, int], Tensor]:
    with model.record(["mlp.pre", "mlp.post"]) as activations:
        model.forward(tokens)
    return activations


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert actual.shape == expected.shape
    assert float((actual.detach() - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@every_lens
@every_family
@raw_and_processed
def test_the_same_activations(make: Any, kind: type[Model], family: str, processed: bool, tmp_path: Path) -> None:
    plain, lens = load_model(tiny.FAMILIES[family](tmp_path / "seed-a")), load_model(make(tmp_path / "seed-a", processed=processed))
    assert type(lens) is kind
    ours, theirs = recorded(plain), recorded(lens)
    assert ours.keys() == theirs.keys()
    for key, expected in ours.items():
        assert_near(theirs[key], expected)
    # centring the unembedding moves all logits of a token by the same amount
    assert_near(lens.logits(TOKENS).log_softmax(-1), plain.logits(TOKENS).log_softmax(-1), 2e-6)
    with plain.edit("mlp.post", 2, torch.zeros_like), lens.edit("mlp.post", 2, torch.zeros_like):
        assert_near(lens.logits(TOKENS).log_softmax(-1), plain.logits(TOKENS).log_softmax(-1), 2e-6)


@every_lens
@every_family
def test_our_folded_weights_are_their_processed_ones(make: Any, kind: type[Model], family: str, tmp_path: Path) -> None:
    ours = load_model(tiny.FAMILIES[family](tmp_path)).weights()
    theirs = make(tmp_path, processed=True)
    gated = family == "llama"
    for layer in range(3):
        mlp, w = theirs.blocks[layer].mlp, ours.layer(layer)
        for name in ("W_in", "W_out") + (("W_gate",) if gated else ()):
            assert_near(getattr(mlp, name), getattr(w, name))
        for name in ("b_in", "b_out"):
            bias = getattr(mlp, name)
            assert_near(torch.zeros_like(getattr(w, name)) if bias is None else bias, getattr(w, name))
    assert_near(theirs.W_U, ours.W_U)
    assert_near(theirs.b_U, ours.b_U)
    assert_near(theirs.W_E, ours.W_E)


@every_lens
@every_family
@raw_and_processed
def test_weights_of_an_object_raw_or_processed_are_those_of_the_folder(make: Any, kind: type[Model], family: str, processed: bool, tmp_path: Path) -> None:
    plain = load_model(tiny.FAMILIES[family](tmp_path)).weights()
    lens = load_model(make(tmp_path, processed=processed)).weights()
    for layer in range(3):
        for name, expected in vars(plain.layer(layer)).items():
            got = getattr(lens.layer(layer), name)
            assert (got is None) == (expected is None)
            if expected is not None:
                assert_near(got, expected)
    for name in ("W_U", "b_U", "W_E"):
        assert_near(getattr(lens, name), getattr(plain, name))


@every_lens
@every_family
def test_sizes_label_and_tokenizer(make: Any, kind: type[Model], family: str, tmp_path: Path) -> None:
    plain, lens = load_model(tiny.FAMILIES[family](tmp_path / "seed-a")), load_model(make(tmp_path / "seed-a", processed=False))
    ours, theirs = vars(plain.config), vars(lens.config)
    if kind is HookedModel:  # which unties, and has biases of zero where the model has none
        assert theirs["n_params"] == sum(p.numel() for p in lens.module.parameters())
        ours, theirs = ours | {"n_params": 0}, theirs | {"n_params": 0}
    assert theirs == ours
    assert lens.label == ("seed-a" if kind is BridgeModel else "HookedTransformer")
    assert lens.source == ("TransformerBridge" if kind is BridgeModel else "HookedTransformer")
    assert tokenizer_hash(lens.tokenizer) == tokenizer_hash(plain.tokenizer)
    assert load_model(lens.module, label="a/b").label == "a_b"


def count_hooks(theirs: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in theirs.modules())


@every_lens
def test_the_callers_object_stays_as_it_was(make: Any, kind: type[Model], tmp_path: Path) -> None:
    theirs = make(tiny.gpt2(tmp_path), processed=False)
    theirs.train()

    def digest() -> str:
        return hashlib.sha256(b"".join(x.detach().numpy().tobytes() for _, x in sorted(theirs.state_dict().items()))).hexdigest()

    theirs(TOKENS)  # at their first forward some models set up hooks of their own
    before, hooks = digest(), count_hooks(theirs)
    model = load_model(theirs)
    expected = recorded(load_model(tmp_path))  # tiny GPT-2 has dropout: a model left in training mode gives others
    for key, value in recorded(model).items():
        assert_near(value, expected[key])
    weights = model.weights()
    for made in (weights.W_E, weights.W_U, *(x for x in vars(weights.layer(0)).values() if x is not None)):
        made.add_(1)
    assert digest() == before
    assert theirs.training
    assert count_hooks(theirs) == hooks


@every_lens
def test_no_tokenizer(make: Any, kind: type[Model], tmp_path: Path) -> None:
    theirs = make(tiny.gpt2(tmp_path), processed=False)
    theirs.tokenizer = None
    with pytest.raises(InputError, match=r"this \w+ comes without a tokenizer\. Pass tokenizer="):
        load_model(theirs)
    assert len(load_model(theirs, tokenizer=tmp_path).tokenizer) == tiny.D_VOCAB


@pytest.mark.lens(4)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_the_bridge_keeps_no_attention_maps(family: str, tmp_path: Path) -> None:
    """Left alone it keeps one for each layer, through and after the forward: 913 MiB for 12 layers, 16 heads, 4 rows of 512 tokens."""
    theirs = tiny.bridge(tiny.FAMILIES[family](tmp_path), processed=False)
    theirs(TOKENS)
    assert all(block.attn._pattern is not None for block in theirs.blocks), "TransformerLens no longer keeps them: BridgeModel need not drop them"
    model = load_model(theirs)
    maps: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in maps))
        maps.append(weakref.ref(output))

    handles = [block.attn.hook_pattern.register_forward_hook(watch) for block in theirs.blocks]
    model.forward(TOKENS)
    for handle in handles:
        handle.remove()
    assert alive == [0, 0, 0]
    assert all(block.attn._pattern is None for block in theirs.blocks)


@pytest.mark.lens(3)
def test_a_left_padding_tokenizer_masks_nothing(tmp_path: Path) -> None:
    """HookedTransformer takes leading BOS tokens for padding when its tokenizer pads on the left."""
    theirs = tiny.hooked(tiny.gpt2(tmp_path), processed=False)
    tokens = TOKENS.clone()
    tokens[:, 1] = 0
    expected = recorded(load_model(tmp_path), tokens)
    theirs.tokenizer.padding_side = "left"
    model = load_model(theirs)
    for key, value in recorded(model, tokens).items():
        assert_near(value, expected[key])
    assert_near(model.logits(tokens), load_model(tmp_path).logits(tokens), 2e-6)


@pytest.mark.lens(3)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_only": True}, "has no MLPs"),
        ({"act_fn": "solu_ln"}, "has a norm inside its MLPs (solu_ln)"),
        ({"normalization_type": None}, "has normalization_type None"),
    ],
)
def test_hooked_transformers_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        fields = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_mlp": 12, "d_vocab": tiny.D_VOCAB, "act_fn": "gelu", "device": "cpu"} | change
        theirs = HookedTransformer(HookedTransformerConfig(**fields))
    with pytest.raises(InputError) as caught:
        load_model(theirs, tokenizer=tiny.tokenizer(tmp_path))
    assert f"HookedTransformer {words}, which pyuniversal does not know" in str(caught.value)
    assert "gpt2, gpt_neox, llama" in str(caught.value)


@pytest.mark.lens(4)
def test_a_bridge_over_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(vocab_size=tiny.D_VOCAB, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]], max_position_embeddings=64)
    theirs = tiny.bridge(tiny.save(GPTNeoForCausalLM, config, tmp_path, seed=0), processed=False)
    with pytest.raises(InputError, match=r"TransformerBridge is of type 'gpt_neo', which pyuniversal does not know\. Supported types: gpt2, gpt_neox, llama"):
        load_model(theirs)

"""Folders, names and objects become models; what cannot is refused in words that name the culprit and the remedy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, GPTNeoConfig

from pyuniversal.errors import FileError, InputError, PyUniversalError
from pyuniversal.models import HFModel, check_tokenizers, load_config, load_model, load_tokenizer
from pyuniversal.models.base import tapped
from pyuniversal.models.loading import safe_label

TOKENS = tiny.token_rows(2, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.gpt2(tmp_path / "seed-a")


def refusal(kind: type[PyUniversalError], model: Any, *parts: Any, **options: Any) -> None:
    """`load_model` raises exactly `kind`, with every part in its message."""
    with pytest.raises(PyUniversalError) as caught:
        load_model(model, **options)
    assert type(caught.value) is kind, caught.value
    for part in parts:
        assert str(part) in str(caught.value)


class TestFolders:
    def test_sizes(self, tmp_path: Path) -> None:
        """Against the numbers that tiny.py names."""
        expected = {
            "gpt2": ("gpt2", 3, 16, 40, 2, 8, 350, 64, "gelu_new", False, "LN", False),
            "gpt_neox": ("gpt_neox", 3, 16, 40, 2, 8, 377, 64, "gelu", False, "LN", True),
            "llama": ("llama", 3, 16, 36, 4, 4, 350, 64, "silu", True, "RMS", False),
        }
        for family, sizes in expected.items():
            made = tiny.FAMILIES[family](tmp_path / family)
            config = load_model(made).config
            assert tuple(vars(config).values())[:-1] == sizes
            assert config.n_params == sum(x.numel() for x in load_file(made / "model.safetensors").values())
            assert load_config(made) == config

    def test_attributes(self, folder: Path) -> None:
        model = load_model(str(folder) + "/")
        assert isinstance(model, HFModel)
        assert (model.label, model.source) == ("seed-a", str(folder) + "/")
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
        assert model.tokenizer(" the\n").input_ids == [259, 199]
        assert load_model(folder, label="my/model").label == "my_model"
        assert not model.module.training
        assert model.module.config._attn_implementation == "sdpa"

    def test_float16_files_run_in_float32(self, tmp_path: Path) -> None:
        half = load_model(tiny.gpt2(tmp_path, dtype=torch.float16))
        assert half.dtype == torch.float32
        stored = load_file(tmp_path / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
        assert stored.dtype == torch.float16
        assert torch.equal(half.module.transformer.h[0].mlp.c_fc.weight, stored.float())

    def test_shards(self, folder: Path, tmp_path: Path) -> None:
        shards = tmp_path / "shards"
        GPT2LMHeadModel.from_pretrained(folder).save_pretrained(shards, max_shard_size="10KB")
        tiny.tokenizer(shards)
        assert len(list(shards.glob("*.safetensors"))) > 2
        assert torch.equal(load_model(shards).logits(TOKENS), load_model(folder).logits(TOKENS))
        gone = sorted(shards.glob("*.safetensors"))[1]
        gone.unlink()
        refusal(FileError, shards, f"{gone} is missing", "Copy or download the model again")

    def test_dtype_and_device(self, folder: Path) -> None:
        assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert load_model(folder, device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        refusal(InputError, folder, "cannot run in 'int8'", "float64, float32, float16, bfloat16", dtype="int8")
        refusal(InputError, folder, "no device 'gpu'", "auto, cpu or cuda", device="gpu")
        if not torch.cuda.is_available():
            refusal(InputError, folder, "'cuda:3'", "no CUDA GPU", "device='cpu'", device="cuda:3")

    def test_tf32_is_on_while_the_model_runs_and_changes_its_hash(self, folder: Path) -> None:
        refusal(InputError, folder, "tf32 is a way of CUDA GPUs", "on cpu choose float32", dtype="tf32")
        plain, rounded = load_model(folder), load_model(folder)
        rounded.tf32 = True
        assert rounded.weight_hash != plain.weight_hash
        seen = []
        for model, run in itertools.product((plain, rounded), ("forward", "logits")):
            with tapped(model._mlp_output(0), lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32)):
                getattr(model, run)(TOKENS)
        assert seen == [False, False, True, True]

        def fail(_: object) -> None:
            raise KeyError

        with pytest.raises(KeyError), tapped(rounded._mlp_output(0), fail):
            rounded.forward(TOKENS)
        assert not torch.backends.cuda.matmul.allow_tf32


def no_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder / "config.json"


def broken_config(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "gp')
    return folder / "config.json"


def no_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder / "model.safetensors"


def cut(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def empty(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"")
    return folder / "model.safetensors"


def one_weight_short(folder: Path) -> Path:
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, path, {"format": "pt"})
    return folder


def another_shape(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 20}))
    return folder


DAMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no config": (no_config, "is missing: "),
    "broken config": (broken_config, "is not valid JSON"),
    "no weights": (no_weights, "is missing: "),
    "truncated": (cut, "is damaged (Error while deserializing header: incomplete metadata, file not fully covered)"),
    "empty": (empty, "is damaged"),
    "a weight missing": (one_weight_short, "lack 1 of the model's weights (transformer.h.1.mlp.c_fc.weight)"),
    "another shape": (another_shape, "does not load"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage: str, folder: Path) -> None:
    break_it, words = DAMAGES[damage]
    refusal(FileError, folder, break_it(folder), words)


class TestWhatIsNoModel:
    def test_pickled_weights_are_never_read(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 not to be opened")
        refusal(InputError, folder, "only pickled weights (pytorch_model.bin in", folder, "loading them runs code", "save_pretrained(FOLDER)")

    def test_an_unknown_architecture(self, folder: Path) -> None:
        GPTNeoConfig().save_pretrained(folder)
        refusal(InputError, folder, f"{folder} is of type 'gpt_neo'", "Supported types: gpt2, gpt_neox, llama, mistral, qwen2, qwen3, smollm3.")

    def test_paths_that_are_not_there(self, tmp_path: Path) -> None:
        want = "Pass a folder that holds config.json and model.safetensors, or the name of a model on the Hugging Face hub."
        for path in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing", "~/nothing", "three/part/path"):
            refusal(InputError, path, f"there is no folder {path}", want)
        file = tmp_path / "model.safetensors"
        file.touch()
        refusal(InputError, file, f"{file} is a file, not a model", want)

    def test_revision_of_a_folder(self, folder: Path) -> None:
        refusal(InputError, folder, "is a local folder, which has no revision 'step1000'", "Leave revision out", revision="step1000")

    def test_other_objects(self) -> None:
        refusal(InputError, torch.nn.Linear(2, 2), "a Linear is no model", "a transformers causal language model, a TransformerBridge or a HookedTransformer")
        refusal(InputError, 5, "a int is no model")


class TestObjects:
    def test_a_transformers_model(self, folder: Path) -> None:
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16)
        model = load_model(theirs, device="auto", dtype="float32")
        assert model.module is theirs
        assert load_model(model) is model
        assert load_config(theirs) == load_config(model) == load_config(folder)
        assert (model.label, model.source, model.dtype) == ("seed-a", "GPT2LMHeadModel", torch.bfloat16)
        assert len(model.tokenizer) == tiny.D_VOCAB

    def test_one_that_was_never_in_a_folder(self, folder: Path) -> None:
        theirs = GPT2LMHeadModel(AutoModelForCausalLM.from_pretrained(folder).config)
        theirs.config.name_or_path = theirs.name_or_path = ""
        refusal(InputError, theirs, "this GPT2LMHeadModel comes without a tokenizer", "Pass tokenizer=")
        assert load_model(theirs, tokenizer=tiny.tokenizer_object()).label == "GPT2LMHeadModel"

    def test_a_base_model(self, folder: Path) -> None:
        refusal(
            InputError, AutoModelForCausalLM.from_pretrained(folder).transformer, "GPT2Model, which has no unembedding", "Load it with AutoModelForCausalLM"
        )


class TestTokenizers:
    def test_absent(self, folder: Path, tmp_path: Path) -> None:
        """transformers would make one with an empty vocabulary."""
        elsewhere = tiny.tokenizer(tmp_path / "tokenizer")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        refusal(InputError, folder, f"{folder} has no tokenizer", "tokenizer.json", "Pass a folder that holds one")
        assert len(load_model(folder, tokenizer=elsewhere).tokenizer) == tiny.D_VOCAB
        assert len(load_tokenizer(str(elsewhere))) == tiny.D_VOCAB

    def test_damaged(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text('{"version": ')
        refusal(InputError, folder, f"the tokenizer in {folder} does not load")

    def test_no_tokenizer(self, folder: Path) -> None:
        refusal(InputError, folder, "a dict is no tokenizer", tokenizer={"the": 1})

    def test_of_several_models(self, tmp_path: Path) -> None:
        a, b = load_model(tiny.gpt2(tmp_path / "a")), load_model(tiny.llama(tmp_path / "b", seed=3))
        other = load_model(tiny.gpt2(tmp_path / "other", words=tiny.WORDS[::-1]))
        check_tokenizers([])
        check_tokenizers([a])
        check_tokenizers([a, b, a])
        with pytest.raises(InputError) as caught:
            check_tokenizers([a, b, other])
        assert str(caught.value) == (
            "a and other have different tokenizers, so their tokens cannot be compared one by one (vocabulary: 'Ġa' is 262 in the first, 264 in the second; "
            "the first is a). Compare models that share a tokenizer."
        )


def test_labels_are_file_names() -> None:
    assert safe_label("EleutherAI/pythia-160m") == "EleutherAI_pythia-160m"
    assert safe_label("../ä b:c\n") == "___b_c_"
    assert safe_label("..") == "model"

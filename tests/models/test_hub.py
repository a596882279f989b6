"""Names become folders by way of the Hugging Face hub or its cache, quickly, or are refused in words that say what to do."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from transformers import GPTNeoConfig

from pyuniversal.errors import InputError
from pyuniversal.models import ALIASES, load_config, load_model, load_tokenizer

TOKENS = tiny.token_rows(2, 12)


def refusal(model: str, *parts: str, **options: Any) -> None:
    """`load_model` raises InputError with every part in its message."""
    with pytest.raises(InputError) as caught:
        load_model(model, **options)
    for part in parts:
        assert part in str(caught.value)


class TestNames:
    """The hub's client is stood in for: what counts is what is asked of it, and what its answers and failures become."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
        """Repositories by (name, revision) as folders; a fetch copies the files that match, as a snapshot does."""
        hub = SimpleNamespace(repositories={}, asked=[], failure=None, offers=[])

        def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            hub.asked.append((name, revision, tuple(allow_patterns)))
            if hub.failure is not None:
                raise hub.failure
            source, target = hub.repositories[name, revision], tmp_path / "cache" / str(revision) / name
            target.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                if file.name in allow_patterns:
                    shutil.copy(file, target)
            return str(target)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", lambda self, name, **filters: iter(hub.offers))
        return hub

    def test_a_name_of_the_study(self, hub: SimpleNamespace, tmp_path: Path) -> None:
        hub.repositories["stanford-crfm/alias-gpt2-small-x21", None] = folder = tiny.gpt2(tmp_path / "repository")
        (folder / "pytorch_model.bin").touch()
        (folder / "training_state.json").touch()
        model = load_model("stanford-gpt2-small-a")
        assert (model.label, model.source) == ("stanford-gpt2-small-a", "stanford-gpt2-small-a")
        assert torch.equal(model.logits(TOKENS), load_model(folder).logits(TOKENS))
        held = {file.name for file in (tmp_path / "cache/None/stanford-crfm/alias-gpt2-small-x21").iterdir()}
        assert held == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

    def test_a_name_of_the_hub(self, hub: SimpleNamespace, tmp_path: Path) -> None:
        hub.repositories["someone/model", "step1"] = tiny.llama(tmp_path / "repository")
        model = load_model("someone/model", revision="step1")
        assert (model.label, model.config.architecture) == ("someone_model", "llama")
        assert {revision for _, revision, _ in hub.asked} == {"step1"}
        hub.asked.clear()
        assert load_config("someone/model", revision="step1") == model.config
        assert all("model.safetensors" not in patterns for _, _, patterns in hub.asked)

    def test_a_folder_comes_before_a_name(self, hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny.gpt2(tmp_path / "pythia-160m")
        monkeypatch.chdir(tmp_path)
        assert load_model("pythia-160m").config.architecture == "gpt2"
        assert not hub.asked

    def test_an_unknown_architecture_costs_no_weights(self, hub: SimpleNamespace, tmp_path: Path) -> None:
        hub.repositories["someone/model", None] = folder = tiny.gpt2(tmp_path / "repository")
        GPTNeoConfig().save_pretrained(folder)
        refusal("someone/model", "someone/model is of type 'gpt_neo'")
        assert len(hub.asked) == 1

    def test_the_hubs_conversion_of_pickled_weights(self, hub: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Stanford's GPT-2s: a pickle on the main branch, safetensors in a pull request of the hub's bot."""
        pickled, converted = tiny.gpt2(tmp_path / "pickled"), tiny.gpt2(tmp_path / "converted")
        (pickled / "model.safetensors").unlink()
        hub.repositories |= {("someone/model", None): pickled, ("someone/model", "refs/pr/4"): converted}
        refusal("someone/model", "someone/model has no safetensors on the Hugging Face hub", "loading them runs code", "save_pretrained(FOLDER)")
        hub.offers = [
            SimpleNamespace(title="Adding ONNX", git_reference="refs/pr/3"),
            SimpleNamespace(title="Adding `safetensors` variant of this model", git_reference="refs/pr/4"),
        ]
        assert torch.equal(load_model("someone/model").logits(TOKENS), load_model(converted).logits(TOKENS))
        assert "revision refs/pr/4" in caplog.text

    def test_no_hub(self, hub: SimpleNamespace) -> None:
        hub.failure = OSError("Name or service not known\nmore")
        refusal(
            "stanford-gpt2-small-b", "'stanford-gpt2-small-b' is neither a local folder nor in the Hugging Face cache",
            "as 'stanford-crfm/battlestar-gpt2-small-x49'", "the hub cannot be reached: Name or service not known.", "Pass a folder that holds config.json",
            "`hf download stanford-crfm/battlestar-gpt2-small-x49 --local-dir FOLDER`",
        )  # fmt: skip
        refusal("pythia-160m-sed1", "(did you mean pythia-160m-seed1 or ")
        with pytest.raises(InputError, match="'no-tokenizer' is neither a local folder nor"):
            load_tokenizer("no-tokenizer")

    def test_answers_of_the_hub(self, hub: SimpleNamespace) -> None:
        def failing(kind: Any) -> Any:
            return kind.__new__(kind)  # these errors want a response to be made of

        errors = huggingface_hub.errors
        hub.failure = failing(errors.RepositoryNotFoundError)
        refusal("someone/modle", "neither a local folder 'someone/modle' nor a model 'someone/modle' on the Hugging Face hub", "check the name")
        hub.failure = failing(errors.RevisionNotFoundError)
        refusal("someone/model", "someone/model has no revision 'step7'", "Leave revision out", revision="step7")
        hub.failure = failing(errors.GatedRepoError)
        refusal("someone/model", "someone/model needs an agreement", "`hf auth login`")


def test_an_unreachable_hub_is_given_up_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client against a closed port. transformers' own way asks for every file and retries for 24 s."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    refusal("someone/no-such-model", "the hub cannot be reached")
    assert time.monotonic() - start < 5


def test_the_cache_serves_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, offline, over a cache laid out as it lays it out."""
    store, commit = tmp_path / "models--someone--model", "0" * 40
    (store / "refs").mkdir(parents=True)
    (store / "refs/main").write_text(commit)
    tiny.neox(store / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_model("someone/model").config.architecture == "gpt_neox"
    (store / "snapshots" / commit / "model.safetensors").unlink()
    refusal("someone/model", "someone/model has no safetensors in the Hugging Face cache, and the hub could not be asked", "`hf download someone/model")


@pytest.mark.lens(3)
def test_aliases_are_transformerlens_s() -> None:
    from transformer_lens.supported_models import MODEL_ALIASES

    for alias, name in ALIASES.items():
        assert alias in MODEL_ALIASES[name]

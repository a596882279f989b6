"""From a name or a folder to a folder with a configuration and safetensors that can be loaded, or to an error that says what is missing."""

from __future__ import annotations

import difflib
import logging
import math
import os
import reprlib
from pathlib import Path
from typing import Any

from ..errors import FileError, InputError
from ..files import check_fields, read_json, safe_name
from .architectures import ARCHITECTURES, supported
from .names import ALIASES

logger = logging.getLogger(__name__)

SMALL_FILES = [
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
]  # fmt: skip
# Far above any model that these architectures have been trained to.
LARGEST = {
    "num_hidden_layers": 1000, "hidden_size": 1 << 17, "num_attention_heads": 4096, "vocab_size": 1 << 24, "max_position_embeddings": 1 << 24,
    "num_key_value_heads": 4096, "intermediate_size": 1 << 20, "n_inner": 1 << 20, "head_dim": 1 << 14,
}  # fmt: skip
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    "Pickled weights are not loaded, because loading them runs code. If you trust them, convert them once: "
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER), the tokenizer likewise, and pass FOLDER"
)


def find_folder(model: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder for a model: itself where it is one, else what the Hugging Face hub or cache has under the name, with its weights.

    Raises:
        InputError: no such folder or name, or nothing reachable that has it; only pickled weights; an unknown architecture.
        FileError: a file of the folder is missing or damaged; names it.
    """
    folder = find_config(model, revision=revision, trust_remote_code=trust_remote_code)
    if not Path(model).expanduser().is_dir():
        folder = _with_weights(os.fspath(model), folder, revision, trust_remote_code)
    check_weights(folder, os.fspath(model))
    return folder


def find_config(model: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """As `find_folder`, without weights: the folder may hold no more than configuration and tokenizer."""
    source, path = os.fspath(model), Path(model).expanduser()
    want = "Pass a folder that holds config.json and model.safetensors, or the name of a model on the Hugging Face hub."
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{source} is a local folder, which has no revision {revision!r}. Leave revision out, or pass the name of a model on the hub.")
        folder = path
    elif path.exists():
        raise InputError(f"{source} is a file, not a model. {want}")
    elif not isinstance(model, str) or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise InputError(f"there is no folder {source}. {want}")
    else:
        folder = download_small_files(source, revision=revision, trust_remote_code=trust_remote_code)
    check_config(folder, source)
    return folder


def check_config(folder: Path, source: str) -> dict[str, Any]:
    """Read config.json and check that its model_type is supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileError(f"{path} is missing: {source} is not a Hugging Face model folder. Save the model with save_pretrained(FOLDER) and pass FOLDER.")
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InputError(f"{source} is of type {reprlib.repr(kind)} (in {path}), which pyuniversal does not know. Supported types: {supported()}.")
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{source} is quantised ({path} has a quantization_config), so its weights are not numbers as they stand. Use the model it was made from."
        )
    if (folder / "adapter_config.json").exists():  # with peft installed transformers would follow it, to a model elsewhere
        raise InputError(f"{folder} holds an adapter of another model (adapter_config.json). Merge the two, save them with save_pretrained, and pass that.")
    return dict(config)


def check_sizes(config: Any, path: Path) -> None:
    """Check the sizes in a transformers configuration, before a model is made of them: a wrong digit must not cost all of the memory.

    Raises:
        FileError: a size is no number, or beyond that of any model there is.
    """
    for name, most in LARGEST.items():
        size = getattr(config, name, None)
        if not ((type(size) is int and 1 <= size <= most) or (size is None and name in ("num_key_value_heads", "intermediate_size", "n_inner", "head_dim"))):
            raise FileError(f"{path} is damaged: its {name} is {reprlib.repr(size)}, not a number from 1 to {most:,}. Copy or download the model again.")


def check_weights(folder: Path, source: str) -> None:
    """Check that all safetensors files are there and whole (their headers account for every byte)."""
    from safetensors import SafetensorError, safe_open

    names = _weight_files(folder)
    for name in names:
        path = folder / name
        if not path.is_file():
            pickled = next((file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
            if pickled and names == ["model.safetensors"]:
                raise InputError(f"{source} has only pickled weights ({pickled} in {folder}). {CONVERT}.")
            raise FileError(f"{path} is missing: {source} has a configuration and no weights. Copy or download the model again.")
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} is damaged ({error}). Copy or download the model again.") from error


def weight_elements(folder: Path) -> int:
    """How many numbers the safetensors of a folder hold, from their headers."""
    from safetensors import safe_open

    elements = 0
    for name in _weight_files(folder):
        with safe_open(folder / name, "pt") as file:
            elements += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (no mapping)
    return elements


def download_small_files(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The snapshot folder of a hub model with its configuration and tokenizer, from the hub or from the cache where the hub cannot be reached.

    Raises:
        InputError: neither has the name.
    """
    return _fetch(source, [*SMALL_FILES, "*.py"] if trust_remote_code else SMALL_FILES, revision)


def _with_weights(source: str, folder: Path, revision: str | None, trust_remote_code: bool) -> Path:
    """The snapshot folder of a hub model with its safetensors; `folder` is the one that `download_small_files` gave."""
    weights = _weight_files(folder)
    if not all((folder / file).is_file() for file in weights):
        folder = _fetch(source, weights, revision)
    if revision is None and not (folder / weights[0]).is_file():
        name = ALIASES.get(source, source)
        converted = _conversion(name)
        if converted is None:
            raise InputError(f"{name} has no safetensors on the Hugging Face hub. {CONVERT}.")
        logger.warning("%s has no safetensors on its main branch: taking the hub's own conversion, revision %s", name, converted)
        folder = download_small_files(source, revision=converted, trust_remote_code=trust_remote_code)
        return _with_weights(source, folder, converted, trust_remote_code)
    return folder


def _fetch(source: str, patterns: list[str], revision: str | None) -> Path:
    # snapshot_download asks the hub once and then falls back on the cache; from_pretrained asks for each file and retries for 24 s
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = ALIASES.get(source, source)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(f"{name} needs an agreement on the Hugging Face hub: accept it there and log in with `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r} on the Hugging Face hub. Leave revision out for its main branch.") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is neither a local folder {source!r} nor a model {name!r} on the Hugging Face hub{_similar(source)}. "
            "Pass a folder that holds config.json and model.safetensors, or check the name; a private model needs `hf auth login`."
        ) from error
    except Exception as error:  # the client lets errors of its HTTP library through, another library in each of its major versions
        raise InputError(
            f"{source!r} is neither a local folder nor in the Hugging Face cache as {name!r}, and the hub cannot be reached{_similar(source)}: "
            f"{_first_line(error)}. Pass a folder that holds config.json and model.safetensors, or run `hf download {name} --local-dir FOLDER` "
            "where there is a network and copy FOLDER."
        ) from error


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    files = check_fields(read_json(index), {"weight_map": "an object"}, index)["weight_map"].values()
    names = sorted({safe_name(name, index) for name in files})
    if not names or not all(name.endswith(".safetensors") for name in names):  # transformers opens what is called otherwise with torch.load
        raise FileError(f"{index} is damaged, or names files that are no safetensors. Copy or download the model again.")
    return names


def _conversion(name: str) -> str | None:
    """The revision in which the hub's conversion bot offers safetensors (Stanford's GPT-2s have no others), None where there is none."""
    from huggingface_hub import HfApi

    try:
        offers = HfApi().get_repo_discussions(name, author="SFconvertbot", discussion_type="pull_request")
        return next((offer.git_reference for offer in offers if "safetensors" in offer.title.lower()), None)
    except Exception as error:  # as in _fetch
        raise InputError(
            f"{name} has no safetensors in the Hugging Face cache, and the hub could not be asked for them: {_first_line(error)}. "
            f"Run `hf download {name} --local-dir FOLDER` where there is a network, copy FOLDER and pass it."
        ) from error


def _similar(source: str) -> str:
    close = difflib.get_close_matches(source, ALIASES, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close and source not in ALIASES else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

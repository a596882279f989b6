"""`load_model`: whatever the caller has becomes a checked `Model`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import FileError, InputError, PyUniversalError
from ..files import sha256, unsafe
from .base import Model, ModelConfig
from .hf import HFModel, find_architecture, read_config
from .hub import check_sizes, find_config, find_folder, weight_elements
from .lens import BridgeModel, HookedModel
from .selfcheck import TOLERANCE, check_model
from .tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_LABEL = 100
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE} | {"tf32": torch.float32}


def load_model(
    model: str | os.PathLike[str] | object,
    *,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    label: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a model, or wrap one that is loaded, and check that its neurons are where they should be.

    Args:
        model: a local Hugging Face folder; a name on the Hugging Face hub or one of the study's names ("stanford-gpt2-small-a", "pythia-160m-seed1"); or an
            object: a transformers causal language model, a TransformerBridge, a HookedTransformer; a `Model` comes back as it is. Folders come before names,
            and only safetensors are loaded.
        tokenizer: an object, folder or name; by default the one beside the model or in the object.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is "cuda" where there is one. An object stays on its own device and in its own dtype.
        dtype: "float32", "float64", "bfloat16" or "float16", whatever the files hold; or "tf32": float32, its products on a CUDA GPU of TF32 operands.
        label: how files and tables name the model; by default the folder's name, or the name with "/" as "_".
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the model or tokenizer.

    Raises:
        InputError: no such model, tokenizer, device or dtype; an unknown architecture; pickled weights only; a model that fails its self-check.
        FileError: a file of the folder is missing or damaged.
        ActivationError: the model computes NaN or Inf on ordinary tokens.
    """
    loaded: Model
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike):
        loaded = _from_folder(model, tokenizer, find_device(device), dtype, label, revision, trust_remote_code)
    else:
        loaded = _from_object(model, tokenizer, label, trust_remote_code)
    check_model(loaded)
    return loaded


def load_config(model: str | os.PathLike[str] | object, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelConfig:
    """The sizes of a model. Of a folder or name from its configuration alone: no weights are read or downloaded. Arguments as for `load_model`.

    Raises:
        InputError: no such model, or an unknown architecture.
        FileError: config.json is missing or damaged.
    """
    if not isinstance(model, str | os.PathLike):
        return load_model(model).config
    folder = find_config(model, revision=revision, trust_remote_code=trust_remote_code)
    return _sizes(folder, os.fspath(model), trust_remote_code)[1]


def _sizes(folder: Path, source: str, trust_remote_code: bool) -> tuple[Any, ModelConfig]:
    """transformers' configuration of a folder, and ours, read off a model without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _readable(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        check_sizes(config, folder / "config.json")
        # named, because a configuration may name a kernel on the hub, which would be fetched and run
        module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=trust_remote_code)
        return config, read_config(module, find_architecture(config, source))


def _from_folder(
    model: str | os.PathLike[str],
    tokenizer: Any,
    device: torch.device,
    dtype: str | torch.dtype,
    label: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> HFModel:
    from transformers import AutoModelForCausalLM

    weights = _dtype(dtype)
    if (tf32 := dtype == "tf32") and device.type != "cuda":
        raise InputError(f"tf32 is a way of CUDA GPUs to multiply; on {device.type} choose float32.")

    source = os.fspath(model)
    folder = find_folder(model, revision=revision, trust_remote_code=trust_remote_code)
    config, sizes = _sizes(folder, source, trust_remote_code)
    if sizes.n_params > 2 * (held := weight_elements(folder)):  # before transformers makes room for what is missing
        raise FileError(
            f"the safetensors in {folder} hold {held:,} numbers, and config.json describes a model of {sizes.n_params:,}. Copy or download the model again."
        )
    tokenizer = load_tokenizer(tokenizer if tokenizer is not None else folder, source=source, trust_remote_code=trust_remote_code)
    with _readable(folder), _no_progress_bars():
        module, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=weights,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise FileError(f"the safetensors in {folder} lack {len(report['missing_keys'])} of the model's weights ({some}). Copy or download the model again.")
    name = label if label is not None else Path(source).expanduser().resolve().name if Path(source).expanduser().is_dir() else source
    loaded = HFModel(module.to(device).eval(), label=safe_label(name), source=source, tokenizer=tokenizer)
    loaded.tf32 = tf32
    return loaded


def _from_object(model: object, tokenizer: Any, label: str | None, trust_remote_code: bool) -> Model:
    kinds = {kind.__name__ for kind in type(model).__mro__}
    kind = next((wrapper for name, wrapper in WRAPPERS.items() if name in kinds), None)
    if kind is None:
        raise InputError(
            f"a {type(model).__name__} is no model. Pass a name, a folder, a transformers causal language model, a TransformerBridge or a HookedTransformer."
        )
    source = type(model).__name__
    # where a transformers model was loaded from, which is where its tokenizer is; a lens object carries its own
    origin = str((getattr(model, "name_or_path", "") if kind is HFModel else getattr(getattr(model, "cfg", None), "model_name", "")) or "")
    if kind is HookedModel and origin == "custom":  # its word for a model made from a bare configuration
        origin = ""
    found = next((x for x in (tokenizer, getattr(model, "tokenizer", None), origin if kind is HFModel and origin else None) if x is not None), None)
    if found is None:
        raise InputError(f"this {source} comes without a tokenizer. Pass tokenizer=, an object or a folder.")
    name = label if label is not None else (Path(origin).name if Path(origin).is_dir() else origin) or source
    found = load_tokenizer(found, source=f"this {source}", trust_remote_code=trust_remote_code)
    wrapped: Model = kind(model, label=safe_label(name), source=source, tokenizer=found)
    return wrapped


WRAPPERS: dict[str, Any] = {"TransformerBridge": BridgeModel, "HookedTransformer": HookedModel, "PreTrainedModel": HFModel}  # class name -> how it is wrapped


def safe_label(name: str) -> str:
    """`name` as a file name on every system: whatever is no letter, digit, dot, dash or underscore becomes "_"; a long one ends in a hash of the whole."""
    label = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".-").rstrip(".") or "model"
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 9]}-{sha256(name)[:8]}"
    return f"_{label}" if unsafe(label) else label  # con, nul, aux.v2: devices on Windows


def find_device(device: str | torch.device) -> torch.device:
    """The device that a word means; "auto" is "cuda" where there is one.

    Raises:
        InputError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"there is no device {device!r}. Choose auto, cpu or cuda.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} was asked for and PyTorch sees no CUDA GPU. Use device='cpu' or 'auto', or install PyTorch with CUDA.")
    return chosen


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    chosen = DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise InputError(f"models cannot run in {dtype!r}. Choose from {', '.join(DTYPES)}.")
    return chosen


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what transformers says about a folder's files into an error that names the folder."""
    try:
        yield
    except PyUniversalError:
        raise
    except Exception as error:  # on a damaged configuration transformers and torch raise anything
        raise FileError(f"the model in {folder} does not load: {error}. Copy or download it again.") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' own bars, which last a moment and litter a log; the setting comes back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

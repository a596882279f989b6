"""Tokenizers of models: loaded from a folder or name, and compared, because models are compared token by token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, InputError
from ..files import reading
from ..tokenizer_identity import describe_difference, tokenizer_hash
from .base import Model
from .hub import download_small_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
REMEDY = "Pass a folder that holds one (tokenizer.json), the name of a model, or an object from AutoTokenizer.from_pretrained"


def load_tokenizer(tokenizer: Any, *, source: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or of a name (as for `load_model`); an object is returned as it is.

    Args:
        tokenizer: the folder, name or object.
        source: what it belongs to, for messages.
        trust_remote_code: run Python code that comes with it.

    Raises:
        InputError: there is none, or it does not load.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if not isinstance(tokenizer, str | os.PathLike):
        raise InputError(f"a {type(tokenizer).__name__} is no tokenizer. {REMEDY}.")
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir():
        folder = download_small_files(os.fspath(tokenizer), trust_remote_code=trust_remote_code)
    # without any of these files transformers makes a GPT-2 tokenizer with an empty vocabulary
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{source or tokenizer} has no tokenizer: {folder} holds none of {', '.join(TOKENIZER_FILES)}. {REMEDY}.")
    try:
        with reading(folder, REMEDY):
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
            loaded.encode("a\n", add_special_tokens=False)  # much that is wrong shows when it is used
    except FileError as error:
        said = str(error.__cause__).strip().partition("\n")[0]
        raise InputError(f"the tokenizer in {folder} does not load ({said}). {REMEDY}.") from error.__cause__
    return loaded


def check_tokenizers(models: Sequence[Model]) -> None:
    """Check that all models tokenise alike.

    Raises:
        InputError: two do not; names both and says in what they differ.
    """
    if not models:
        return
    first = models[0]
    expected = tokenizer_hash(first.tokenizer)
    for other in models[1:]:
        if tokenizer_hash(other.tokenizer) != expected:
            raise InputError(
                f"{first.label} and {other.label} have different tokenizers, so their tokens cannot be compared one by one "
                f"({describe_difference(first.tokenizer, other.tokenizer)}; the first is {first.label}). Compare models that share a tokenizer."
            )

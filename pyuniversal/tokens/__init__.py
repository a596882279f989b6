"""Any corpus -> memory-mapped rows of token ids, with the document and the subset of each."""

from ..tokenizer_identity import tokenizer_hash
from .folder import Tokens, load_tokens
from .write import tokenize

__all__ = ["Tokens", "load_tokens", "tokenize", "tokenizer_hash"]

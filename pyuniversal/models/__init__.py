"""One thin layer over language models (plain transformers, the fast path; TransformerLens's bridge; HookedTransformer), all seen through their MLPs."""

from __future__ import annotations

from .base import SITES, Model, ModelConfig
from .folding import LayerWeights, Weights
from .hf import HFModel
from .lens import BridgeModel, HookedModel
from .loading import find_device, load_config, load_model
from .names import ALIASES
from .tokenizers import check_tokenizers, load_tokenizer

__all__ = [
    "ALIASES",
    "SITES",
    "BridgeModel",
    "HFModel",
    "HookedModel",
    "LayerWeights",
    "Model",
    "ModelConfig",
    "Weights",
    "check_tokenizers",
    "find_device",
    "load_config",
    "load_model",
    "load_tokenizer",
]

"""Where transformers keeps the parts of an MLP: one literal row for each architecture. Adding an architecture is adding a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """Names of modules: `layers` and `final_norm` inside `model.base_model`, `norm` and `mlp` inside a layer, the projections inside the MLP."""

    name: str  # what ModelConfig.architecture says
    layers: str
    final_norm: str
    norm: str  # the one that the MLP reads through
    w_in: str
    w_out: str
    normalization: Literal["LN", "RMS"]
    w_gate: str | None = None  # the gate's projection: its output, not w_in's, goes through the activation function
    mlp: str = "mlp"


GPT2 = Architecture("gpt2", layers="h", final_norm="ln_f", norm="ln_2", w_in="c_fc", w_out="c_proj", normalization="LN")
GPT_NEOX = Architecture(
    "gpt_neox", layers="layers", final_norm="final_layer_norm", norm="post_attention_layernorm", w_in="dense_h_to_4h", w_out="dense_4h_to_h", normalization="LN"
)
LLAMA = Architecture(
    "llama", layers="layers", final_norm="norm", norm="post_attention_layernorm", w_in="up_proj", w_out="down_proj", normalization="RMS", w_gate="gate_proj"
)

# config.model_type -> its row. Of the many models with Llama's module names only those are here whose norms, residual stream and logits are Llama's too.
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
}


def supported() -> str:
    """The supported values of model_type, for messages."""
    return ", ".join(ARCHITECTURES)

"""TransformerLens objects: TransformerBridge (4.x) and HookedTransformer (3.x). TransformerLens is never imported here: whoever has an object has it loaded."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .architectures import ARCHITECTURES, supported
from .base import Model, ModelConfig, Tap
from .folding import RawEnds, RawLayer
from .hf import find_architecture, norm_weights, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOOKS = {"mlp.pre": "hook_pre", "mlp.post": "hook_post"}


class LensModel(Model):
    """What the two have in common: blocks[l].mlp with hook points (modules that pass their input on) and weights as [inputs, outputs]."""

    module: Any

    def _tap(self, site: str, layer: int) -> Tap:
        return Tap(getattr(self.module.blocks[layer].mlp, HOOKS[site]), of_input=False)

    def _ends(self, norm: tuple[Tensor | None, Tensor | None]) -> RawEnds:
        return RawEnds(self.module.W_E.detach(), self.module.W_U.detach(), self.module.b_U.detach(), *norm)


class BridgeModel(LensModel):
    """A TransformerBridge, with its weights as they are or processed (compatibility mode)."""

    def __init__(self, bridge: Any, *, label: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a bridge over a transformers model of a supported architecture.

        Raises:
            InputError: another architecture.
        """
        inner: Any = getattr(bridge, "original_model", None)
        architecture = find_architecture(getattr(inner, "config", None), source)
        with torch.device("meta"):
            blank = type(inner)(inner.config)  # the bridge holds attention weights twice, joint and split: count those of the model itself
        super().__init__(bridge, label=label, source=source, config=read_config(blank, architecture), tokenizer=tokenizer)

    def _roots(self) -> tuple[nn.Module, ...]:
        # the transformers model is no child of its bridge, and holds dropouts that no component of the bridge wraps
        return (self.module, self.module.original_model)

    def _run(self, tokens: Tensor, *, logits: bool) -> Tensor | None:
        # The bridge keeps every layer's attention map (913 MiB for 12 layers, 16 heads, 4 rows of 512); dropping each at once keeps the peak at one.
        # stop_at_layer=n_layers returns logits in 4.3; the base model below is the bridge's own, with all of its hooks.
        with ExitStack() as stack:
            for block in self.module.blocks:
                stack.callback(block.attn.register_forward_hook(_drop_pattern).remove)
            if logits:
                result: Tensor = self.module.original_model(input_ids=tokens, use_cache=False).logits
                return result
            self.module.original_model.base_model(input_ids=tokens, use_cache=False)
        return None

    def _mlp_output(self, layer: int) -> Tap:
        return Tap(self.module.blocks[layer].mlp.hook_out, of_input=False)

    def _raw_layer(self, layer: int) -> RawLayer:
        block = self.module.blocks[layer]
        mlp = block.mlp
        gated = self.config.gated
        # mlp.b_in and its like are aliases made once and stale after weights are processed: go to the projections
        return RawLayer(
            w_in=mlp.W_in.detach(),
            b_in=_bias(getattr(mlp, "in")),
            w_gate=mlp.W_gate.detach() if gated else None,
            b_gate=_bias(mlp.gate) if gated else None,
            w_out=mlp.W_out.detach(),
            b_out=_bias(mlp.out),
            norm_weight=norm_weights(block.ln2)[0],
            norm_bias=norm_weights(block.ln2)[1],
        )

    def _raw_ends(self) -> RawEnds:
        return self._ends(norm_weights(self.module.ln_final))


class HookedModel(LensModel):
    """A HookedTransformer, with its weights as they are or processed (as from_pretrained does)."""

    def __init__(self, hooked: Any, *, label: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a HookedTransformer with plain MLPs.

        Raises:
            InputError: attention only, mixture of experts, an MLP with a norm inside, no layer norm at all.
        """
        cfg = hooked.cfg
        problem = (
            "has no MLPs" if cfg.attn_only
            else "is a mixture of experts" if cfg.num_experts
            else f"has a norm inside its MLPs ({cfg.act_fn})" if str(cfg.act_fn).endswith("_ln")
            else f"has normalization_type {cfg.normalization_type!r}" if cfg.normalization_type not in ("LN", "LNPre", "RMS", "RMSPre")
            else None
        )  # fmt: skip
        if problem:
            raise InputError(f"{source} {problem}, which pyuniversal does not know. Supported are models like: {supported()}.")
        super().__init__(hooked, label=label, source=source, config=_hooked_config(hooked), tokenizer=tokenizer)

    def _run(self, tokens: Tensor, *, logits: bool) -> Tensor | None:
        # padding_side: with "left", the tokenizer's business, it would mask leading BOS tokens
        if logits:
            result: Tensor = self.module(tokens, return_type="logits", padding_side="right")
            return result
        self.module(tokens, return_type=None, padding_side="right")
        return None

    def _mlp_output(self, layer: int) -> Tap:
        return Tap(self.module.blocks[layer].hook_mlp_out, of_input=False)

    def _raw_layer(self, layer: int) -> RawLayer:
        block = self.module.blocks[layer]
        mlp = block.mlp
        gated = self.config.gated
        return RawLayer(
            w_in=mlp.W_in.detach(),
            b_in=mlp.b_in.detach(),
            w_gate=mlp.W_gate.detach() if gated else None,
            b_gate=None,  # HookedTransformer's gates have none
            w_out=mlp.W_out.detach(),
            b_out=mlp.b_out.detach(),
            norm_weight=_part(block.ln2, "w"),
            norm_bias=_part(block.ln2, "b"),
        )

    def _raw_ends(self) -> RawEnds:
        norm = self.module.ln_final
        return self._ends((_part(norm, "w"), _part(norm, "b")))


def _hooked_config(hooked: Any) -> ModelConfig:
    cfg = hooked.cfg
    normalization: Literal["LN", "RMS"] = "RMS" if cfg.normalization_type.startswith("RMS") else "LN"
    return ModelConfig(
        architecture=_hooked_architecture(cfg),
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        d_mlp=cfg.d_mlp,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab_out,
        n_ctx=cfg.n_ctx,
        act_fn=str(cfg.act_fn),
        gated=bool(cfg.gated_mlp),
        normalization=normalization,
        parallel=bool(cfg.parallel_attn_mlp),
        n_params=sum(parameter.numel() for parameter in hooked.parameters()),
    )


def _hooked_architecture(cfg: Any) -> str:
    """The row of the table that a HookedTransformer comes from, or, built from a bare configuration, is like."""
    name = str(cfg.original_architecture).lower()
    for kind, architecture in ARCHITECTURES.items():
        if name.startswith(kind.replace("_", "")):
            return architecture.name
    if cfg.gated_mlp:
        return "llama"
    return "gpt_neox" if cfg.positional_embedding_type == "rotary" else "gpt2"


def _drop_pattern(attention: Any, args: tuple[Any, ...], output: Any) -> None:
    if hasattr(attention, "_pattern"):
        attention._pattern = None


def _bias(projection: Any) -> Tensor | None:
    bias = getattr(projection, "bias", None)
    return None if bias is None else bias.detach()


def _part(norm: Any, name: str) -> Tensor | None:
    part = getattr(norm, name, None)
    return None if part is None else part.detach()

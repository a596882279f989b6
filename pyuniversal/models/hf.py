"""The fast path: a plain transformers model, its base model run without unembedding, hooks on the MLP's projections only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .architectures import ARCHITECTURES, Architecture, supported
from .base import Model, ModelConfig, Tap
from .folding import RawEnds, RawLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HFModel(Model):
    """A transformers causal language model of a supported architecture."""

    def __init__(self, module: PreTrainedModel, *, label: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap `module`.

        Raises:
            InputError: an architecture that is not in the table, or a base model without its unembedding.
        """
        self._architecture = find_architecture(module.config, source)
        if module.get_output_embeddings() is None:
            raise InputError(f"{source} is a {type(module).__name__}, which has no unembedding. Load it with AutoModelForCausalLM.")
        super().__init__(module, label=label, source=source, config=read_config(module, self._architecture), tokenizer=tokenizer)
        self._base: Any = module.base_model
        self._layers: Any = getattr(self._base, self._architecture.layers)

    def _run(self, tokens: Tensor, *, logits: bool) -> Tensor | None:
        if logits:
            with _unpacked():
                result: Tensor = self.module(input_ids=tokens, use_cache=False).logits
            return result
        with _unpacked():
            self._base(input_ids=tokens, use_cache=False)
        return None

    def _mlp(self, layer: int) -> Any:
        return getattr(self._layers[layer], self._architecture.mlp)

    def _tap(self, site: str, layer: int) -> Tap:
        if site == "mlp.post":
            return Tap(getattr(self._mlp(layer), self._architecture.w_out), of_input=True)
        return Tap(getattr(self._mlp(layer), self._architecture.w_gate or self._architecture.w_in), of_input=False)

    def _mlp_output(self, layer: int) -> Tap:
        return Tap(self._mlp(layer), of_input=False)

    def _raw_layer(self, layer: int) -> RawLayer:
        mlp, a = self._mlp(layer), self._architecture
        norm = getattr(self._layers[layer], a.norm)
        w_in, b_in = _projection(getattr(mlp, a.w_in))
        w_gate, b_gate = _projection(getattr(mlp, a.w_gate)) if a.w_gate else (None, None)
        w_out, b_out = _projection(getattr(mlp, a.w_out))
        return RawLayer(w_in, b_in, w_gate, b_gate, w_out, b_out, *norm_weights(norm))

    def _raw_ends(self) -> RawEnds:
        module: Any = self.module
        w_u, b_u = _projection(module.get_output_embeddings())
        norm = getattr(self._base, self._architecture.final_norm)
        return RawEnds(module.get_input_embeddings().weight.detach(), w_u, b_u, *norm_weights(norm))


ONE_SEQUENCE: ContextVar[bool] = ContextVar("whether every row that runs now is one sequence", default=False)


@contextmanager
def _unpacked() -> Iterator[None]:
    """Every row is one sequence. At each forward transformers asks the positions whether it is, and waits for a GPU to come to the answer: here it is known."""
    _listen()
    before = ONE_SEQUENCE.set(True)
    try:
        yield
    finally:
        ONE_SEQUENCE.reset(before)


@cache
def _listen() -> None:
    """Let transformers' question be answered by `ONE_SEQUENCE`; asked by anything but our forwards, in whatever thread, it is answered as before."""
    from transformers import masking_utils

    asks: Any = getattr(masking_utils, "find_packed_sequence_indices", None)
    if asks is not None:  # some versions do not ask
        masking_utils.find_packed_sequence_indices = lambda position_ids: None if ONE_SEQUENCE.get() else asks(position_ids)


def find_architecture(config: Any, source: str) -> Architecture:
    """The table's row for a transformers configuration.

    Raises:
        InputError: there is none; names the model's type and lists the supported ones.
    """
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        raise InputError(f"{source} is of type {kind!r}, which pyuniversal does not know. Supported types: {supported()}.")
    return ARCHITECTURES[kind]


def read_config(module: Any, architecture: Architecture) -> ModelConfig:
    """Sizes of a transformers model; d_mlp and d_vocab from the weights themselves."""
    config = module.config
    layers = getattr(module.base_model, architecture.layers)
    d_model = config.hidden_size
    return ModelConfig(
        architecture=architecture.name,
        n_layers=len(layers),
        d_model=d_model,
        d_mlp=_projection(getattr(getattr(layers[0], architecture.mlp), architecture.w_out))[0].shape[0],
        n_heads=config.num_attention_heads,
        d_head=getattr(config, "head_dim", None) or d_model // config.num_attention_heads,
        d_vocab=module.get_output_embeddings().weight.shape[0],
        n_ctx=config.max_position_embeddings,
        act_fn=getattr(config, "activation_function", None) or config.hidden_act,
        gated=architecture.w_gate is not None,
        normalization=architecture.normalization,
        parallel=bool(getattr(config, "use_parallel_residual", False)),
        n_params=sum(parameter.numel() for parameter in module.parameters()),
    )


def norm_weights(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a norm, None where it has none."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return None if weight is None else weight.detach(), None if bias is None else bias.detach()


def _projection(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight as [inputs, outputs], and bias. GPT-2's Conv1D stores it so, a Linear the other way round."""
    weight = module.weight.detach()
    bias = getattr(module, "bias", None)
    return weight.T if isinstance(module, torch.nn.Linear) else weight, None if bias is None else bias.detach()

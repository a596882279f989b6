"""What every kind of model offers: run tokens, record and edit MLP activations, give folded weights."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..float32 import tf32_products
from .folding import RawEnds, RawLayer, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SITES = ("mlp.pre", "mlp.post")


@dataclass(frozen=True)
class ModelConfig:
    """A model's sizes under the field's names."""

    architecture: str  # "gpt2" | "gpt_neox" | "llama"
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    d_head: int
    d_vocab: int  # columns of the unembedding; may exceed len(tokenizer)
    n_ctx: int  # longest row of tokens, BOS included
    act_fn: str  # as the model's own configuration names it, e.g. "gelu_new"
    gated: bool
    normalization: Literal["LN", "RMS"]
    parallel: bool  # attention and MLP read the same residual stream
    n_params: int


class Tap(NamedTuple):
    """A place where activations pass: the first input or the output of a module."""

    module: nn.Module
    of_input: bool


class Model(ABC):
    """A language model seen through its MLPs. Made by `load_model`.

    Everything runs in eval mode without gradients; the wrapped module's own mode comes back afterwards, and hooks exist only inside `record` and `edit`.
    """

    def __init__(self, module: nn.Module, *, label: str, source: str, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap `module`; the arguments become the attributes of the same names."""
        self.module = module
        self.label = label
        self.source = source
        self.config = config
        self.tokenizer = tokenizer
        self.tf32 = False  # whether float32 products on a GPU take TF32 operands

    def __repr__(self) -> str:
        """Label, kind, architecture and sizes."""
        c = self.config
        return f"<{type(self).__name__} {self.label}: {c.architecture}, {c.n_layers} layers of {c.d_mlp} neurons, d_model {c.d_model}>"

    @abstractmethod
    def _run(self, tokens: Tensor, *, logits: bool) -> Tensor | None:
        """Run the wrapped module on [rows, positions]; the unembedding only where `logits`."""

    @abstractmethod
    def _tap(self, site: str, layer: int) -> Tap:
        """Where a site's activations pass."""

    @abstractmethod
    def _mlp_output(self, layer: int) -> Tap:
        """Where the MLP's contribution to the residual stream passes."""

    @abstractmethod
    def _raw_layer(self, layer: int) -> RawLayer:
        """The MLP's weights as they are."""

    @abstractmethod
    def _raw_ends(self) -> RawEnds:
        """Embedding and unembedding as they are."""

    def _roots(self) -> tuple[nn.Module, ...]:
        """Modules that between them hold all that runs."""
        return (self.module,)

    def _state(self) -> Mapping[str, Any]:
        """Everything that the weight hash covers."""
        return self.module.state_dict()

    @property
    def device(self) -> torch.device:
        """Where the model takes its tokens."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and so of the activations."""
        return next(self.module.parameters()).dtype

    @cached_property
    def weight_hash(self) -> str:
        """64 hex digits: sha256 over name, dtype, shape and bytes of every weight, by name, and over "tf32" where products are so.

        Computed once: ask before changing weights, not after.
        """
        digest = hashlib.sha256(b"tf32" if self.tf32 else b"")
        for name, tensor in sorted(self._state().items()):
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def forward(self, tokens: Tensor) -> None:
        """Run all layers, without the unembedding; what `record` and `edit` ask for happens on the way.

        Args:
            tokens: int64 [rows, positions], padded on the right with any id: no position of these causal models sees a later one.

        Raises:
            InputError: the wrong shape or dtype, a row longer than the context, an id outside the vocabulary.
        """
        with torch.no_grad(), _evaluating(*self._roots()), tf32_products(self.tf32):
            self._run(self._checked(tokens), logits=False)

    def logits(self, tokens: Tensor) -> Tensor:
        """Run the whole model; [rows, positions, d_vocab] in the model's dtype. Arguments and errors as for `forward`."""
        with torch.no_grad(), _evaluating(*self._roots()), tf32_products(self.tf32):
            logits = self._run(self._checked(tokens), logits=True)
        assert logits is not None
        return logits

    @contextmanager
    def record(self, sites: str | Iterable[str], layers: Iterable[int] | None = None) -> Iterator[dict[tuple[str, int], Tensor]]:
        """Record activations of every forward inside the `with` block; each overwrites those of the one before.

        Args:
            sites: "mlp.pre" (before the activation function; for a gated MLP the gate's) and / or "mlp.post" (what W_out multiplies).
            layers: which, all by default.

        Yields:
            (site, layer) -> tensor [rows, positions, d_mlp] on the model's device, in its dtype. An edit entered before this is seen by it, a later one not.
        """
        recorded: dict[tuple[str, int], Tensor] = {}
        sites = [sites] if isinstance(sites, str) else list(sites)
        with ExitStack() as stack:
            for layer in range(self.config.n_layers) if layers is None else layers:
                for site in sites:
                    stack.enter_context(self._hooked(site, layer, keep_in(recorded, (site, layer))))
            yield recorded

    @contextmanager
    def edit(self, site: str, layer: int, f: Callable[[Tensor], Any]) -> Iterator[None]:
        """Inside the `with` block the activations at a site become `f(activations)`, [rows, positions, d_mlp].

        Raises:
            InputError: no such site or layer; when a forward runs, `f` returned something of another shape or dtype or changed its argument in place.
        """

        def checked(activations: Tensor) -> Tensor:
            where = f"the edit of {site} in layer {layer} of {self.label}"
            version = None if activations.is_inference() else activations._version
            edited: Any = f(activations)
            if not isinstance(edited, Tensor) or edited.shape != activations.shape or edited.dtype != activations.dtype:
                got = f"{edited.dtype} {list(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
                raise InputError(f"{where} returned {got} for {activations.dtype} {list(activations.shape)}. Return a tensor of the same shape and dtype.")
            if version is not None and activations._version != version:
                raise InputError(f"{where} changed its argument in place. Return a new tensor instead: start from activations.clone().")
            return edited

        with self._hooked(site, layer, checked):
            yield

    def weights(self) -> Weights:
        """The weights in the basis of the study; the model itself stays as it is. See `Weights`."""
        return Weights(self.config.n_layers, self.config.normalization == "LN", self._raw_layer, self._raw_ends)

    @contextmanager
    def _hooked(self, site: str, layer: int, f: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Call `f` with the activations of a site at every forward; what it returns replaces them, None leaves them."""
        if site not in SITES:
            raise InputError(f"there is no site {site!r}: choose from {', '.join(SITES)}")
        if not 0 <= layer < self.config.n_layers:
            raise InputError(f"{self.label} has no layer {layer}: choose from 0 to {self.config.n_layers - 1}")
        with tapped(self._tap(site, layer), f):
            yield

    def _checked(self, tokens: Tensor) -> Tensor:
        """The tokens on the model's device; what would fail inside the model, or silently mean another token, is refused here."""
        c = self.config
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise InputError(f"tokens of {self.label} must be int64 [rows, positions], not {tokens.dtype} {list(tokens.shape)}")
        if tokens.shape[1] > c.n_ctx:
            raise InputError(
                f"rows of {tokens.shape[1]} tokens are longer than the context of {self.label}. Make rows of at most {c.n_ctx} tokens, BOS included."
            )
        # only where looking costs no wait for the GPU
        if tokens.device.type == "cpu" and tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= c.d_vocab):
            found = f"token ids {int(tokens.min())} to {int(tokens.max())}"
            raise InputError(f"{found} do not fit {self.label}, which has {c.d_vocab}. Tokenise the text with its own tokenizer.")
        return tokens.to(self.device)


@contextmanager
def tapped(tap: Tap, f: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `f` with what passes at `tap`; what it returns replaces it, None leaves it."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = f(args[0])
        return None if changed is None else (changed, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return f(output)

    handle = tap.module.register_forward_pre_hook(before) if tap.of_input else tap.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def keep_in(store: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
    """A hook that puts what passes into `store[key]` and leaves it as it is."""

    def keep(passing: Tensor) -> None:
        store[key] = passing

    return keep


@contextmanager
def _evaluating(*roots: nn.Module) -> Iterator[None]:
    """Eval mode inside (no dropout); afterwards every submodule is in the mode it was in."""
    training = [child for root in roots for child in root.modules() if child.training]
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True

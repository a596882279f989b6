"""A source is anything that yields columns for a batch of tokens: a site of a model, or whatever else has the same three names and one method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from .errors import InputError
from .files import unsafe
from .tokenizer_identity import tokenizer_hash

SITES = ("mlp.post", "mlp.pre")


class Source(Protocol):
    """What the pass asks of a source.

    name: how files and tables call it. hash: changes when the columns it would yield change. layers, width: the columns are layers x width neurons.
    """

    name: str
    hash: str
    site: str
    layers: tuple[int, ...]
    width: int

    def check(self, tokens: Any) -> None:
        """Raise `InputError` unless these `Tokens` can go through this source."""
        ...

    def activations(self, ids: Tensor) -> dict[str, list[Tensor]]:
        """Run on right-padded tokens [rows, positions]: for the correlated site and for "mlp.pre", one tensor [rows, positions, width] a layer."""
        ...


class ModelSite:
    """The MLP neurons of some layers of a model, at one site.

    Args:
        model: a `pyuniversal.models.Model`.
        site: the site that is correlated, "mlp.post" or "mlp.pre"; pre-activations come along in any case, for the moments.
        layers: which layers; all by default.
        name: what files and tables call it; the model's label by default.

    Raises:
        InputError: an unknown site, or a layer that the model does not have.
    """

    def __init__(self, model: Any, *, site: str = "mlp.post", layers: Sequence[int] | None = None, name: str | None = None) -> None:
        if site not in SITES:
            raise InputError(f"unknown site {site!r}; choose one of {', '.join(SITES)}")
        n_layers = model.config.n_layers
        self.layers = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
        if not self.layers or not 0 <= self.layers[0] <= self.layers[-1] < n_layers:
            raise InputError(f"{model.label} has layers 0 to {n_layers - 1}, not all of {list(self.layers)}; choose others with --layers")
        if name is not None and (problem := unsafe(name)):
            raise InputError(f"a source cannot be called {name!r}, which {problem}: files are called by it; choose another name")
        self.model, self.site = model, site
        self.name, self.hash, self.width = name or model.label, model.weight_hash, model.config.d_mlp

    def check(self, tokens: Any) -> None:
        """See `Source.check`: the model's tokenizer made them, its context holds a row, its vocabulary all ids.

        Raises:
            InputError: what does not fit, and what to do.
        """
        config = self.model.config
        if tokens.tokenizer_hash != tokenizer_hash(self.model.tokenizer):
            raise InputError(
                f"the tokens in {tokens.path} were made with another tokenizer than that of {self.name}; make them again with `pyuniversal tokens`"
            )
        if tokens.row_tokens > config.n_ctx and int(tokens.lengths.max(initial=0)) > config.n_ctx:
            raise InputError(
                f"rows of {int(tokens.lengths.max())} tokens in {tokens.path} are longer than the context of {self.name} ({config.n_ctx}); "
                f"make them again with --row-tokens {config.n_ctx}"
            )
        if tokens.d_vocab > config.d_vocab:
            raise InputError(
                f"{tokens.path} has ids up to {tokens.d_vocab - 1} and {self.name} knows {config.d_vocab} tokens: "
                "its tokenizer and weights do not belong together"
            )

    def activations(self, ids: Tensor) -> dict[str, list[Tensor]]:
        """One forward pass without the unembedding; see `Source.activations`."""
        sites = sorted({self.site, "mlp.pre"})
        with self.model.record(sites, self.layers) as recorded:
            self.model.forward(ids)
            return {site: [recorded[site, layer] for layer in self.layers] for site in sites}

"""NaN and Inf among activations: found without keeping a GPU waiting, and named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ActivationError
from ..sources import Source
from ..tokens import Tokens
from ..totals import Moments, first_bad
from .chunks import Chunk, row_of


class Finiteness:
    """Whether moments are finite: asked where they live, and answered when the host wants to know. The host waits for the answer, not for later work there."""

    def __init__(self, moments: Sequence[Moments]) -> None:
        answer = torch.stack([_spread(m).isfinite().all() for m in moments]).all()
        self._known: torch.cuda.Event | None = None
        if answer.is_cuda:
            with torch.cuda.device(answer.device):
                answer = torch.empty_like(answer, device="cpu", pin_memory=True).copy_(answer, non_blocking=True)
                self._known = torch.cuda.Event()
                self._known.record()
        self._answer = answer

    def known(self) -> bool:
        """The answer."""
        if self._known is not None:
            self._known.synchronize()
        return bool(self._answer)


def refuse_nonfinite(moments: Moments, x: Tensor, source: Source, site: str, chunk: Chunk, tokens: Tokens) -> None:
    """Raise `ActivationError` for the first NaN or Inf of a chunk, x [tokens, columns]; looks for it only where the moments say that there is one."""
    bad = ~_spread(moments).isfinite()
    if not bad.any():
        return
    column = int(bad.nonzero()[0])
    values = x[:, column]
    layer, neuron = source.layers[column // source.width], column % source.width
    where = f"{source.name}: {site} of L{layer}.{neuron}"
    if (values.double() ** 2).isfinite().all():
        raise ActivationError(f"{where} was NaN or Inf, and is finite when the same tokens run again: this source does not give the same values twice")
    place = first_bad(values)
    row, position = row_of(chunk, place)
    raise ActivationError(
        f"{where} is {values[place].item()} at row {row} (document {tokens.documents[row]}), position {position}; "
        f"{int(bad.sum())} neurons are affected. Run the model in a wider dtype (--dtype float32), leave the layer out with --layers, or repair its weights."
    )


def _spread(moments: Moments) -> Tensor:
    """M2 over the largest token set, float64 [neurons]: not finite where a single activation is not."""
    return moments.field("M2", moments.sets[-1])

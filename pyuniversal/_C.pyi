"""The compiled ops, as type checkers see them. Any tensor with `__dlpack__` will do; contracts stand in pyuniversal/ops/<op>.py."""

from collections.abc import Sequence

from torch import Tensor

has_cuda: bool

def histogram_(counts: Tensor, x: Tensor, edges: Tensor, threads: int) -> None: ...
def quantize(data: Tensor, rounding: Tensor, x: Tensor, centre: Tensor, inverse: Tensor, token_key: Tensor, neuron_key: Tensor, threads: int) -> None: ...
def moments_(state: Tensor, x: Tensor, ends: Sequence[int], threads: int) -> None: ...

"""The compiled ops, as type checkers see them. Any tensor with `__dlpack__` will do; contracts stand in pyuniversal/ops/<op>.py."""

from collections.abc import Sequence

from torch import Tensor

has_cuda: bool

def histogram_(counts: Tensor, x: Tensor, edges: Tensor, threads: int) -> None: ...
def product_(total: Tensor, x: Tensor, y: Tensor, x_scale: Tensor, y_scale: Tensor, threads: int) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def peak(kind: str, threads: int, seconds: float) -> float: ...
def read_bandwidth(x: Tensor, threads: int) -> float: ...
def quantize(data: Tensor, rounding: Tensor, x: Tensor, centre: Tensor, inverse: Tensor, token_key: Tensor, neuron_key: Tensor, threads: int) -> None: ...
def moments_(state: Tensor, x: Tensor, ends: Sequence[int], threads: int, activation: str = ...) -> None: ...
def summarize_correlation(
    total: Tensor,
    tokens: int,
    x: Tensor,
    y: Tensor,
    edges: Tensor,
    x_best: Tensor,
    x_index: Tensor,
    x_histogram: Tensor,
    x_moments: Tensor,
    y_best: Tensor,
    y_index: Tensor,
    y_histogram: Tensor,
    y_moments: Tensor,
    threads: int,
) -> None: ...

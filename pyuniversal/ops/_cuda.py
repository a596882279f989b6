"""Implementations in the compiled extension, for tensors on a GPU: csrc/cuda, where nvcc was there to compile it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ..errors import BackendError
from ._op import Implementation
from ._operand import operand
from .quantize import Packed


def _why_not_product(total: Tensor, x: Packed, y: Packed) -> str | None:
    if not total.is_cuda:
        return f"does not take {total.device.type} tensors"
    if x.precision != "int8":
        return f"{x.precision} is not implemented"
    if (capability := torch.cuda.get_device_capability(total.device)) != (9, 0):
        return f"needs a GPU of compute capability 9.0 (an H100), this one has {capability[0]}.{capability[1]}"
    if not _C.has_cuda:
        return "not built (pyuniversal was installed without CUDA: it takes an nvcc of 12.3 or later)"
    return _C.cuda_problem() or None


def _product(total: Tensor, x: Packed, y: Packed) -> None:
    left = operand(x)
    right = left if y.data is x.data else operand(y)
    with torch.cuda.device_of(total):  # tensors of another than the current device are not lent
        stream = torch.cuda.current_stream().cuda_stream
        try:
            _C.cuda_product_(total, left, right, x.scale.contiguous(), y.scale.contiguous(), stream)
        except RuntimeError as error:
            raise BackendError(f"{error}; choose another backend, or repair the installation of CUDA") from error


product_ = Implementation(run=_product, why_not=_why_not_product)

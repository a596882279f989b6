"""What kernels read, as float32."""

import triton
import triton.language as tl


@triton.jit
def as_float(x):
    """Exact, of float16, bfloat16 or float32. By its bits for bfloat16, whose subnormals Triton's interpreter (3.6 to 3.9) converts wrongly."""
    return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True) if x.dtype == tl.bfloat16 else x.to(tl.float32)

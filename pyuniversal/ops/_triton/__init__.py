"""Implementations in Triton, a stem an op: for tensors on a CUDA device; in host memory where TRITON_INTERPRET=1 has Triton interpret its kernels."""

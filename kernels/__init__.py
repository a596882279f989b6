"""Triton kernels, one stem an op: nothing but torch and triton is imported here."""

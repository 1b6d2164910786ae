"""Compiled bodies of the operations in ``laguna_ref/ops``; plain arrays in and out.

Imports nothing of laguna_ref. ``simd`` is the vector type that makes the same bits on every
CPU; ``vector_math`` its functions; the other modules are one family of kernels each.
"""

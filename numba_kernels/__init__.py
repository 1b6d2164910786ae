"""Compiled bodies of the operations in ``laguna_ref/ops``; plain arrays in and out.

No kernel is part of this release: ``laguna_ref.load(engine="numba")`` says so.
"""

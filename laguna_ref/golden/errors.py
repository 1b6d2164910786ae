"""What golden files, case files and dumps are refused with."""

from __future__ import annotations

from laguna_ref.errors import LagunaError


class GoldenError(LagunaError):
    """A golden or case file that cannot be read, or that belongs to something else."""


class DumpError(LagunaError):
    """A dump that nothing can be compared with: empty, damaged, or not one at all."""

"""Committed results that any machine can recompute, and what others computed, to hold against."""

from laguna_ref.golden.cases import COMMITTED_CASES, Case, read_cases
from laguna_ref.golden.dump import Dump, DumpRouting, read_dump
from laguna_ref.golden.errors import DumpError, GoldenError
from laguna_ref.golden.golden import Golden, make
from laguna_ref.golden.golden_file import read_golden, write_golden
from laguna_ref.golden.identity import Identity, identity_of
from laguna_ref.golden.kl import KLBounds, kl_bounds, kl_divergence
from laguna_ref.golden.logits import Logits, LogitsSummary
from laguna_ref.golden.routing import Routing

__all__ = [
    "COMMITTED_CASES",
    "Case",
    "Dump",
    "DumpError",
    "DumpRouting",
    "Golden",
    "GoldenError",
    "Identity",
    "KLBounds",
    "Logits",
    "LogitsSummary",
    "Routing",
    "identity_of",
    "kl_bounds",
    "kl_divergence",
    "make",
    "read_cases",
    "read_dump",
    "read_golden",
    "write_golden",
]

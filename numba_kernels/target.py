"""What the processor that kernels are compiled for can do, as LLVM itself shows.

Numba compiles for the host or for what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say. A processor's
name implies features that no list states, so a few lines are compiled and looked at. The answers
decide the shapes of tiles and how codes are unpacked, never the order of a sum.
"""

from __future__ import annotations

from functools import lru_cache

import llvmlite.binding as llvm
from numba.core.registry import cpu_target

PROBE = """
define <16 x float> @probe(<16 x half> %x) {
  %y = fpext <16 x half> %x to <16 x float>
  ret <16 x float> %y
}
"""


@lru_cache
def _probe() -> str:
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=features)
    return str(machine.emit_assembly(llvm.parse_assembly(f'target triple = "{triple}"\n{PROBE}')))


def converts_halves() -> bool:
    """Whether float16 becomes float32 in one instruction (x86: F16C), not by a library's call."""
    return not any(name in _probe() for name in ("extendhfsf2", "h2f"))


def wide_registers() -> bool:
    """Whether there are 32 registers of 16 float32 (AVX-512) instead of at most 16 of 8."""
    return "zmm" in _probe()

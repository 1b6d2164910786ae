"""What the processor that kernels are compiled for can do.

Asked of the compiler itself, so that ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` count. It
decides the shapes of tiles and how codes are unpacked, never the order of a sum.
"""

from __future__ import annotations

from functools import lru_cache

from llvmlite import binding
from numba.core.registry import cpu_target


def _assembly(vector: str, operation: str) -> str:
    """What the compiler makes of one operation on two vectors."""
    module = binding.parse_assembly(
        f"define {vector} @probe({vector} %a, {vector} %b) {{\n"
        f"  %c = {operation}\n"
        f"  ret {vector} %c\n"
        "}\n"
    )
    return str(cpu_target.target_context.codegen()._tm.emit_assembly(module))


@lru_cache
def wide_registers() -> bool:
    """Whether sixteen float32 fit one register (AVX-512), of which there are then 32."""
    return "zmm" in _assembly("<16 x float>", "fadd <16 x float> %a, %b")

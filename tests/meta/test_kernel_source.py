"""Kernels never let the compiler, the threads or a library choose their bits.

Refused inside compiled code: ``fastmath`` and LLVM's fast flags, values carried from one turn of
a ``prange`` loop to another (Numba adds such up in an order that depends on the threads), sums
and products that Numba would spread over threads, and library transcendentals, which differ
between CPUs. Constants made when a module is imported may use ``math``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.sources import ROOT, tree

KERNELS = sorted((ROOT / "numba_kernels").glob("*.py"))

COMPILED_BY = {"njit", "jit", "vectorize", "guvectorize", "kernel", "Kernel", "single",
               "intrinsic", "overload", "overload_method", "generated_jit"}  # fmt: skip
"""Decorators whose functions, and all that is written inside them, become machine code."""

FAST = {"fastmath", "fast_math", "fp_contract"}
FAST_FLAGS = {"fast", "reassoc", "contract", "arcp", "afn", "nnan", "ninf", "nsz"}

LIBRARIES = {"math", "cmath", "np", "numpy", "scipy", "special"}
TRANSCENDENTAL = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "pow", "power",
    "float_power", "sin", "cos", "tan", "sinc", "asin", "acos", "atan", "atan2", "arcsin",
    "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "arcsinh",
    "arccosh", "arctanh", "hypot", "cbrt", "erf", "erfc", "gamma", "lgamma", "logit", "expit",
}  # fmt: skip
REDUCTIONS = {
    "sum", "nansum", "prod", "mean", "average", "var", "std", "dot", "vdot", "inner", "outer",
    "matmul", "tensordot", "einsum", "trace", "norm", "reduce", "fsum", "sumprod",
}  # fmt: skip
EXACT_LLVM = (
    "llvm.fma", "llvm.sqrt", "llvm.fabs", "llvm.prefetch",
    "llvm.x86.sse.", "llvm.x86.avx512.permvar.",
)  # fmt: skip
"""LLVM's functions whose results are the same everywhere, or that compute nothing."""


def refused(module: ast.Module) -> list[str]:
    """What a module does that kernels must not, each with its line."""
    found = [*fast(module)]
    for function in compiled(module):
        for node in ast.walk(function):
            found += [*library_call(node), *power(node), *reduction(node), *llvm_call(node)]
            if isinstance(node, ast.For) and _called(node.iter) == "prange":
                found += [*carried(node)]
    return sorted(set(found))


def compiled(module: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            names = {_called(d) or _name(d) for d in node.decorator_list}
            if names & COMPILED_BY:
                yield node


def fast(module: ast.Module) -> Iterator[str]:
    """Anywhere, compiled or not: decorators and builders are called at import."""
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg in FAST:
            yield f"line {node.value.lineno}: {node.arg}"
        if isinstance(node, ast.keyword) and node.arg in ("flags", "fastmath_flags"):
            yield f"line {node.value.lineno}: flags on an operation"
        if isinstance(node, ast.Constant) and node.value in (*FAST, *FAST_FLAGS):
            yield f"line {node.lineno}: the flag {node.value!r}"
        if isinstance(node, ast.ImportFrom) and node.module in LIBRARIES:
            for alias in node.names:
                if alias.name in TRANSCENDENTAL | {"*"}:
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"


def library_call(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and node.attr in TRANSCENDENTAL:
        root: ast.expr = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in LIBRARIES:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def power(node: ast.AST) -> Iterator[str]:
    """``x ** y`` is a library's pow, unless it is a constant."""
    between = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _constant(node)
    in_place = isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Pow)
    if between or in_place or _called(node) == "pow":
        yield f"line {node.lineno}: {ast.unparse(node)}"


def reduction(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        yield f"line {node.lineno}: a matrix product"
    if isinstance(node, ast.Call) and _called(node) in REDUCTIONS:
        yield f"line {node.lineno}: {ast.unparse(node)}"


def llvm_call(node: ast.AST) -> Iterator[str]:
    name = node.value if isinstance(node, ast.Constant) else None
    if isinstance(name, str) and name.startswith("llvm.") and not name.startswith(EXACT_LLVM):
        yield f"line {node.lineno}: {name}"


def carried(loop: ast.For) -> Iterator[str]:
    """Names and array elements that a turn of a loop updates without having set them itself."""
    plain, updates = set(_names(loop.target)), []
    for node in ast.walk(loop):
        if isinstance(node, ast.For | ast.comprehension) and node is not loop:
            plain |= set(_names(node.target))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            for name in (name for target in targets for name in _names(target)):
                if name in read:
                    updates.append((name, node))
                else:
                    plain.add(name)
            for target in targets:
                if isinstance(target, ast.Subscript) and ast.dump(
                    ast.parse(ast.unparse(target), mode="eval").body
                ) in map(_loaded, ast.walk(node.value)):
                    updates.append((_name(target.value), node))
        elif isinstance(node, ast.AugAssign):
            target = node.target
            array = target.value if isinstance(target, ast.Subscript) else target
            updates.append((_name(array), node))
    for name, node in updates:
        if name not in plain:
            yield f"line {node.lineno}: {ast.unparse(node)} is carried through prange"


def _loaded(node: ast.AST) -> str:
    if not isinstance(node, ast.Subscript):
        return ""
    return ast.dump(ast.parse(ast.unparse(node), mode="eval").body)


def _names(target: ast.AST) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _names(part)
    elif isinstance(target, ast.Starred):
        yield from _names(target.value)


def _name(node: ast.AST) -> str:
    """The last name of ``a`` or ``a.b``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _called(node: ast.AST) -> str:
    return _name(node.func) if isinstance(node, ast.Call) else ""


def _constant(node: ast.AST) -> bool:
    return not any(isinstance(n, ast.Name | ast.Call | ast.Attribute) for n in ast.walk(node))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_kernel_does_what_is_refused(path: Path) -> None:
    assert not refused(tree(path))


def test_kernels_are_found() -> None:
    """A renamed folder or decorator must not slip out of the test."""
    counts = {path.stem: len([*compiled(tree(path))]) for path in KERNELS}
    for module in (
        "lanes",
        "arithmetic",
        "conversions",
        "memory",
        "stored_numbers",
        "matrix",
        "dots",
        "panels",
        "attention",
        "experts",
        "rows",
        "elementwise",
    ):
        assert counts[module], module
    names = {f.name for path in KERNELS for f in compiled(tree(path))}
    assert {"matrix_vector", "matrix_matrix", "of_tiles", "routed_experts", "rms_norm"} <= names
    loops = [n for path in KERNELS for n in ast.walk(tree(path)) if isinstance(n, ast.For)]
    assert len([n for n in loops if _called(n.iter) == "prange"]) > 5


BAD = {
    "fastmath": "@njit(fastmath=True)\ndef f(x):\n    return x",
    "fastmath by name": "options = dict(fastmath={'reassoc'})",
    "a set of flags": "OPTIONS = {'contract'}",
    "flags of a builder": "@intrinsic\ndef f(t):\n    b.fadd(x, y, flags=('fast',))",
    "an imported sine": "from math import sin",
    "everything of NumPy": "from numpy import *",
    "a library's exp": "@njit\ndef f(x):\n    return np.exp(x)",
    "in a nested function": "@overload(g)\ndef f(x):\n    return lambda x: math.sin(x)",
    "handed on": "@kernel\ndef f(x):\n    return apply(math.tanh, x)",
    "deep": "@single\ndef f(x):\n    return scipy.special.expit(x)",
    "a power": "@njit\ndef f(x):\n    return x ** 0.5",
    "pow": "@njit\ndef f(x):\n    return pow(x, y)",
    "an LLVM sine": "@intrinsic\ndef f(t):\n    call_llvm(builder, 'llvm.sin', v, a)",
    "a method that sums": "@kernel\ndef f(x):\n    return x.sum()",
    "NumPy's sum": "@kernel\ndef f(x):\n    return np.sum(x)",
    "dot": "@njit\ndef f(x, y):\n    return np.dot(x, y)",
    "a matrix product": "@njit\ndef f(x, y):\n    return x @ y",
    "a scalar": "@kernel\ndef f(x):\n    s = 0.0\n    for i in prange(9):\n        s += x[i]",
    "a product": "@kernel\ndef f(x):\n    for i in numba.prange(9):\n        s *= x[i]",
    "written out": "@kernel\ndef f(x):\n    s = 0\n    for i in prange(9):\n        s = s + x[i]",
    "a maximum": "@kernel\ndef f(x):\n    for i in prange(9):\n        m = max(m, x[i])",
    "an array": "@kernel\ndef f(x, s):\n    for i in prange(9):\n        s += x[i]",
    "an element": "@kernel\ndef f(x, s):\n    for i in prange(9):\n        s[0] += x[i]",
    "its own element": "@kernel\ndef f(x, s):\n    for i in prange(9):\n        s[0] = s[0] + x[i]",
    "in an inner loop": (
        "@kernel\ndef f(x):\n    for i in prange(9):\n        for j in range(3):\n"
        "            s += x[j]"
    ),
}
GOOD = {
    "a constant": "TABLE = [math.exp(k) for k in range(9)]\nHALF = 2.0**-1",
    "our own exp": "@njit\ndef f(x):\n    return vector_math.exp(x)",
    "a root": "@njit\ndef f(x):\n    return np.sqrt(x)",
    "a constant power": "@intrinsic\ndef f(t):\n    c(2.0**-9)",
    "LLVM's fma": "@intrinsic\ndef f(t):\n    call_llvm(builder, 'llvm.fma', v, a)",
    "its own sum": (
        "@kernel\ndef f(x, out):\n    for i in prange(9):\n        s = 0.0\n"
        "        for j in range(3):\n            s += x[3 * i + j]\n        out[i] = s"
    ),
    "its own counter": (
        "@kernel\ndef f(x):\n    for i in prange(9):\n        row = i\n"
        "        while row < 9:\n            row += 4"
    ),
    "a plain loop": "@njit\ndef f(x):\n    s = 0.0\n    for i in range(9):\n        s += x[i]",
    "not compiled": "def f(x):\n    return np.exp(x).sum()",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    assert refused(ast.parse(BAD[name]))


@pytest.mark.parametrize("name", GOOD)
def test_what_is_allowed(name: str) -> None:
    assert not refused(ast.parse(GOOD[name]))

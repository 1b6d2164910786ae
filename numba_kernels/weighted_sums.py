"""Weighted sums of rows, several at a time: the second half of attention.

Every sum takes its rows in order, one fused multiply-add each; how many sums and columns share
the registers cannot show in any of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from numba_kernels import target
from numba_kernels.simd import CACHE_LINE, ask_for, call_llvm, f32x8, f64x8, splat_lanes


def _shape(dtype: types.Type) -> tuple[int, int]:
    """Vectors and lanes of a tile: with six sums it fills the registers but for a few."""
    lanes = 16 if target.wide_registers() else 8
    return (4 if target.wide_registers() else 2), (lanes // 2 if dtype == types.float64 else lanes)


@lru_cache
def outer_tile(sums: int, narrow: bool = False) -> Any:
    """A kernel for some columns of ``sums`` weighted sums of rows; ``narrow``: of eight columns.

    ``(weights, at, step, rows, first, stride, count, out, place, out_step, soon)``: adds
    ``sum_j weights[at + q * step + j] * rows[first + j * stride + c]`` over ``count`` rows j,
    in order, to ``out[place + q * out_step + c]`` for every q. The sum starts at zero and is
    added as a whole, so that its error grows with the number of blocks, not of rows. Meanwhile
    a cache line a row is fetched from address ``soon`` on.
    """

    @intrinsic
    def kernel(typing, weights, at, step, rows, first, stride, count, out, place, out_step, soon):
        vectors, lanes = (1, 8) if narrow else _shape(weights.dtype)
        element = f32x8.element if weights.dtype == types.float32 else f64x8.element
        vector = ir.VectorType(element, lanes)

        def codegen(context, builder, sig, args):
            def data(index: int) -> Any:
                return context.make_array(sig.args[index])(context, builder, args[index]).data

            weight_data, row_data, out_data = data(0), data(3), data(7)
            _, at, step, _, first, stride, count, _, place, out_step, soon = args
            integer = at.type
            zero = ir.Constant(vector, [0.0] * lanes)

            def times(a: Any, factor: int) -> Any:
                return builder.mul(a, ir.Constant(integer, factor))

            def plus(a: Any, constant: int) -> Any:
                return builder.add(a, ir.Constant(integer, constant))

            def pointer(base: Any, offset: Any) -> Any:
                return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

            def load(base: Any, offset: Any) -> Any:
                loaded = builder.load(pointer(base, offset))
                loaded.align = 4
                return loaded

            slots = [
                [cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(sums)
            ]
            for row in slots:
                for slot in row:
                    builder.store(zero, slot)
            with cgutils.for_range(builder, count) as loop:
                line = builder.add(soon, times(loop.index, CACHE_LINE))
                ask_for(builder, builder.inttoptr(line, ir.IntType(8).as_pointer()))
                start = builder.add(first, builder.mul(stride, loop.index))
                columns = [load(row_data, plus(start, v * lanes)) for v in range(vectors)]
                for q, row in enumerate(slots):
                    where = builder.add(builder.add(at, times(step, q)), loop.index)
                    weight = splat_lanes(
                        builder, builder.load(builder.gep(weight_data, [where])), vector
                    )
                    for column, slot in zip(columns, row, strict=True):
                        total = call_llvm(
                            builder, "llvm.fma", vector, [weight, column, builder.load(slot)]
                        )
                        builder.store(total, slot)
            for q, row in enumerate(slots):
                base = builder.add(place, times(out_step, q))
                for v, slot in enumerate(row):
                    where = plus(base, v * lanes)
                    total = builder.fadd(load(out_data, where), builder.load(slot))
                    stored = builder.store(total, pointer(out_data, where))
                    stored.align = 4
            return context.get_dummy_value()

        signature = types.void(
            weights, types.intp, types.intp, rows, types.intp, types.intp, types.intp, out,
            types.intp, types.intp, types.int64,
        )  # fmt: skip
        return signature, codegen

    return kernel


def columns_of_tile(out):
    """Columns that a tile which is not narrow takes at a time."""
    raise NotImplementedError("only inside compiled code")


@overload(columns_of_tile, inline="always")
def _columns_of_tile(out):
    vectors, lanes = _shape(out.dtype)
    columns = vectors * lanes
    return lambda out: columns


_six, _four, _two = outer_tile(6), outer_tile(4), outer_tile(2)
_narrow = outer_tile(2, narrow=True)


@njit(inline="always")
def add_weighted_sums(weights, step, sums, rows, count, width, out, soon):
    """Adds weighted sums of ``count`` rows of ``width`` columns to those in ``out``.

    weights: those of sum q from ``q * step`` on; ``sums`` is a multiple of two; ``out`` holds
    them one after the other. From address ``soon`` on is what will be read next.
    """
    for c in range(0, width - columns_of_tile(out) + 1, columns_of_tile(out)):
        q = 0
        while q < sums:
            left, place = sums - q, q * width + c
            if left % 6 == 0:
                _six(weights, q * step, step, rows, c, width, count, out, place, width, soon)
                q += 6
            elif left >= 4:
                _four(weights, q * step, step, rows, c, width, count, out, place, width, soon)
                q += 4
            else:
                _two(weights, q * step, step, rows, c, width, count, out, place, width, soon)
                q += 2
            soon += CACHE_LINE * count
    for c in range(width // columns_of_tile(out) * columns_of_tile(out), width, 8):
        for q in range(0, sums, 2):
            _narrow(weights, q * step, step, rows, c, width, count, out, q * width + c, width, soon)

"""The inner loop of every matrix product: a tile of sums held in registers.

``tile(rows, pairs)`` makes a kernel for so many rows times ``2 * pairs`` tokens. Every sum runs
over the columns in order, eight lanes at a time with fused multiply-adds, then over the lanes by a
fixed tree: how many rows and tokens share a tile cannot show in any of them.

Tokens come in pairs, one in each half of a 16-lane vector, so that one load of eight weights
serves both halves; on AVX2 the two halves are two registers, on AVX-512 one. A tile wants as many
sums as there are registers: each is waited for four cycles long, and loads are shared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.simd import ask_for, call_llvm, f32x8, f32x16, f64x8, f64x16, shuffle


def _tree_of_four(builder: Any, sums: list[Any]) -> Any:
    """Four 16-lane sums -> eight totals: four rows of the first token, four of the second.

    Each total is the fixed tree over its eight lanes: halves added until one is left.
    """

    def add_halves(a: Any, b: Any, width: int) -> Any:
        # Of each group of `width` lanes, the low half is added to the high half.
        groups = 8 // width
        low: list[int] = []
        high: list[int] = []
        for token in (0, 8):
            for source in (0, 16):
                for group in range(groups):
                    start = source + token + group * width
                    low += range(start, start + width // 2)
                    high += range(start + width // 2, start + width)
        return builder.fadd(shuffle(builder, a, b, low), shuffle(builder, a, b, high))

    first, second = add_halves(sums[0], sums[1], 8), add_halves(sums[2], sums[3], 8)
    both = add_halves(first, second, 4)
    even, odd = list(range(0, 16, 2)), list(range(1, 16, 2))
    return builder.fadd(shuffle(builder, both, both, even), shuffle(builder, both, both, odd))


@lru_cache
def tile(rows: int, pairs: int) -> Any:
    """A kernel for ``rows`` (a multiple of four) rows times ``2 * pairs`` tokens.

    ``(panel, at, stride, tokens, first, pair_size, blocks, lanes, keep, resume, finish, out,
    place, step)``: row r of the panel begins at ``at + r * stride``, packed pair p at
    ``first + p * pair_size``; ``blocks`` times eight columns are summed. Long rows come in
    stretches: with ``resume`` the lanes' sums go on from where ``lanes[keep:]`` left them, and
    without ``finish`` they are left there. With it the total of row r and token t goes to
    ``out[place + t * step + r]``.
    """

    @intrinsic
    def kernel(
        typing, panel, at, stride, tokens, first, pair_size, blocks, lanes, keep, resume, finish,
        out, place, step,
    ):  # fmt: skip
        whole, half = (f32x16, f32x8) if panel.dtype == types.float32 else (f64x16, f64x8)

        def codegen(context, builder, sig, args):
            def data(index: int) -> Any:
                return context.make_array(sig.args[index])(context, builder, args[index]).data

            panel_data, token_data, lane_data, out_data = data(0), data(3), data(7), data(11)
            _, at, stride, _, first, pair_size, blocks, _, keep, resume, finish, _, place, step = (
                args
            )
            integer = at.type

            def load(base: Any, offset: Any, vector: ir.VectorType) -> Any:
                pointer = builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())
                loaded = builder.load(pointer)
                loaded.align = 4
                return loaded

            def times(a: Any, factor: int) -> Any:
                return builder.mul(a, ir.Constant(integer, factor))

            zero = ir.Constant(whole.llvm, [0.0] * 16)
            slots = [
                [cgutils.alloca_once(builder, whole.llvm) for _ in range(pairs)]
                for _ in range(rows)
            ]
            nothing = ir.Constant(integer, 0)

            def kept(index: int) -> Any:
                return builder.add(keep, ir.Constant(integer, 16 * index))

            every = [slot for row in slots for slot in row]
            goes_on = builder.icmp_signed("!=", resume, nothing)
            with builder.if_else(goes_on) as (going_on, beginning):
                with going_on:
                    for index, slot in enumerate(every):
                        builder.store(load(lane_data, kept(index), whole.llvm), slot)
                        # The next tile's, which lie in the second-level cache.
                        ask_for(builder, builder.gep(lane_data, [kept(index + len(every))]))
                with beginning:
                    for slot in every:
                        builder.store(zero, slot)
            with cgutils.for_range(builder, blocks) as loop:
                column, lanes = times(loop.index, 8), times(loop.index, 16)
                packed = [
                    load(
                        token_data,
                        builder.add(builder.add(first, times(pair_size, p)), lanes),
                        whole.llvm,
                    )
                    for p in range(pairs)
                ]
                for r, row in enumerate(slots):
                    start = builder.add(at, builder.add(times(stride, r), column))
                    eight = load(panel_data, start, half.llvm)
                    twice = shuffle(builder, eight, eight, [*range(8), *range(8)])
                    for token, slot in zip(packed, row, strict=True):
                        total = call_llvm(
                            builder, "llvm.fma", whole.llvm, [twice, token, builder.load(slot)]
                        )
                        builder.store(total, slot)

            def put(value: Any, base: Any, where: Any) -> None:
                pointer = builder.gep(base, [where])
                stored = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
                stored.align = 4

            ends = builder.icmp_signed("!=", finish, nothing)
            with builder.if_else(ends) as (ending, interrupted):
                with ending:
                    for p in range(pairs):
                        for r in range(0, rows, 4):
                            sums = [builder.load(row[p]) for row in slots[r : r + 4]]
                            totals = _tree_of_four(builder, sums)
                            for t in range(2):
                                lanes = list(range(4 * t, 4 * t + 4))
                                four = shuffle(builder, totals, totals, lanes)
                                row = builder.add(place, ir.Constant(integer, r))
                                put(four, out_data, builder.add(row, times(step, 2 * p + t)))
                with interrupted:
                    for index, slot in enumerate(every):
                        put(builder.load(slot), lane_data, kept(index))
            return context.get_dummy_value()

        integers = [types.intp] * 4
        signature = types.void(
            panel, *integers[:2], tokens, *integers[:3], lanes, *integers[:3], out, *integers[:2]
        )
        return signature, codegen

    return kernel

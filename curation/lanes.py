"""Bytes moved and looked at many at a time by the processor's SIMD instructions, in loops compiled by numba.

numba keeps machine code by the file of the loop alone: where something here changes, those files are to be touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from curation.compiled import part

LANES = 32


@intrinsic  # type: ignore[untyped-decorator]
def between(_: Any, data: Any, at: Any, low: Any, high: Any) -> Any:
    """A bit for each of the 32 bytes from an offset, all of which must be there, set if it is from low to high."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, index = ir.VectorType(ir.IntType(8), LANES), ir.IntType(32)
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        loaded = builder.load(builder.bitcast(builder.gep(start, [arguments[1]]), lanes.as_pointer()))
        loaded.align = 1
        nothing, everywhere = ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(index, LANES), None)
        lowest, span = (
            builder.shuffle_vector(builder.insert_element(nothing, each, index(0)), nothing, everywhere)
            for each in (arguments[2], builder.sub(arguments[3], arguments[2]))
        )
        return builder.bitcast(builder.icmp_unsigned("<=", builder.sub(loaded, lowest), span), ir.IntType(LANES))

    return types.uint32(data, types.intp, types.uint8, types.uint8), build


def _copy(n_bytes: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def copy(_: Any, to: Any, at: Any, source: Any, start: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = ir.VectorType(ir.IntType(8), n_bytes).as_pointer()
            places = []
            for array, offset in ((0, 1), (2, 3)):
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                places.append(builder.bitcast(builder.gep(data, [arguments[offset]]), pointer))
            moved = builder.load(places[1])
            moved.align = 1
            builder.store(moved, places[0]).align = 1
            return context.get_dummy_value()

        return types.void(to, types.intp, source, types.intp), build

    return copy


copy_4, copy_8, copy_32 = map(_copy, (4, 8, LANES))
"""Copy so many bytes wherever they lie, (to, at, source, start), in one move; those too many are written over later."""


@intrinsic  # type: ignore[untyped-decorator]
def first(_: Any, bits: Any) -> Any:
    """Place of the lowest of the bits that are set, one at least."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(types.uint32), build


@intrinsic  # type: ignore[untyped-decorator]
def number(_: Any, bits: Any) -> Any:
    """How many of the bits are set."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.uint32), build


def table(members: bytes) -> np.ndarray:
    """For each of the 256 bytes whether it is one of these."""
    is_member = np.zeros(256, np.bool_)
    is_member[list(members)] = True
    return is_member


@part
def behind(data: np.ndarray, at: int, end: int, text: np.ndarray) -> int:
    """Offset behind the text if it stands at this offset of data[:end], else -1."""
    n = 0
    while n < len(text) and 0 <= at < end - n and data[at + n] == text[n]:
        n += 1
    return at + n if n == len(text) else -1


@part
def next_byte(data: np.ndarray, at: int, end: int, byte: np.uint8) -> int:
    """Offset of the next such byte, `end` if there is none."""
    while at + LANES <= end:
        found = between(data, at, byte, byte)
        if found:
            return int(at + first(found))
        at += LANES
    while at < end and data[at] != byte:
        at += 1
    return at


@part
def copied(data: np.ndarray, at: int, end: int, out: np.ndarray, to: int) -> int:
    """Write data[at:end]; up to 31 bytes behind it are written as well. Returns where it ends."""
    length = end - at
    n = 0
    while n < length and at + n + LANES <= len(data):
        copy_32(out, to + n, data, at + n)
        n += LANES
    while n < length:
        out[to + n] = data[at + n]
        n += 1
    return to + length

"""Bytes looked at 32 at a time by the processor's SIMD instructions, in loops compiled by numba.

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


@intrinsic  # type: ignore[untyped-decorator]
def move(_: Any, data: Any, at: Any, out: Any, to: Any) -> Any:
    """Copy 32 bytes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(8), LANES).as_pointer()
        source, target = (
            builder.bitcast(builder.gep(context.make_array(kind)(context, builder, array).data, [offset]), lanes)
            for kind, array, offset in (
                (signature.args[0], arguments[0], arguments[1]),
                (signature.args[2], arguments[2], arguments[3]),
            )
        )
        loaded = builder.load(source)
        loaded.align = 1
        builder.store(loaded, target).align = 1
        return context.get_dummy_value()

    return types.void(data, types.intp, out, types.intp), build


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
        move(data, at + n, out, to + n)
        n += LANES
    while n < length:
        out[to + n] = data[at + n]
        n += 1
    return to + length

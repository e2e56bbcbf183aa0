"""The filters of PNG undone for many rows at once.

A pixel is predicted from those to its left, above and above left, so neither a row nor a column can be worked off in
parallel; but pixels on a slant can: pixel x of one row, x - 1 of the next, x - 2 of the one after it. A block of rows
is laid out with each row a pixel later than the one above, and each step undoes one pixel of every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from curation.compiled import compiled, part
from curation.lanes import copy_4

ROWS = 20  # of a block: with the row above 63 bytes, all but one of a step
SLACK_BYTES = 4 * ROWS
"""How much memory must follow the rows of the last block, which is read as if it were whole."""
_LANES = 3 * ROWS  # bytes that a step undoes
_PITCH = 64  # of a step: a pixel of the row above the block, the lanes, the byte that copies of 4 bytes spill into
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)

_U8 = types.uint8[::1]
_I = types.intp


@part
def _slant(raw: np.ndarray, first: int, stride: int, width: int, steps: np.ndarray) -> None:
    """Lay out the rows from byte `first`: step t holds pixel t - k of row k. Pixels before a row are zero."""
    for t in range(ROWS):
        base = (t + 2) * _PITCH + 3
        for k in range(t + 1):
            copy_4(steps, base + 3 * k, raw, first + k * (stride - 3) + 3 * t)
        for lane in range(3 * t + 3, _LANES + 1):
            steps[base + lane] = 0
    for t in range(ROWS, width + ROWS):
        base = (t + 2) * _PITCH + 3
        for k in range(ROWS):
            copy_4(steps, base + 3 * k, raw, first + k * (stride - 3) + 3 * t)


@intrinsic  # type: ignore[untyped-decorator]
def _undo(_: Any, steps: Any, chosen: Any, width: Any) -> Any:
    """Undo the filter that each byte of a step has: PNG specification, 9.2.

    All 64 bytes of a step at once, and what the next step needs of it in registers. As a loop over bytes numba adds in
    64 bits and reads each step back from memory: that took four times as long.

    steps   uint8: _PITCH bytes a step, the first two of them as they are
    chosen  uint8 (5, _PITCH): for each filter 255 in the bytes that have it; none of those of the row above has one
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        step, number = ir.VectorType(ir.IntType(8), _PITCH), arguments[2].type
        data, masks = (
            context.make_array(array)(context, builder, value).data
            for array, value in zip(signature.args[:2], arguments[:2], strict=True)
        )

        def place(start: Any, at: Any) -> Any:
            offset = builder.mul(at, number(_PITCH))
            return builder.bitcast(builder.gep(start, [offset]), step.as_pointer())

        def loaded(start: Any, at: Any) -> Any:
            vector = builder.load(place(start, at))
            vector.align = 1
            return vector

        def above(pixels: Any) -> Any:  # a row is a pixel later than the one above
            order = ir.VectorType(ir.IntType(32), _PITCH)([max(0, byte - 3) for byte in range(_PITCH)])
            return builder.shuffle_vector(pixels, pixels, order)

        def less(one: Any, other: Any) -> Any:
            return builder.select(builder.icmp_unsigned("<", one, other), one, other)

        def apart(one: Any, other: Any) -> Any:
            swapped = builder.icmp_unsigned("<", one, other)
            return builder.sub(builder.select(swapped, other, one), builder.select(swapped, one, other))

        sub, up, average, paeth = (loaded(masks, number(kind)) for kind in (_SUB, _UP, _AVERAGE, _PAETH))
        before = cgutils.alloca_once_value(builder, loaded(data, number(1)))
        above_before = cgutils.alloca_once_value(builder, above(loaded(data, number(0))))
        end = builder.add(arguments[2], number(ROWS + 2))
        with cgutils.for_range_slice(builder, number(2), end, number(1)) as (at, _):
            a, c = builder.load(before), builder.load(above_before)  # left, above left
            b = above(a)
            half = builder.add(builder.and_(a, b), builder.lshr(builder.xor(a, b), step([1] * _PITCH)))
            to_a, to_b = apart(b, c), apart(a, c)
            # c may be the nearest only between a and b, and is then as far off as those distances differ
            between = builder.xor(builder.icmp_unsigned(">", a, c), builder.icmp_unsigned(">", b, c))
            to_c = builder.select(between, apart(to_a, to_b), step([255] * _PITCH))
            nearest = builder.select(builder.icmp_unsigned("<=", to_b, to_c), b, c)
            nearest = builder.select(builder.icmp_unsigned("<=", to_a, less(to_b, to_c)), a, nearest)
            one = builder.or_(builder.and_(a, sub), builder.and_(b, up))
            other = builder.or_(builder.and_(half, average), builder.and_(nearest, paeth))
            now = builder.add(loaded(data, at), builder.or_(one, other))
            builder.store(now, place(data, at)).align = 1
            builder.store(now, before)
            builder.store(b, above_before)
        return context.get_dummy_value()

    return types.void(steps, chosen, width), build


@part
def _whole(steps: np.ndarray, top: int, rows: int, width: int, out: np.ndarray) -> None:
    """Copy a block to its rows in the picture."""
    row_bytes = 3 * width
    for t in range(width + rows):
        base = (t + 2) * _PITCH + 3
        for k in range(max(0, t - width + 2), min(rows, t + 1)):
            copy_4(out, (top + k) * row_bytes + 3 * (t - k), steps, base + 3 * k)
    for k in range(rows):  # the last pixel of a row has another row's behind it
        base = (width + k + 1) * _PITCH + 3 + 3 * k
        for colour in range(3):
            out[(top + k + 1) * row_bytes - 3 + colour] = steps[base + colour]


@part
def _halved(steps: np.ndarray, top: int, rows: int, width: int, means: np.ndarray, out: np.ndarray) -> None:
    """Copy the means of a block's 2 x 2 pixels, rounded half up, to their rows in a picture of half the size."""
    half = width // 2
    row_bytes = 3 * half
    for x in range((width + ROWS) // 2):
        base = (2 * x + 2) * _PITCH + 3
        one, two, three = steps[base:], steps[base + _PITCH :], steps[base + 2 * _PITCH :]
        for lane in range(_LANES - 3):
            upper = np.uint16(np.uint16(one[lane]) + np.uint16(two[lane]))
            lower = np.uint16(np.uint16(two[lane + 3]) + np.uint16(three[lane + 3]))
            means[lane] = np.uint8(np.uint16(np.uint16(upper + lower) + np.uint16(2)) >> np.uint16(2))
        end = min(rows // 2, x + 1)
        for k in range(max(0, x - half + 2), end):
            copy_4(out, (top // 2 + k) * row_bytes + 3 * (x - k), means, 6 * k)
        last = x - half + 1
        if 0 <= last < end:
            for colour in range(3):
                out[(top // 2 + last + 1) * row_bytes - 3 + colour] = means[6 * last + colour]


@compiled(types.void(_U8, _I, _I, types.boolean, _U8))
def unfiltered(raw: np.ndarray, width: int, height: int, halve: bool, out: np.ndarray) -> None:
    """Undo the filters of a picture of 8-bit RGB.

    raw    uint8: height rows of a filter's number (0 to 4) and 3 * width bytes, then ROWS such rows and SLACK_BYTES of
           anything
    halve  average 2 x 2 pixels, as cv2.INTER_AREA does; of an odd width or height the last is left out
    out    uint8, 3 * width * height; halved 3 * (width // 2) * (height // 2)
    """
    stride = 3 * width + 1
    steps = np.zeros((width + ROWS + 6) * _PITCH, np.uint8)
    chosen = np.zeros((5, _PITCH), np.uint8)
    means = np.zeros(_PITCH, np.uint8)
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        if top:
            for x in range(width):
                copy_4(steps, (x + 1) * _PITCH, steps, (x + ROWS + 1) * _PITCH + _LANES)
            steps[_PITCH + 3] = 0  # left of the first pixel
        for lane in range(_LANES):
            for kind in range(5):
                chosen[kind, 3 + lane] = 255 if lane // 3 < rows and raw[(top + lane // 3) * stride] == kind else 0
        _slant(raw, top * stride + 1, stride, width, steps)
        _undo(steps, chosen, width)
        if halve:
            _halved(steps, top, rows, width, means, out)
        else:
            _whole(steps, top, rows, width, out)

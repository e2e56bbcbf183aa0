"""The filters of PNG undone for many rows at once.

A pixel is predicted from those to its left, above and above left, so neither a row nor a column can be worked off in
parallel; but pixels on a slant can: pixel x of one row, x - 1 of the next, x - 2 of the one after it. A block of rows
is laid out with each row a pixel later than the one above, and each step undoes one pixel of every row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from curation.compiled import compiled

ROWS = 16  # of a block
SLACK_BYTES = 4 * ROWS
"""How much memory must follow the rows of the last block, which is read as if it were whole."""
_LANES = 3 * ROWS  # bytes that a step undoes
_PITCH = 64  # of a step: a pixel of the row above the block, the lanes, room that copies of 4 bytes spill into
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)

_U8 = types.uint8[::1]
_I = types.intp


@intrinsic  # type: ignore[untyped-decorator]
def _copy_4(_: Any, to: Any, at: Any, source: Any, start: Any) -> Any:
    """Copy 4 bytes wherever they lie: a pixel in one move; the byte behind it is written over later."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(types.uint32).as_pointer()
        places = []
        for array, offset in ((0, 1), (2, 3)):
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            places.append(builder.bitcast(builder.gep(data, [arguments[offset]]), pointer))
        moved = builder.load(places[1])
        moved.align = 1
        builder.store(moved, places[0]).align = 1
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp), build


@compiled(types.void(_U8, _I, _I, _I, _U8))
def _slant(raw: np.ndarray, first: int, stride: int, width: int, steps: np.ndarray) -> None:
    """Lay out the rows from byte `first`: step t holds pixel t - k of row k. Pixels before a row are zero."""
    for t in range(ROWS):
        base = (t + 2) * _PITCH + 3
        for k in range(t + 1):
            _copy_4(steps, base + 3 * k, raw, first + k * (stride - 3) + 3 * t)
        for lane in range(3 * t + 3, _LANES + 1):
            steps[base + lane] = 0
    for t in range(ROWS, width + ROWS):
        base = (t + 2) * _PITCH + 3
        for k in range(ROWS):
            _copy_4(steps, base + 3 * k, raw, first + k * (stride - 3) + 3 * t)


@compiled(types.void(_U8, types.int16[:, ::1], _I))
def _undo(steps: np.ndarray, chosen: np.ndarray, width: int) -> None:
    """Undo the filter that each lane has: PNG specification, 9.2. Every cast keeps a value in 16 bits, for SIMD."""
    sub, up, average, paeth = chosen[_SUB], chosen[_UP], chosen[_AVERAGE], chosen[_PAETH]
    for t in range(2, width + ROWS + 2):
        before = steps[(t - 1) * _PITCH : t * _PITCH]
        earlier = steps[(t - 2) * _PITCH : (t - 1) * _PITCH]
        now = steps[t * _PITCH : (t + 1) * _PITCH]
        for lane in range(_LANES):
            a = np.int16(before[lane + 3])  # left
            b = np.int16(before[lane])  # above
            c = np.int16(earlier[lane])  # above left
            to_a, to_b = np.int16(b - c), np.int16(a - c)
            to_c = np.int16(abs(np.int16(to_a + to_b)))
            to_a, to_b = np.int16(abs(to_a)), np.int16(abs(to_b))
            nearest = b if to_b <= to_c else c
            nearest = a if to_a <= (to_b if to_b <= to_c else to_c) else nearest
            half = np.int16(np.int16(a + b) >> 1)
            one = np.int16(np.int16(a & sub[lane]) | np.int16(b & up[lane]))
            other = np.int16(np.int16(half & average[lane]) | np.int16(nearest & paeth[lane]))
            now[lane + 3] = np.uint8(now[lane + 3] + np.uint8(np.int16(one | other)))


@compiled(types.void(_U8, _I, _I, _I, _U8))
def _whole(steps: np.ndarray, top: int, rows: int, width: int, out: np.ndarray) -> None:
    """Copy a block to its rows in the picture."""
    row_bytes = 3 * width
    for t in range(width + rows):
        base = (t + 2) * _PITCH + 3
        for k in range(max(0, t - width + 2), min(rows, t + 1)):
            _copy_4(out, (top + k) * row_bytes + 3 * (t - k), steps, base + 3 * k)
    for k in range(rows):  # the last pixel of a row has another row's behind it
        base = (width + k + 1) * _PITCH + 3 + 3 * k
        for colour in range(3):
            out[(top + k + 1) * row_bytes - 3 + colour] = steps[base + colour]


@compiled(types.void(_U8, _I, _I, _I, _U8, _U8))
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
            _copy_4(out, (top // 2 + k) * row_bytes + 3 * (x - k), means, 6 * k)
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
    chosen = np.zeros((5, _LANES), np.int16)
    means = np.zeros(_PITCH, np.uint8)
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        if top:
            for x in range(width):
                above = (x + ROWS + 1) * _PITCH + _LANES
                for colour in range(3):
                    steps[(x + 1) * _PITCH + colour] = steps[above + colour]
        for lane in range(_LANES):
            for kind in range(5):
                chosen[kind, lane] = -1 if lane // 3 < rows and raw[(top + lane // 3) * stride] == kind else 0
        _slant(raw, top * stride + 1, stride, width, steps)
        _undo(steps, chosen, width)
        if halve:
            _halved(steps, top, rows, width, means, out)
        else:
            _whole(steps, top, rows, width, out)

"""GIF's LZW: GIF89a, appendix F.

A string of the table is always one that was written before, with the byte behind it. So the table holds where in the
output it stands, and a code is a copy of what lies there.
"""

from __future__ import annotations

import numpy as np
from numba import types

from curation.compiled import compiled
from curation.lanes import copy_8

_MOST_BITS = 12
_CODES = 1 << _MOST_BITS
SLACK_BYTES = _CODES + 8
"""How much memory must follow the pixels: the last string may go on behind them, and is copied 8 bytes at a time."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


@compiled(types.boolean(_BYTES, types.intp, types.intp, types.intp, types.uint8[::1]))
def unpacked(data: np.ndarray, start: int, bits: int, n_pixels: int, out: np.ndarray) -> bool:
    """Unpack a frame; False where the data end before it is whole or hold a code that has no meaning yet.

    data   uint8: the file
    start  where in it the frame's first block begins
    bits   of a pixel, at most 8
    out    uint8: the pixels' indices, in the order in which they are stored, and SLACK_BYTES of anything
    """
    stream = np.empty(len(data) - start + 8, np.uint8)  # the blocks without their lengths
    n_bits = 0
    while start < len(data) and data[start] and start + data[start] < len(data):
        for n in range(data[start]):
            stream[n_bits // 8 + n] = data[start + 1 + n]
        n_bits += 8 * data[start]
        start += 1 + data[start]
    clear = 1 << bits
    places, lengths = np.zeros(_CODES, np.int32), np.ones(_CODES, np.int32)
    width, free = bits + 1, clear + 2
    last_at, last_length = 0, 0  # of the string before; none after a clear code
    word = np.zeros(1, np.uint64)
    at, bit = 0, 0
    while at < n_pixels:
        if bit + width > n_bits:
            return False
        copy_8(word.view(np.uint8), 0, stream, bit >> 3)
        code = np.int64(word[0] >> np.uint64(bit & 7)) & ((1 << width) - 1)
        bit += width
        if code == clear:
            width, free, last_length = bits + 1, clear + 2, 0
            continue
        if code == clear + 1 or code > free or (not last_length and code > clear):
            return False
        if last_length and free < _CODES:
            places[free], lengths[free] = last_at, last_length + 1
            if free == (1 << width) - 1 and width < _MOST_BITS:
                width += 1
            free += 1
        length = lengths[code]
        if code < clear:
            out[at] = code
            length = 1
        elif places[code] + length > at:  # the string before and its own first byte, which is written only now
            for n in range(length):
                out[at + n] = out[places[code] + n]
        else:
            for n in range(0, length, 8):
                copy_8(out, at + n, out, places[code] + n)
        last_at, last_length = at, length
        at += length
    return True

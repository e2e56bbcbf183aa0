"""A picture's 32 x 32 grey version for its hash, as Pillow makes it, bit for bit, in a fraction of the time."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from curation.compiled import compiled, part

SIDE = 32
_BITS = 22  # of fraction, in the weights of 8-bit samples
_LOBES = 3.0
_TAPS = 32  # weights stand in multiples of it, zeros behind them: what SIMD leaves over takes as long as the rest
_RED, _GREEN, _BLUE, _HALF = np.uint32(19595), np.uint32(38470), np.uint32(7471), np.uint32(1 << 15)
_WEIGHTS = types.Tuple((types.int32[:, ::1], types.int64[::1], types.int64[::1]))
_RGB = types.Array(types.uint8, 3, "C", readonly=True)


@part
def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x != 0.0 else 1.0


@compiled(_WEIGHTS(types.intp))
def lanczos(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lanczos weights that bring so many samples to SIDE, and the first sample and the number of them for each."""
    scale = length / SIDE
    stretch = max(scale, 1.0)
    support = _LOBES * stretch
    weights = np.zeros((SIDE, -(-(math.ceil(support) * 2 + 1) // _TAPS) * _TAPS), np.int32)
    firsts, counts = np.empty(SIDE, np.int64), np.empty(SIDE, np.int64)
    exact = np.empty(weights.shape[1], np.float64)
    for at in range(SIDE):
        centre = (at + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), length) - first
        total = 0.0
        for n in range(count):
            x = (n + first - centre + 0.5) * (1.0 / stretch)
            exact[n] = _sinc(x) * _sinc(x / _LOBES) if -_LOBES <= x < _LOBES else 0.0
            total += exact[n]
        for n in range(count):
            share = exact[n] / total if total != 0.0 else exact[n]
            weights[at, n] = int(share * (1 << _BITS) + (0.5 if share >= 0 else -0.5))
        firsts[at], counts[at] = first, count
    return weights, firsts, counts


@part
def _rounded(total: np.int32) -> np.uint8:
    value = total >> _BITS
    return np.uint8(0 if value < 0 else 255 if value > 255 else value)


@compiled(types.uint8[:, ::1](_RGB, *_WEIGHTS.types, *_WEIGHTS.types))
def grey_32(
    pixels: np.ndarray,
    across: np.ndarray,
    lefts: np.ndarray,
    _widths: np.ndarray,
    down: np.ndarray,
    tops: np.ndarray,
    heights: np.ndarray,
) -> np.ndarray:
    """Luma (ITU-R 601-2) of a picture at 32 x 32: columns first, then rows, rounded after either.

    pixels   uint8 (h, w, 3) RGB, both sides longer than 32
    others   of lanczos(w) and lanczos(h)
    returns  uint8 (32, 32)
    """
    height, width = pixels.shape[:2]
    taps = across.shape[1]
    narrow = np.empty((height, SIDE), np.uint8)
    luma = np.zeros(width + taps, np.int32)
    for y in range(height):
        row = pixels[y].reshape(-1)
        for x in range(width):
            warm = np.uint32(row[3 * x]) * _RED + np.uint32(row[3 * x + 1]) * _GREEN
            luma[x] = np.uint32(warm + np.uint32(row[3 * x + 2]) * _BLUE + _HALF) >> np.uint32(16)
        for at in range(SIDE):
            part, share = luma[lefts[at] : lefts[at] + taps], across[at]
            total = np.int32(1 << (_BITS - 1))
            for n in range(taps):
                total = np.int32(total + np.int32(part[n] * share[n]))
            narrow[y, at] = _rounded(total)
    small = np.empty((SIDE, SIDE), np.uint8)
    sums = np.empty(SIDE, np.int32)
    for at in range(SIDE):
        sums[:] = 1 << (_BITS - 1)
        for n in range(heights[at]):
            row, share_of_row = narrow[tops[at] + n], down[at, n]
            for x in range(SIDE):
                sums[x] = np.int32(sums[x] + np.int32(np.int32(row[x]) * share_of_row))
        for x in range(SIDE):
            small[at, x] = _rounded(sums[x])
    return small

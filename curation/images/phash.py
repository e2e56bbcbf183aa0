"""Perceptual hash of pictures, equal to imagehash.phash bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

PHASH = "imagehash.phash-8x8/4.3"
"""Algorithm and version, for receipts: hashes of other makers (imagededup, PDQ) are not comparable."""

_SIDE, _KEPT = 32, 8
_LEAST_PX = 64
_KEPT_WEIGHTS = 256  # a few KB each
_Weights = tuple[np.ndarray, np.ndarray, np.ndarray]
_PLAIN_BITS = 14
"""A photograph's hash has 32 bits set: half of the coefficients lie above the median (410 of 410 pictures of Flickr8k).
Stripes, flags and gradients along an axis have most coefficients at zero, thus at the median, and 3 to 6 bits set: of
100 drawn at random 76 % of the pairs lie within 4 bits. Patterns mirrored both ways: 5 to 13, 7 % of the pairs."""


def phash(pixels: np.ndarray) -> tuple[str, float]:
    """Hash and spread of a picture.

    pixels   uint8 (h, w, 3) RGB or (h, w) grey
    returns  16 hex digits; standard deviation of the 32x32 grey picture, 0 (flat) to 127.5
    source   imagehash 4.x: L, 32x32 Lanczos, DCT-II of columns then rows, top-left 8x8 with DC, bit = coefficient >
             median, row-major

    Where phash_kernel is loaded, it makes the 32x32 picture.
    """
    from scipy import fftpack  # 0.3 s that only a task that decodes pictures should pay

    grey = _grey_32(pixels)
    # scipy's own transform, not a matrix product: on flat rows the sign of a rounding error decides a bit
    dct = fftpack.dct(fftpack.dct(grey, axis=0), axis=1)[:_KEPT, :_KEPT]
    middle = np.sort(dct, axis=None)[_KEPT**2 // 2 - 1 : _KEPT**2 // 2 + 1]  # as numpy's median, without its overhead
    bits = (dct > (middle[0] + middle[1]) / 2).ravel()
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}", float(grey.std())


def _grey_32(pixels: np.ndarray) -> np.ndarray:
    kernel = sys.modules.get("curation.images.phash_kernel")
    height, width = pixels.shape[:2]
    # of others Pillow may shrink the rows first, and may choose otherwise in another version
    if kernel and pixels.ndim == 3 and min(width, height) >= _LEAST_PX and 2 * height <= 3 * width:
        across, down = _weights(kernel.lanczos, width), _weights(kernel.lanczos, height)
        small: np.ndarray = kernel.grey_32(np.ascontiguousarray(pixels), *across, *down)
        return small
    return np.asarray(Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))


@lru_cache(maxsize=_KEPT_WEIGHTS)
def _weights(lanczos: Callable[[int], _Weights], length: int) -> _Weights:
    return lanczos(length)


def plain(hashes: np.ndarray) -> np.ndarray:
    """Which hashes say so little that unlike pictures share them: uint64 (n,) -> bool (n,)."""
    return np.asarray(np.bitwise_count(hashes) < _PLAIN_BITS)

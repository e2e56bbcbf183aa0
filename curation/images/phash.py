"""Perceptual hash of pictures, equal to imagehash.phash bit for bit."""

from __future__ import annotations

import numpy as np
from PIL import Image

PHASH = "imagehash.phash-8x8/4.3"
"""Algorithm and version, for receipts: hashes of other makers (imagededup, PDQ) are not comparable."""

_SIDE, _KEPT = 32, 8


def phash(pixels: np.ndarray) -> tuple[str, float]:
    """Hash and spread of a picture.

    pixels   uint8 (h, w, 3) RGB or (h, w) grey
    returns  16 hex digits; standard deviation of the 32x32 grey picture, 0 (flat) to 127.5
    source   imagehash 4.x: L, 32x32 Lanczos, DCT-II of columns then rows, top-left 8x8 with DC, bit = coefficient >
             median, row-major
    """
    from scipy import fftpack  # 0.3 s that only a task that decodes pictures should pay

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    # scipy's own transform, not a matrix product: on flat rows the sign of a rounding error decides a bit
    dct = fftpack.dct(fftpack.dct(grey, axis=0), axis=1)[:_KEPT, :_KEPT]
    bits = (dct > np.median(dct)).ravel()
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}", float(grey.std())

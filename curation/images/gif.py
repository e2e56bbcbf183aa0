"""Plain GIF decoded in less time than by Pillow; what is not plain, or not whole, is left to it."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

_MOST_BITS = 8
_PASSES = ((0, 8), (4, 8), (2, 4), (1, 2))  # first row and step of an interlaced picture's passes: GIF89a, appendix E


def decode_gif(picture: Image.Image, data: bytes) -> Image.Image | None:
    """The first frame as Pillow loads it, of mode P; None where it is of another kind, or damaged.

    None also where gif_kernel is not loaded, as of PNG.

    picture  opened by Pillow, not loaded
    """
    kernel = sys.modules.get("curation.images.gif_kernel")
    if not kernel or picture.format != "GIF" or picture.mode != "P" or len(picture.tile) != 1:  # type: ignore[attr-defined]
        return None
    _, extents, start, (bits, interlaced, transparent) = picture.tile[0]  # type: ignore[attr-defined]
    width, height = picture.size
    if extents != (0, 0, width, height) or bits > _MOST_BITS or transparent != -1 or "transparency" in picture.info:
        return None
    indices = np.empty(width * height + kernel.SLACK_BYTES, np.uint8)
    if not kernel.unpacked(np.frombuffer(data, np.uint8), start, bits, width * height, indices):
        return None
    rows = indices[: width * height].reshape(height, width)
    if interlaced:
        order = [row for first, step in _PASSES for row in range(first, height, step)]
        rows, packed = np.empty_like(rows), rows
        rows[order] = packed
    decoded = Image.fromarray(rows)
    assert picture.palette is not None
    mode, colours = picture.palette.getdata()
    decoded.putpalette(colours, mode)
    return decoded

"""Plain PNG decoded in less time than by the codecs at hand; what is not plain, or not whole, is left to them."""

from __future__ import annotations

import sys
from typing import NamedTuple

import imagecodecs
import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8 = b"\x08\x02\0\0\0"  # bits, colour type, compression, filter method, not interlaced
_FILTERS = 5


class Chunk(NamedTuple):
    """Where a chunk lies: `start` and `end` of its data."""

    kind: bytes
    start: int
    end: int


def chunks(data: bytes) -> list[Chunk] | None:
    """The chunks up to IEND, by their lengths alone; None when they do not add up to a file."""
    found = []
    at = len(_SIGNATURE)
    while data.startswith(_SIGNATURE) and at + 12 <= len(data):
        chunk = Chunk(data[at + 4 : at + 8], at + 8, at + 8 + int.from_bytes(data[at : at + 4], "big"))
        at = chunk.end + 4
        if at > len(data):
            return None
        found.append(chunk)
        if chunk.kind == b"IEND":
            return found
    return None


def decode_png(data: bytes, *, halve: bool = False) -> np.ndarray | None:
    """Pixels of a PNG of 8-bit RGB, uint8 (h, w, 3); None where it is of another kind, or damaged.

    None also where png_kernel is not loaded, which takes a second: a process that decodes many pictures imports it.

    Lengths, the checksum of every chunk and that of the pixels must be right.

    halve  average 2 x 2 pixels, as cv2.INTER_AREA does, before anything else holds the picture
    """
    kernel = sys.modules.get("curation.images.png_kernel")
    parts = chunks(data) if kernel else None
    if not kernel or not parts or parts[0].kind != b"IHDR" or data[24:29] != _RGB_8 or parts[0].end != 29:
        return None
    view = memoryview(data)
    pieces: list[memoryview] = []
    for at, (kind, start, end) in enumerate(parts):
        if imagecodecs.deflate_crc32(data[start - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if kind == b"IDAT":
            if pieces and parts[at - 1].kind != b"IDAT":
                return None
            pieces.append(view[start:end])
        elif kind not in (b"IHDR", b"PLTE", b"IEND") and not kind[0] & 32:
            return None  # a chunk that must be understood
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    slack = kernel.ROWS * (3 * width + 1) + kernel.SLACK_BYTES
    rows = _inflated(b"".join(pieces), width, height, slack) if width and height else None
    if rows is None:
        return None
    shape = (height // 2, width // 2, 3) if halve else (height, width, 3)
    out = np.empty(shape, np.uint8)
    kernel.unfiltered(rows, width, height, halve, out.reshape(-1))
    return out


def _inflated(stream: bytes, width: int, height: int, slack: int) -> np.ndarray | None:
    """Filtered rows, with so much room behind them."""
    stride = 3 * width + 1
    rows = np.empty(height * stride + slack, np.uint8)
    try:
        inflated = imagecodecs.deflate_decode(stream, raw=False, out=rows.data[: height * stride])
    except imagecodecs.DeflateError:
        return None
    whole = len(inflated) == height * stride
    return rows if whole and rows[: height * stride : stride].max() < _FILTERS else None

"""Plain PNG: the same pixels as Pillow's, and nothing at all of a file that is not plain or not whole."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curation.images import png_kernel  # noqa: F401  what is compiled at the first picture is not timed
from curation.images.png import chunks, decode_png

FILTERS = 5


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: np.ndarray, *, pieces: int = 1, head: bytes = b"\x08\x02\0\0\0", extra: bytes = b"") -> bytes:
    """A file of filtered rows, uint8 (h, 1 + 3 * w)."""
    stream = zlib.compress(rows.tobytes())
    step = -(-len(stream) // pieces)
    size = struct.pack(">II", (rows.shape[1] - 1) // 3, rows.shape[0])
    data = b"".join(chunk(b"IDAT", stream[at : at + step]) for at in range(0, len(stream), step))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + head) + extra + data + chunk(b"IEND", b"")


def filtered(width: int, height: int, seed: int) -> np.ndarray:
    """Rows of noise, each with a filter of its own."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (height, 1 + 3 * width), np.uint8)
    rows[:, 0] = random.integers(0, FILTERS, height)
    return rows


GOOD = png(filtered(20, 33, 1), pieces=3)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1 << 32), st.integers(1, 4))
def test_pixels_are_those_of_pillow_and_halves_those_of_opencv(width: int, height: int, seed: int, pieces: int) -> None:
    data = png(filtered(width, height, seed), pieces=pieces)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    found = decode_png(data)
    assert found is not None
    assert np.array_equal(found, expected)
    if min(width, height) > 1:
        even = expected[: height // 2 * 2, : width // 2 * 2]
        half = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        assert np.array_equal(decode_png(data, halve=True), half)


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 20, 100, len(GOOD) - 30, len(GOOD) - 8, len(GOOD)])
def test_of_a_file_that_is_cut_off_nothing_is_decoded(cut: int) -> None:
    assert decode_png(GOOD[:-cut]) is None


def test_every_byte_but_those_behind_the_end_counts() -> None:
    plain = decode_png(GOOD)
    assert plain is not None
    assert np.array_equal(decode_png(GOOD + b"behind"), plain)
    for at in range(len(GOOD)):
        damaged = GOOD[:at] + bytes([GOOD[at] ^ 4]) + GOOD[at + 1 :]
        assert decode_png(damaged) is None, at


@pytest.mark.parametrize(
    "rows",
    [
        np.full((3, 10), 5, np.uint8),  # there is no filter 5
        np.zeros((0, 10), np.uint8),
    ],
    ids=["filter", "no-rows"],
)
def test_rows_that_are_wrong_are_left_to_others(rows: np.ndarray) -> None:
    assert decode_png(png(rows)) is None


@pytest.mark.parametrize("n_bytes", [0, 29, 31, 3000])
def test_a_stream_of_another_length_than_the_header_says_is_left_to_others(n_bytes: int) -> None:
    stream = chunk(b"IDAT", zlib.compress(bytes(n_bytes)))
    head = chunk(b"IHDR", struct.pack(">II", 3, 3) + b"\x08\x02\0\0\0")
    data = b"\x89PNG\r\n\x1a\n" + head + stream + chunk(b"IEND", b"")
    assert decode_png(data) is None


@pytest.mark.parametrize(
    "head",
    [b"\x10\x02\0\0\0", b"\x08\0\0\0\0", b"\x08\x06\0\0\0", b"\x08\x03\0\0\0", b"\x08\x02\0\0\1"],
    ids=["16-bit", "grey", "rgba", "palette", "interlaced"],
)
def test_other_kinds_are_left_to_others(head: bytes) -> None:
    assert decode_png(png(filtered(9, 9, 2), head=head)) is None


def test_chunks_that_may_be_ignored_are_and_others_are_not() -> None:
    rows = filtered(9, 9, 3)
    assert decode_png(png(rows, extra=chunk(b"gAMA", bytes(4)))) is not None
    assert decode_png(png(rows, extra=chunk(b"NEWX", b""))) is None
    assert decode_png(png(rows, extra=chunk(b"gAMA", bytes(4))[:-1] + b"x")) is None


def test_chunks_are_found_by_their_lengths() -> None:
    found = chunks(GOOD)
    assert found is not None
    assert [part.kind for part in found] == [b"IHDR", b"IDAT", b"IDAT", b"IDAT", b"IEND"]
    assert chunks(b"GIF89a" + GOOD[6:]) is None
    assert chunks(GOOD[:-12]) is None

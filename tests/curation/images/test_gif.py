"""Plain GIF: the same picture as Pillow's, and nothing at all of a file that is not plain or not whole."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curation.images import gif_kernel  # noqa: F401  what is compiled at the first picture is not timed
from curation.images.gif import decode_gif


def picture(width: int, height: int, colours: int, seed: int, grain: int = 1) -> Image.Image:
    """Squares of `grain` pixels in random colours of a random palette."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, colours, (-(-height // grain), -(-width // grain)), np.uint8)
    made = Image.fromarray(drawn.repeat(grain, 0).repeat(grain, 1)[:height, :width])
    made.putpalette(random.integers(0, 256, 3 * colours, np.uint8).tobytes())
    return made


def gif(made: Image.Image, **settings: object) -> bytes:
    out = io.BytesIO()
    made.save(out, "GIF", **settings)
    return out.getvalue()


def rgb(made: Image.Image) -> np.ndarray:
    return np.asarray(made.convert("RGB"))


def decoded(data: bytes) -> Image.Image | None:
    return decode_gif(Image.open(io.BytesIO(data)), data)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([2, 3, 4, 7, 60, 256]),
    st.integers(0, 1 << 32),
    st.sampled_from([1, 3, 50]),
    st.booleans(),
)
def test_pixels_are_those_of_pillow(
    width: int, height: int, colours: int, seed: int, grain: int, interlaced: bool
) -> None:
    data = gif(picture(width, height, colours, seed, grain), interlace=interlaced)
    expected = Image.open(io.BytesIO(data))
    found = decoded(data)
    if expected.mode == "L":  # of greys alone: left to Pillow
        assert found is None
    else:
        assert found is not None
        assert found.mode == expected.mode
        assert np.array_equal(rgb(found), rgb(expected))


def test_a_table_that_is_full_and_cleared_many_times_is_read_as_pillow_does() -> None:
    data = gif(picture(400, 300, 256, 1))
    found = decoded(data)
    assert found is not None
    assert np.array_equal(rgb(found), rgb(Image.open(io.BytesIO(data))))


def test_of_a_file_that_is_cut_off_nothing_is_decoded() -> None:
    data = gif(picture(40, 30, 256, 2))
    start = Image.open(io.BytesIO(data)).tile[0].offset
    for end in range(start, len(data) - 4):  # the last code, the empty block and the trailer say nothing of pixels
        assert decode_gif(Image.open(io.BytesIO(data)), data[:end]) is None, end


def test_what_damage_leaves_readable_reads_as_with_pillow() -> None:
    data = gif(picture(40, 30, 16, 3))
    start = Image.open(io.BytesIO(data)).tile[0].offset
    readable = 0
    for at in range(start, len(data)):
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        found = decoded(damaged)
        if found is not None:
            readable += 1
            assert np.array_equal(rgb(found), rgb(Image.open(io.BytesIO(damaged))))
    assert readable


@pytest.mark.parametrize("settings", [{"transparency": 3}, {"save_all": True, "append_images": []}])
def test_transparent_frames_are_left_to_pillow(settings: dict[str, object]) -> None:
    assert (decoded(gif(picture(20, 20, 16, 4), **settings)) is None) == ("transparency" in settings)


def test_frames_smaller_than_the_picture_are_left_to_pillow() -> None:
    data = bytearray(gif(picture(20, 20, 16, 5)))
    data[6] = 25  # the picture's width
    assert decoded(bytes(data)) is None

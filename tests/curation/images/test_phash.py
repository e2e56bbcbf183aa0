from pathlib import Path

import imagehash
import numpy as np
import pytest
import skimage.data
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from curation.images import phash_kernel  # noqa: F401  what is compiled at the first picture is not timed
from curation.images.phash import PHASH, phash, plain

# the pictures that come with scikit-image
PICTURES = sorted(path for path in Path(skimage.data.__path__[0]).iterdir() if path.suffix in (".png", ".jpg", ".gif"))
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70), st.just(3)) | st.tuples(
    st.integers(1, 70), st.integers(1, 70)
)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_equal_to_imagehash_on_pictures(path: Path) -> None:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert phash(pixels)[0] == str(imagehash.phash(Image.fromarray(pixels)))


@given(hnp.arrays(np.uint8, SHAPES))
@example(np.zeros((5, 5, 3), np.uint8))
@example(np.full((64, 64), 255, np.uint8))
def test_equal_to_imagehash_on_any_pixels(pixels: np.ndarray) -> None:
    assert phash(pixels)[0] == str(imagehash.phash(Image.fromarray(pixels)))


@given(st.integers(60, 400), st.integers(60, 400), st.integers(0, 1 << 32), st.sampled_from([1, 37, 255]))
@example(256, 384, 0, 255)
@example(384, 256, 0, 255)
@example(64, 96, 0, 1)
@example(64, 97, 0, 1)
def test_equal_to_imagehash_at_the_sizes_that_are_hashed(width: int, height: int, seed: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    pixels = (random.integers(0, steps + 1, (height, width, 3)) * (255 // steps)).astype(np.uint8)
    assert phash(pixels)[0] == str(imagehash.phash(Image.fromarray(pixels)))


def test_pixels_that_may_not_be_written_or_lie_apart_are_hashed_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    apart = np.flip(pixels[:, ::-1], axis=1)
    fixed = pixels.copy()
    fixed.flags.writeable = False
    assert phash(fixed) == phash(apart) == phash(pixels)


def test_spread_is_zero_for_flat_pictures_and_large_for_contrast() -> None:
    assert phash(np.full((50, 50, 3), 77, np.uint8))[1] == 0
    halves = np.zeros((64, 64), np.uint8)
    halves[:, 32:] = 255
    assert phash(halves)[1] == pytest.approx(127.5, abs=2)


def test_the_receipt_names_the_version_that_was_compared() -> None:
    assert "imagehash.phash-8x8/" + ".".join(imagehash.__version__.split(".")[:2]) == PHASH


def test_stripes_say_too_little_and_photographs_enough() -> None:
    stripes = np.repeat(np.array([200, 40, 90], np.uint8), 100)
    across, along = (np.broadcast_to(s, (300, 300)).copy() for s in (stripes[:, None], stripes[None, :]))
    photographs = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.camera()]
    hashes = np.array([int(phash(one)[0], 16) for one in (across, along, *photographs)], np.uint64)
    assert plain(hashes).tolist() == [True, True, False, False, False]
    assert plain(hashes[:0]).tolist() == []

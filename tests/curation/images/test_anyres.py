"""Grids and token counts: vectors worked out by hand from the formulas, and LLaVA-NeXT's processor as a witness."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.images.anyres import GRIDS, PINPOINTS, SIDE, choose_grid, fitted_size, layout, views

SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("size", "grid", "features", "unpadded", "flat"),
    [
        ((336, 336), (1, 2), (24, 24), 1176, 1728),  # all pinpoints hold its pixels: the first of least waste
        ((300, 200), (1, 2), (16, 24), 976, 1728),
        ((640, 480), (2, 2), (36, 48), 2340, 2880),
        ((480, 640), (2, 2), (48, 36), 2352, 2880),  # turned by 90 degrees: other rows, other newlines
        ((672, 672), (2, 2), (48, 48), 2928, 2880),
        ((1920, 1080), (2, 2), (28, 48), 1948, 2880),
        ((2000, 400), (3, 1), (14, 72), 1598, 2304),
    ],
)
def test_best_resolution_by_hand(
    size: tuple[int, int], grid: tuple[int, int], features: tuple[int, int], unpadded: int, flat: int
) -> None:
    assert layout(size) == (grid, features, flat, unpadded)


@pytest.mark.parametrize(
    ("size", "grid", "flat"),
    [((500, 500), (1, 1), 1152), ((300, 200), (3, 2), 4032), ((200, 310), (2, 3), 4032), ((900, 300), (3, 1), 2304)],
)
def test_nearest_aspect_by_hand(size: tuple[int, int], grid: tuple[int, int], flat: int) -> None:
    found = layout(size, rule="nearest_aspect")
    assert (found.grid, found.flat) == (grid, flat)


def test_flat_counts_of_the_paper() -> None:
    counts = [layout((grid[0] * 336, grid[1] * 336), grids=[grid]).flat for grid in ((1, 1), (2, 2), (3, 2))]
    assert counts == [1152, 2880, 4032]


@pytest.mark.shared
def test_golden_vectors(shared: Path) -> None:
    golden = json.loads((shared / "data" / "anyres_golden.json").read_text())
    assert [(w // SIDE, h // SIDE) for w, h in golden["pinpoints"]] == list(PINPOINTS)
    assert len(golden["cases"]) == 16
    for case in golden["cases"]:
        size = (case["size"][0], case["size"][1])
        found = layout(size)
        assert [side * SIDE for side in found.grid] == case["best"]
        assert list(found.features) == case["feat_hw"]
        assert (found.unpadded, found.flat) == (case["tokens_unpad_newline"], case["tokens_flat"])
        nearest = choose_grid(size, rule="nearest_aspect", grids=PINPOINTS)
        assert [side * SIDE for side in nearest] == case["naive_aspect"]


def test_several_images_turn_anyres_off() -> None:
    assert layout((1920, 1080), images=3) == ((0, 0), (24, 24), 576, 576)


def test_a_map_of_too_many_tokens_is_shrunk() -> None:
    grids = [(columns, rows) for columns in range(1, 7) for rows in range(1, 7)]
    whole = layout((2304, 2304), grids=grids, side=384, patch=16)
    assert (whole.grid, whole.features) == ((6, 6), (144, 144))
    shrunk = layout((2304, 2304), grids=grids, side=384, patch=16, max_views=9)
    assert shrunk.features == (72, 72)  # 9 views of 24 x 24
    assert shrunk.unpadded == 576 + 72 * 73
    assert layout((672, 672), max_views=4) == layout((672, 672))


@given(SIDES, SIDES, st.sampled_from([(336, 14), (224, 16), (384, 14), (448, 32)]))
def test_tokens_stay_within_the_grid(width: int, height: int, view: tuple[int, int]) -> None:
    side, patch = view
    n = side // patch
    found = layout((width, height), side=side, patch=patch)
    columns, rows = found.grid
    assert 0 <= found.features[0] <= rows * n
    assert 0 <= found.features[1] <= columns * n
    assert found.features[0] == rows * n or found.features[1] == columns * n
    fitted = fitted_size((width, height), (columns * side, rows * side))
    assert fitted[0] == columns * side or fitted[1] == rows * side
    assert all(1 <= a <= b for a, b in zip(fitted, (columns * side, rows * side), strict=True))


def test_the_whole_comes_first_and_tiles_go_row_by_row() -> None:
    image = np.zeros((56, 28, 3), np.uint8)
    image[:28], image[28:] = 50, 200
    whole, upper, lower = views(image, (1, 2), side=28)
    assert (upper == 50).all()
    assert (lower == 200).all()
    assert set(np.unique(whole[[0, -1]])) == {50, 200}
    padded = views(np.full((28, 28, 3), 255, np.uint8), (1, 2), side=28)
    assert (padded[1, :14] == 0).all()
    assert (padded[1, 14:] == 255).all()
    assert (padded[2, 14:] == 0).all()
    assert views(image, (0, 0), side=28).shape == (1, 28, 28, 3)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_no_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 x 1"):
        layout(size)


def test_transformers_counts_the_same() -> None:
    pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size = 14
    for width, height in np.random.default_rng(0).integers(100, 2500, (3000, 2)).tolist():
        (columns, rows), features, _, unpadded = layout((width, height))
        kept, newlines = processor._get_unpadded_features(height, width, 24, 24, rows, columns)
        assert (kept, newlines) == (features[0] * features[1], features[0]), (width, height)
        assert unpadded == 576 + kept + newlines


def test_eight_grids() -> None:
    assert len(set(GRIDS)) == 8
    assert max(columns * rows for columns, rows in GRIDS) == 6

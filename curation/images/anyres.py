"""AnyRes: a large picture as one view of the whole and a grid of tiles, and the visual tokens that it costs.

Source: Liu et al. 2024 (LLaVA-NeXT); the first release's pinpoints for a CLIP ViT-L/14 at 336 px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Rule = Literal["best_resolution", "nearest_aspect"]
Size = tuple[int, int]
"""Width and height; of a grid columns and rows."""

SIDE, PATCH = 336, 14  # 24 x 24 = 576 tokens a view
GRIDS: tuple[Size, ...] = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2))
"""What `nearest_aspect` chooses from; up to 6 tiles, 4,032 flat tokens."""
PINPOINTS: tuple[Size, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's own choice for `best_resolution`, in its order, which decides ties."""
_LEAST_SHRINKAGE = 1.1  # anyres_max_M leaves a map alone that is at most this much too long on a side


class Layout(NamedTuple):
    """How a picture is cut and what it costs.

    grid      columns and rows of tiles beside the view of the whole; (0, 0) where AnyRes is off
    features  rows and columns of the tiles' feature map once its padding is cut away
    flat      tokens of all views as they are: n * n * (1 + tiles)
    unpadded  tokens as LLaVA-NeXT counts: the whole, and the unpadded map with a newline a row
    """

    grid: Size
    features: Size
    flat: int
    unpadded: int


class Choice(NamedTuple):
    """How a grid is chosen for a picture; grids: columns and rows, empty for those of the model or the rule."""

    rule: Rule = "best_resolution"
    grids: tuple[Size, ...] = ()


def layout(
    size: Size,
    *,
    rule: Rule = "best_resolution",
    grids: Sequence[Size] = (),
    side: int = SIDE,
    patch: int = PATCH,
    max_views: int | None = None,
    images: int = 1,
) -> Layout:
    """Grid and token counts of a picture.

    size       width and height [px]
    grids      to choose from; empty: PINPOINTS for best_resolution, GRIDS for nearest_aspect
    side       of a view [px]     patch   of the vision transformer [px]
    max_views  M of anyres_max_M: a map of more tokens than M views is shrunk to about M; None: never
    images     in the sample: of several each is one view, without tiles
    raises     ValueError for a size below 1, or a side below a patch
    """
    n = side // patch
    if min(size) < 1 or n < 1:
        raise ValueError(f"expected a picture of at least 1 x 1 px and a view of a patch, found {size}, {side}/{patch}")
    if images > 1:
        return Layout((0, 0), (n, n), n * n, n * n)
    grid = choose_grid(size, rule=rule, grids=grids, side=side)
    rows, columns = _unpadded(size, (grid[0] * n, grid[1] * n))
    if max_views is not None:
        shrinkage = math.sqrt(rows * columns / (max_views * n * n))
        if shrinkage > _LEAST_SHRINKAGE:
            rows, columns = int(rows / shrinkage), int(columns / shrinkage)
    return Layout(grid, (rows, columns), n * n * (1 + grid[0] * grid[1]), n * n + rows * (columns + 1))


def choose_grid(size: Size, *, rule: Rule = "best_resolution", grids: Sequence[Size] = (), side: int = SIDE) -> Size:
    """Columns and rows for a picture; where several are as good the first of `grids`.

    best_resolution   most of the picture's own pixels, then fewest wasted ones
    nearest_aspect    width / height nearest to the picture's
    """
    width, height = size
    if rule == "nearest_aspect":
        return min(grids or GRIDS, key=lambda grid: abs(grid[0] / grid[1] - width / height))

    def loss(grid: Size) -> tuple[int, int]:
        target = (grid[0] * side, grid[1] * side)
        scale = min(target[0] / width, target[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return -effective, target[0] * target[1] - effective

    return min(grids or PINPOINTS, key=loss)


def views(image: np.ndarray, grid: Size, side: int = SIDE) -> np.ndarray:
    """The whole picture first, then its tiles row by row.

    image    uint8 (h, w, 3), RGB     returns  uint8 (1 + columns * rows, side, side, 3)

    The whole is stretched to a square, as LLaVA-NeXT was trained; for the tiles the picture keeps its aspect and stands
    in the middle of black.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    made = [np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))]
    if grid != (0, 0):
        fitted = fitted_size(picture.size, (grid[0] * side, grid[1] * side))
        canvas = np.zeros((grid[1] * side, grid[0] * side, 3), np.uint8)
        left, top = (canvas.shape[1] - fitted[0]) // 2, (canvas.shape[0] - fitted[1]) // 2
        scaled = np.asarray(picture.resize(fitted, Image.Resampling.BICUBIC))
        canvas[top : top + fitted[1], left : left + fitted[0]] = scaled
        cut = canvas.reshape(grid[1], side, grid[0], side, 3).swapaxes(1, 2)
        made += list(cut.reshape(-1, side, side, 3))
    return np.stack(made)


def fitted_size(size: Size, target: Size) -> Size:
    """Width and height of a picture once it fits into the target; the side that has room to spare is rounded up."""
    (width, height), (wide, high) = size, target
    if wide * height < high * width:  # the width is what limits it; in whole numbers: no rounding at the border
        return wide, min(-(-height * wide // width), high)
    return min(-(-width * high // height), wide), high


def _unpadded(size: Size, tokens: Size) -> Size:
    """Rows and columns of the tiles' map that show the picture.

    In whole numbers: LLaVA's own floats lose a row now and then, which transformers repaired by rounding.
    """
    (width, height), (columns, rows) = size, tokens
    if width * rows > columns * height:
        return rows - 2 * ((rows - height * columns // width) // 2), columns
    return rows, columns - 2 * ((columns - width * rows // height) // 2)

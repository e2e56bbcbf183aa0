"""From the bytes that the web sent to the picture that is kept, decoded once."""

from __future__ import annotations

import io
import warnings
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from curation.images.phash import phash
from curation.verdicts import Fault

Resize = Literal["keep_ratio", "center_crop", "none"]
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"])
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_SRGB = ImageCms.createProfile("sRGB")
_PHASH_SIDE = 256  # px; every copy of a picture is hashed at about the same scale


class Undecodable(Exception):
    """The bytes give no picture; `fault` says of which kind."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


class Picture(NamedTuple):
    """A decoded picture: original size and format, what is kept of it, its hash."""

    image: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    original_format: str
    phash: str
    phash_spread: float


def decode_picture(
    data: bytes,
    *,
    side_px: int = 256,
    resize: Resize = "keep_ratio",
    image_format: str = "jpeg",
    quality: int = 92,
    max_pixels: int = 89_478_484,
) -> Picture:
    """Decode, turn upright, convert to sRGB on white, hash, resize and encode.

    raises  Undecodable with not_an_image (no format of ours), bad_image (the decoder failed, or the file is cut off)
            or image_too_large (the header says so; nothing is decoded then)
    """
    pixels, original_format = _pixels(data, max_pixels)
    height, width = pixels.shape[:2]
    hashed, spread = phash(_shrunk(pixels, _PHASH_SIDE))
    kept = pixels if resize == "none" else _shrunk(pixels, side_px)
    if resize == "center_crop":
        side = min(kept.shape[:2])
        top, left = (kept.shape[0] - side) // 2, (kept.shape[1] - side) // 2
        kept = kept[top : top + side, left : left + side]
    return Picture(
        _encoded(kept, image_format, quality),
        kept.shape[1],
        kept.shape[0],
        width,
        height,
        original_format,
        hashed,
        spread,
    )


def measure_picture(data: bytes, name: str) -> tuple[str, float]:
    """pHash and spread of a picture as the download stage measures them. Raises Undecodable."""
    try:
        pixels, _ = _pixels(data, 10**9)
    except Undecodable as err:
        raise Undecodable(err.fault, f"{name}: {err}") from err
    return phash(_shrunk(pixels, _PHASH_SIDE))


def _pixels(data: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as err:
        raise Undecodable(Fault.IMAGE_TOO_LARGE, str(err)) from err
    except Exception as err:
        known = (
            data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or data[8:12] == b"WEBP"
        )
        raise Undecodable(Fault.BAD_IMAGE if known else Fault.NOT_AN_IMAGE, str(err)) from err
    original_format = str(picture.format).lower()
    if picture.width * picture.height > max_pixels:
        raise Undecodable(Fault.IMAGE_TOO_LARGE, f"{picture.width}x{picture.height} px")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            return np.asarray(_upright_rgb(picture)), original_format
    except Exception as err:  # a decoder may raise anything on hostile bytes; the sample pays, not the shard
        raise Undecodable(Fault.BAD_IMAGE, f"{type(err).__name__}: {err}") from err


def _upright_rgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        flat = Image.new("RGBA", picture.size, "white")
        flat.alpha_composite(picture)
        return flat.convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
        except ImageCms.PyCMSError:
            pass  # a broken profile: the plain conversion is closer than no picture
    if picture.mode in ("I;16", "I;16B", "I", "F"):
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1.0)
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def _shrunk(pixels: np.ndarray, side_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = side_px / min(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _encoded(pixels: np.ndarray, image_format: str, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format.upper(), quality=quality)
    return out.getvalue()


ImageFile.LOAD_TRUNCATED_IMAGES = False

"""From the bytes that the web sent to the picture that is kept, decoded once."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import cv2
import imagecodecs
import kornia_rs.io
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from curation.images import gif, png
from curation.images.phash import phash
from curation.verdicts import Fault

Resize = Literal["keep_ratio", "center_crop", "none"]
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"])
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_SRGB = ImageCms.createProfile("sRGB")
_PHASH_SIDE = 256  # px; every copy of a picture is hashed at about the same scale
_KNOWN = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_EXIF = {name: tag for tag, name in ExifTags.TAGS.items()}
_PNG_EXIF = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # in texts as older writers do: "Raw profile type exif"
_EXIF_CHARS = 200  # of a value
_LARGE_PIXELS = 16 << 20  # from here on a picture is made smaller strip by strip, before anything copies it
_STRIP_PX = 256
_PROFILE_BYTES = 2 << 20  # those of print shops take half a megabyte
_SUBSAMPLING = "420"  # as Pillow's default; 444 makes files a fifth larger

# Our own limit is checked from the header. Both are global to the process, and set here once since
# warnings.catch_warnings around each picture is not safe among threads.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", module=r"PIL\.")


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
    exif: str | None


def decode_picture(
    data: bytes,
    *,
    side_px: int = 256,
    resize: Resize = "keep_ratio",
    image_format: str = "jpeg",
    quality: int = 92,
    max_pixels: int = 89_478_484,
    exif_fields: Sequence[str] = (),
    admit: Callable[[int], None] | None = None,
) -> Picture:
    """Decode, turn upright, convert to sRGB on white, hash, resize and encode.

    exif_fields  names of EXIF tags whose values are kept, as JSON; the stored picture itself carries no metadata
    admit        called with the number of pixels, by the header, before they are decoded
    raises       Undecodable with not_an_image (no format of ours), bad_image (the decoder failed, or the file is cut
                 off) or image_too_large (the header says so and nothing is decoded, or the memory does not suffice)
    """
    opened = _opened(data, max_pixels)
    if admit is not None:
        admit(opened.width * opened.height)
    # pixels first: asked for its orientation, a PNG would load itself and keep silent about a damaged stream
    pixels = _pixels(opened, data, max(side_px, _PHASH_SIDE) if resize != "none" else None)
    width, height = _upright_size(opened)
    original_format = str(opened.format).lower()
    small = _shrunk(pixels, _PHASH_SIDE, (width, height))
    hashed, spread = phash(small)
    if resize == "none":
        kept = pixels
    else:
        kept = small if side_px == _PHASH_SIDE else _shrunk(pixels, side_px, (width, height))
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
        _exif_values(opened, exif_fields),
    )


def measure_picture(data: bytes, name: str) -> tuple[str, float]:
    """pHash and spread of a picture as the download stage measures them. Raises Undecodable."""
    try:
        opened = _opened(data, 10**9)
        pixels = _pixels(opened, data, _PHASH_SIDE)
    except Undecodable as err:
        raise Undecodable(err.fault, f"{name}: {err}") from err
    return phash(_shrunk(pixels, _PHASH_SIDE, _upright_size(opened)))


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as err:  # Pillow's header readers raise anything on hostile bytes
        known = data.startswith(_KNOWN) or data[8:12] == b"WEBP" or data[4:12] in (b"ftypavif", b"ftypavis")
        raise Undecodable(Fault.BAD_IMAGE if known else Fault.NOT_AN_IMAGE, str(err)) from err
    if picture.width * picture.height > max_pixels:
        raise Undecodable(Fault.IMAGE_TOO_LARGE, f"{picture.width}x{picture.height} px")
    if picture.format == "PNG" and not _may_hold_exif(data):
        picture.info.setdefault("exif", b"")  # else Pillow decodes the whole picture to look for it behind the pixels
    return picture


def _may_hold_exif(data: bytes) -> bool:
    parts = png.chunks(data)
    return parts is None or any(part.kind in _PNG_EXIF for part in parts)


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    turned = _orientation(picture) in (5, 6, 7, 8)
    return (picture.height, picture.width) if turned else (picture.width, picture.height)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF says nothing about the pixels
        return 1


def _pixels(picture: Image.Image, data: bytes, side_px: int | None) -> np.ndarray:
    """Upright sRGB pixels, at least side_px on the shorter side or the full size; None asks for the full size."""
    try:
        pixels = _decoded_fast(picture, data, side_px)
        if pixels is not None and "icc_profile" not in picture.info and _orientation(picture) == 1:
            return pixels
        if pixels is None:
            fast = _reduced(_loaded(picture, data), side_px)
        else:
            fast = Image.fromarray(pixels)
            fast.info = _carried(picture)
        return np.asarray(_upright_rgb(fast))
    except MemoryError as err:
        raise Undecodable(Fault.IMAGE_TOO_LARGE, f"{picture.width}x{picture.height} px do not fit in memory") from err
    except Exception as err:  # a decoder may raise anything on hostile bytes; the sample pays, not the shard
        raise Undecodable(Fault.BAD_IMAGE, f"{type(err).__name__}: {err}") from err


def _loaded(picture: Image.Image, data: bytes) -> Image.Image:
    large = picture.width * picture.height >= _LARGE_PIXELS  # Pillow holds its indices once, this up to three times
    decoded = None if large else gif.decode_gif(picture, data)
    if decoded is None:
        picture.load()
        return picture
    decoded.info = _carried(picture)
    return decoded


def _decoded_fast(picture: Image.Image, data: bytes, side_px: int | None) -> np.ndarray | None:
    """Pixels as they lie in the file, uint8 (h, w, 3), where a faster way than Pillow's gives the same; else None.

    A JPEG is scaled to 1/8..8/8 of its size in the DCT domain. Files that these decoders would only read with a
    warning are left to Pillow, which tells an odd file from a cut one.
    """
    if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        try:
            least = side_px or 0
            # what is shrunk anyway loses nothing by the faster transform, which takes a fifth less time
            decoded: np.ndarray = simplejpeg.decode_jpeg(
                data, min_height=least, min_width=least, min_factor=1, fastdct=bool(least)
            )
        except ValueError:
            return None
        return decoded
    if picture.format == "WEBP" and picture.mode == "RGB" and getattr(picture, "n_frames", 1) == 1:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        read: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return read if read is not None and read.shape[1::-1] == picture.size else None
    clear = "transparency" in picture.info
    large = picture.width * picture.height >= _LARGE_PIXELS  # Pillow takes less memory for them, see _reduced
    plain = picture.mode == "P" or data[24:25] == b"\x08"  # bits a sample, by the header
    if picture.format == "PNG" and picture.mode in ("RGB", "L", "P") and plain and not clear and not large:
        try:
            return _decoded_png(picture, data, side_px)
        except Exception:  # kornia-rs has no class of its own
            return None
    return None


def _decoded_png(picture: Image.Image, data: bytes, side_px: int | None) -> np.ndarray | None:
    # no orientation or profile is applied to pixels that were averaged
    plain = "icc_profile" not in picture.info and _orientation(picture) == 1
    halve = plain and side_px is not None and _twice(picture.size, _target(picture.size, side_px))
    rgb = png.decode_png(data, halve=halve)
    if rgb is not None:
        return rgb
    pixels = _decoded_other_png(picture, data)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels if pixels.shape == (picture.height, picture.width, 3) else None


def _decoded_other_png(picture: Image.Image, data: bytes) -> np.ndarray:
    if picture.mode == "P":
        palette: np.ndarray = imagecodecs.spng_decode(data)  # kornia-rs keeps the indices
        return palette
    # 13 ms a photograph where spng takes 22 and Pillow 43
    kind = "rgb" if picture.mode == "RGB" else "mono"
    plain: np.ndarray = kornia_rs.io.decode_image_png_u8(data, (picture.height, picture.width), kind)
    return plain


def _carried(picture: Image.Image) -> dict[str | tuple[int, int], Any]:
    """What _upright_rgb reads of a picture, beside its pixels."""
    exif = Image.Exif()
    exif[0x0112] = _orientation(picture)
    carried: dict[str | tuple[int, int], Any] = {"exif": exif.tobytes()}
    if "icc_profile" in picture.info and picture.mode != "L":
        carried["icc_profile"] = picture.info["icc_profile"]
    return carried


def _reduced(picture: Image.Image, side_px: int | None) -> Image.Image:
    """A picture averaged over whole blocks of pixels, at least side_px on the shorter side, or as it is.

    What follows copies a picture up to three times: 20 ms of a photograph's PNG, and of 89 megapixels of RGBA more
    than a gigabyte. So large ones are taken strip by strip.
    """
    factor = min(picture.size) // side_px if side_px else 1
    deep = picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
    if factor < 2 or deep:
        return picture
    clear = picture.mode == "PA" or "transparency" in picture.info
    mode = "RGBA" if clear else {"1": "L", "P": "RGB", "YCbCr": "RGB"}.get(picture.mode)
    strip_px = factor * _STRIP_PX
    small: Image.Image | None = None
    if picture.width * picture.height < _LARGE_PIXELS:
        small = (picture.convert(mode) if mode else picture).reduce(factor)
    else:
        for top in range(0, picture.height, strip_px):
            strip = picture.crop((0, top, picture.width, min(top + strip_px, picture.height)))
            strip = (strip.convert(mode) if mode else strip).reduce(factor)
            if small is None:
                small = Image.new(strip.mode, (strip.width, -(-picture.height // factor)))
            small.paste(strip, (0, top // factor))
    assert small is not None
    small.info = _carried(picture)
    return small


def _exif_values(picture: Image.Image, fields: Sequence[str]) -> str | None:
    if not fields:
        return None
    try:
        exif = picture.getexif()
        known = dict(exif) | dict(exif.get_ifd(ExifTags.IFD.Exif))
    except Exception:  # broken EXIF has nothing to tell
        return None
    found = {name: known[_EXIF[name]] for name in fields if known.get(_EXIF[name]) is not None}
    return json.dumps({name: _plain(value) for name, value in found.items()}) if found else None


def _plain(value: object) -> str | int | float:
    if isinstance(value, int | float):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).strip("\0 ")[:_EXIF_CHARS]


def _upright_rgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        flat = Image.new("RGBA", picture.size, "white")
        flat.alpha_composite(picture)
        return flat.convert("RGB")
    if profile and len(profile) <= _PROFILE_BYTES and picture.mode in ("RGB", "CMYK", "L"):
        try:
            converted: Image.Image = _to_srgb(profile, picture.mode).apply(picture)
            return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile: the plain conversion is closer than no picture
    if picture.mode in ("I;16", "I;16B", "I", "F"):
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1.0)
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


@lru_cache(maxsize=16)  # a few profiles stand in most pictures, and a transform takes milliseconds to make
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform: ImageCms.ImageCmsTransform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    return transform


def _target(original: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Size (width, height) with the shorter side at most side_px."""
    scale = side_px / min(original)
    if scale >= 1:
        return original
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def _twice(size: tuple[int, int], target: tuple[int, int]) -> bool:
    return size[0] >= 2 * target[0] and size[1] >= 2 * target[1]


def _shrunk(pixels: np.ndarray, side_px: int, original: tuple[int, int]) -> np.ndarray:
    """Pixels with the shorter side at most side_px, in the proportions of the original (width, height).

    Whole halvings first, then bilinear, from 4/3 on cubic at twice the size and averaged: as near to Pillow's Lanczos
    as INTER_AREA alone (mean difference 1.0 to 1.2 levels, 0.9) in a fourth of its time, docs/benchmarks.md.
    """
    size = _target(original, side_px)
    if size == original:
        return pixels
    while _twice((pixels.shape[1], pixels.shape[0]), size):
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    if size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    if 3 * pixels.shape[0] <= 4 * size[1] and 3 * pixels.shape[1] <= 4 * size[0]:
        shrunk: np.ndarray = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        return shrunk
    twice = cv2.resize(pixels, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_CUBIC)
    shrunk = cv2.resize(twice, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _encoded(pixels: np.ndarray, image_format: str, quality: int) -> bytes:
    if image_format == "jpeg":
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorsubsampling=_SUBSAMPLING, fastdct=False
        )
        return encoded
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format.upper(), quality=quality)
    return out.getvalue()

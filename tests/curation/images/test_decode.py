import io
import struct
import zlib

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from curation.images.decode import Picture, Undecodable, decode_picture, measure_picture
from curation.verdicts import Fault

CAT = skimage.data.chelsea()  # 451 x 300
LARGE = np.asarray(Image.fromarray(CAT).resize((1804, 1200), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels_of(picture: Picture) -> np.ndarray:
    with Image.open(io.BytesIO(picture.image)) as kept:
        assert not kept.info.get("exif")
        assert not kept.info.get("icc_profile")
        return np.asarray(kept.convert("RGB"))


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def fault_of(data: bytes, **options: object) -> Fault:
    with pytest.raises(Undecodable) as caught:
        decode_picture(data, **options)
    return caught.value.fault


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_gives_the_same_picture(kind: str) -> None:
    picture = decode_picture(encoded(LARGE, kind))
    assert (picture.original_width, picture.original_height, picture.original_format) == (1804, 1200, kind.lower())
    assert (picture.width, picture.height) == (385, 256)
    expected = decode_picture(encoded(LARGE, "PNG"))
    assert np.abs(pixels_of(picture).astype(int) - pixels_of(expected)).mean() < 6
    assert bits_apart(picture.phash, expected.phash) <= 4


def test_dct_scaling_keeps_the_picture() -> None:
    data = encoded(LARGE, "JPEG", quality=95)
    scaled = pixels_of(decode_picture(data, image_format="png")).astype(int)
    with Image.open(io.BytesIO(data)) as full:
        plain = np.asarray(full.resize((385, 256), Image.Resampling.BOX)).astype(int)
    assert np.abs(scaled - plain).mean() < 2.5


@pytest.mark.parametrize("side", [300, 512, 900])
def test_copies_in_other_sizes_hash_alike(side: int) -> None:
    whole = decode_picture(encoded(LARGE, "JPEG", quality=92))
    copy = Image.fromarray(LARGE).resize((round(side * 1804 / 1200), side), Image.Resampling.LANCZOS)
    assert bits_apart(decode_picture(encoded(copy, "JPEG", quality=75)).phash, whole.phash) <= 4


def test_the_hash_depends_on_no_setting_below_its_own_side_and_is_that_of_evaluation_sets() -> None:
    data = encoded(LARGE, "JPEG")
    hashes = {decode_picture(data, side_px=side, resize=how).phash for side in (64, 256) for how in RESIZES}
    assert hashes == {measure_picture(data, "cat")[0]}


RESIZES = ("keep_ratio", "center_crop")


def test_resize_modes() -> None:
    data = encoded(CAT, "PNG")
    sizes = {how: decode_picture(data, side_px=100, resize=how)[1:3] for how in ("keep_ratio", "center_crop", "none")}
    assert sizes == {"keep_ratio": (150, 100), "center_crop": (100, 100), "none": (451, 300)}
    assert decode_picture(data, side_px=1000)[1:3] == (451, 300)
    assert decode_picture(encoded(LARGE, "JPEG"), resize="none")[1:3] == (1804, 1200)


def test_a_line_of_pixels_survives() -> None:
    for shape in ((1, 5000, 3), (5000, 1, 3), (1, 1, 3)):
        picture = decode_picture(encoded(np.zeros(shape, np.uint8), "PNG"))
        assert (picture.original_height, picture.original_width) == shape[:2]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_output_formats(image_format: str) -> None:
    picture = decode_picture(encoded(CAT, "PNG"), image_format=image_format)
    with Image.open(io.BytesIO(picture.image)) as kept:
        assert kept.format == image_format.upper()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = decode_picture(encoded(LARGE, kind, exif=exif.tobytes()), image_format="png")
    turned = turn >= 5
    assert (picture.original_width, picture.original_height) == ((1200, 1804) if turned else (1804, 1200))
    assert (picture.width, picture.height) == ((256, 385) if turned else (385, 256))
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a),
    }[turn](np.asarray(Image.fromarray(LARGE).resize((385, 256), Image.Resampling.BOX)))
    assert np.abs(pixels_of(picture).astype(int) - upright).mean() < 6


def test_alpha_is_flattened_on_white() -> None:
    for mode, kind in (("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        clear = Image.new(mode, (40, 30), 0)
        assert pixels_of(decode_picture(encoded(clear, kind))).min() >= 250


def test_unusual_modes_decode() -> None:
    grey = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    for data in (
        encoded(Image.fromarray(CAT).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(CAT).convert("L"), "JPEG"),
        encoded(Image.fromarray(CAT).convert("P"), "PNG"),
        encoded(Image.fromarray(CAT).convert("1"), "PNG"),
        encoded(grey, "PNG"),
    ):
        assert pixels_of(decode_picture(data)).std() > 30


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_colour_profiles_are_applied(kind: str) -> None:
    plain = pixels_of(decode_picture(encoded(CAT, kind), image_format="png")).astype(int)
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kept = pixels_of(decode_picture(encoded(CAT, kind, icc_profile=same), image_format="png"))
    assert np.abs(kept - plain).mean() < 1
    broken = pixels_of(decode_picture(encoded(CAT, kind, icc_profile=b"no profile"), image_format="png"))
    assert np.abs(broken - plain).mean() < 1


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("P", (40, 30), 200)] + [Image.new("P", (40, 30), n % 256) for n in range(300)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_picture(data).original_width == 40


def huge_png() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<html></html>", b"<svg/>", b"%PDF-1.7", bytes(1000), b"RIFF....WAVEfmt "]
)
def test_other_files_are_no_images(data: bytes) -> None:
    assert fault_of(data) is Fault.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_files_cut_short_are_bad(kind: str, share: float) -> None:
    data = encoded(CAT, kind)
    assert fault_of(data[: max(16, int(len(data) * share))]) is Fault.BAD_IMAGE


def test_the_pixel_limit_is_read_from_the_header() -> None:
    data = encoded(CAT, "PNG")
    assert fault_of(huge_png() + data[33:]) is Fault.IMAGE_TOO_LARGE
    assert fault_of(data, max_pixels=451 * 300 - 1) is Fault.IMAGE_TOO_LARGE
    assert decode_picture(data, max_pixels=451 * 300).width == 385


SMALL = {kind: encoded(CAT[::8, ::8], kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}


@settings(max_examples=150)
@given(st.sampled_from(sorted(SMALL)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20))
def test_mutated_files_give_a_picture_or_a_fault(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(SMALL[kind])
    for place, byte in changes:
        data[int(place * (len(data) - 1))] = byte
    try:
        found = decode_picture(bytes(data), max_pixels=1 << 20).phash
    except Undecodable as err:
        found = err.fault
    assert found in (Fault.NOT_AN_IMAGE, Fault.BAD_IMAGE, Fault.IMAGE_TOO_LARGE) or len(found) == 16


@settings(max_examples=100)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP"]), st.binary())
def test_garbage_gives_a_fault(magic: bytes, rest: bytes) -> None:
    assert fault_of(magic + rest, max_pixels=1 << 20) in (Fault.NOT_AN_IMAGE, Fault.BAD_IMAGE, Fault.IMAGE_TOO_LARGE)


def test_a_png_with_a_damaged_stream_is_bad() -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(Undecodable) as caught:
        decode_picture(bytes(data))
    assert caught.value.fault is Fault.BAD_IMAGE

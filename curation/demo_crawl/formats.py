"""Pictures of every odd but valid format, and bytes that are no picture, too small or too long."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from PIL import Image

from curation.demo_crawl.pictures import Take, encode, picture
from curation.demo_crawl.site import Page, Resource, Site

_ORIENTATION = 0x0112  # EXIF tag; 6: to be turned clockwise for viewing, 3: upside down


def build_formats(site: Site, takes: Iterator[Take]) -> list[Page]:
    """Valid pictures that careless code drops: all to be kept."""
    page = Page(site, "http://formats.demo.test/", "Pictures in many formats")
    for name, content_type, note in (
        ("animated.gif", "image/gif", "animated GIF"),
        ("palette.png", "image/png", "palette PNG"),
        ("alpha.png", "image/png", "PNG with alpha"),
        ("palette-alpha.png", "image/png", "palette PNG with transparency"),
        ("greyscale.jpg", "image/jpeg", "greyscale JPEG"),
        ("cmyk.jpg", "image/jpeg", "CMYK JPEG"),
        ("progressive.jpg", "image/jpeg", "progressive JPEG"),
        ("turned.jpg", "image/jpeg", "EXIF orientation 6"),
        ("upside-down.jpg", "image/jpeg", "EXIF orientation 3"),
        ("lossy.webp", "image/webp", "WebP"),
        ("lossless.webp", "image/webp", "lossless WebP"),
        ("sixteen-bit.png", "image/png", "16-bit grey PNG"),
        ("no-extension", "application/octet-stream", "no extension, no image content type"),
        ("liar.png", "image/png", "JPEG bytes, PNG name and content type"),
        ("bitmap.bmp", "image/bmp", "BMP"),
    ):
        take = next(takes)
        body = _odd(name, picture(take))
        url = site.put(page.url + name, Resource(body, content_type))
        page.show(url, take.region.english, note=note)
    return [page]


def build_broken(site: Site, takes: Iterator[Take], random_: random.Random) -> list[Page]:
    """Bytes that do not decode, and things that are no pictures at all."""
    page = Page(site, "http://broken.demo.test/", "Pictures that do not open")
    jpeg, png = encode(picture(next(takes))), encode(picture(next(takes)), "PNG")
    html = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to see it</body></html>"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300"><circle cx="99" cy="99" r="80"/></svg>'
    garbage = ["not_an_image", "bad_image"]
    for name, text, body, content_type, expect, note in (
        ("garbage.jpg", "A castle on a hill by the river", random_.randbytes(9000), "image/jpeg", garbage, "garbage"),
        ("zeros.png", "Morning fog over the harbour", bytes(4000), "image/png", garbage, "zeros"),
        ("cut.jpg", "An old bridge across the valley", jpeg[: len(jpeg) // 3], "image/jpeg", "bad_image", "cut JPEG"),
        ("cut.png", "A field of sunflowers in August", png[: len(png) // 2], "image/png", "bad_image", "cut PNG"),
        ("head.jpg", "Two dogs running on the beach", jpeg[:120], "image/jpeg", "bad_image", "JPEG header only"),
        ("bad-crc.png", "Snow on the roofs of a village", _flipped(png), "image/png", "bad_image", "PNG with bad data"),
        ("sign-in.jpg", "The main square on market day", html, "image/jpeg", "not_an_image", "HTML named .jpg"),
        ("sign-in.php", "The town hall in the evening", html, "text/html", "not_an_image", "HTML"),
        ("drawing.jpg", "A circle drawn with a compass", svg, "image/svg+xml", "not_an_image", "SVG named .jpg"),
        ("nothing.jpg", "An empty street in the old town", b"", "image/jpeg", garbage, "no bytes at all"),
    ):
        page.show(site.put(page.url + name, Resource(body, content_type)), text, expect, note=note)
    return [page]


def build_sizes(site: Site, takes: Sequence[Take]) -> list[Page]:
    """Icons and banners."""
    page = Page(site, "http://sizes.demo.test/", "Icons and banners")
    for side, take in zip((16, 24, 32, 40, 48, 60), takes, strict=False):
        icon = picture(take).resize((side, side), Image.Resampling.LANCZOS)
        url = site.put(page.url + f"icon-{take.name}-{side}.png", Resource(encode(icon, "PNG"), "image/png"))
        page.show(url, take.region.english, "too_small", note=f"{side}x{side}")
    for size, take in zip(((728, 90), (970, 90), (468, 100), (120, 600), (160, 640)), takes[6:], strict=False):
        banner = picture(take).resize(size, Image.Resampling.LANCZOS)
        url = site.put(page.url + f"banner-{take.name}-{size[0]}x{size[1]}.jpg", encode(banner))
        page.show(url, take.region.english, "aspect_extreme", note=f"{size[0]}x{size[1]}")
    return [page]


def _odd(name: str, image: Image.Image) -> bytes:
    """The picture in the odd format that the name tells."""
    match name:
        case "animated.gif":
            later = [image.point([value * (10 - frame) // 10 for value in range(256)] * 3) for frame in (1, 2, 3)]
            return encode(image, "GIF", save_all=True, append_images=later, duration=200, loop=0)
        case "palette.png":
            return encode(image.quantize(64), "PNG")
        case "alpha.png":
            veiled = image.convert("RGBA")
            veiled.putalpha(230)
            return encode(veiled, "PNG")
        case "palette-alpha.png":
            return encode(image.quantize(128), "PNG", transparency=0)
        case "greyscale.jpg":
            return encode(image.convert("L"))
        case "cmyk.jpg":
            return encode(image.convert("CMYK"))
        case "progressive.jpg":
            return encode(image, progressive=True)
        case "turned.jpg" | "upside-down.jpg":
            exif = Image.Exif()
            exif[_ORIENTATION] = 6 if name == "turned.jpg" else 3
            turn = Image.Transpose.ROTATE_90 if name == "turned.jpg" else Image.Transpose.ROTATE_180
            return encode(image.transpose(turn), exif=exif)
        case "lossy.webp":
            return encode(image, "WEBP", quality=85)
        case "lossless.webp":
            return encode(image, "WEBP", lossless=True)
        case "sixteen-bit.png":
            deep = image.convert("L").convert("I").point(lambda value: value * 257)
            return encode(deep.convert("I;16"), "PNG")
        case "bitmap.bmp":
            return encode(image, "BMP")
        case _:
            return encode(image)


def _flipped(png: bytes) -> bytes:
    """The PNG with bytes in the middle of its data inverted."""
    middle = len(png) // 2
    return png[:middle] + bytes(byte ^ 0xFF for byte in png[middle : middle + 64]) + png[middle + 64 :]

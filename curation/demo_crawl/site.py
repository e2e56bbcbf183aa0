"""The demo's web: pages and pictures of a dozen hosts, and for every pair what should become of it."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from curation.demo_crawl.pictures import (
    captions,
    catalogue,
    encoded,
    jpeg,
    mirrored,
    picture,
    resized,
    trimmed,
    watermarked,
)

PAIRS_A_PAGE = 10
# host, charset and html lang of the gallery in each language
GALLERIES = {
    "en": ("photos.demo.test", "utf-8"),
    "de": ("bilder.demo.test", "windows-1252"),
    "fr": ("images.demo.test", "utf-8"),
    "es": ("fotos.demo.test", "iso-8859-1"),
    "zh": ("tupian.demo.test", "gbk"),
    "ja": ("shashin.demo.test", "shift_jis"),
    "ru": ("kartinki.demo.test", "windows-1251"),
}
ALIKE = ("kept", "duplicate_sha256", "duplicate_phash", "similarity_low")
"""What may become of a picture of which the web has several copies: of a group just one is kept."""

TEXTURES = frozenset(["brick", "grass", "gravel"])


@dataclass
class Route:
    """What the server does for one path of one host."""

    host: str
    path: str
    file: str = ""  # below site/
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    behaviour: str = "whole"  # whole, stall, reset, short, heals


@dataclass
class Expected:
    """One pair of the site, as a browser reads it, and its right outcomes."""

    url: str
    text: str
    page_url: str
    expect: list[str]
    group: str | None = None
    note: str = ""


class Site:
    """Collects routes, files and expectations; write() puts them into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.routes: list[Route] = []
        self.truth: list[Expected] = []
        self.seeds: list[str] = []
        self.known_unsafe: list[str] = []

    def add(self, host: str, path: str, body: bytes, content_type: str = "image/jpeg", **route: object) -> str:
        """Serve a body; returns its URL."""
        name = f"{hashlib.sha256(body).hexdigest()[:20]}.bin"
        target = self.folder / "site" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(body)
        self.routes.append(Route(host, path, name, content_type, **route))  # type: ignore[arg-type]
        return f"http://{host}{path}"

    def page(
        self,
        host: str,
        path: str,
        body: str,
        *,
        charset: str = "utf-8",
        lang: str = "en",
        head: str = "",
        raw: bytes = b"",
    ) -> str:
        """Serve a page and let the crawler start at it; `raw` bytes are put before the closing tag as they are."""
        declared = f'<meta charset="{charset}">'
        text = f'<!doctype html><html lang="{lang}"><head>{declared}<title>{host}</title>{head}</head><body>\n{body}\n'
        url = self.add(host, path, text.encode(charset) + raw + b"</body></html>", "text/html")
        self.seeds.append(url)
        return url

    def expect(
        self, url: str, text: str, page: str, outcomes: Sequence[str], group: str | None = None, note: str = ""
    ) -> None:
        """Say what should become of a pair."""
        self.truth.append(Expected(url, text, page, list(outcomes), group, note))

    def write(self) -> None:
        """Write routes, truth and the operator's lists."""
        (self.folder / "site" / "routes.json").write_text(json.dumps([asdict(r) for r in self.routes], indent=0))
        lines = [json.dumps(asdict(expected), ensure_ascii=False) for expected in self.truth]
        (self.folder / "truth.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.folder / "blocklist.txt").write_text("# hosts that the operator does not want\nblocked-ads.test\n")
        (self.folder / "known_unsafe.txt").write_text("\n".join(self.known_unsafe) + "\n")


def img(src: str, alt: str, more: str = "") -> str:
    """An img tag with an escaped alt."""
    return f'<p><img src="{html.escape(src)}" alt="{html.escape(alt)}" {more}></p>'


def build_site(folder: Path) -> Site:
    """Build the whole site into a folder."""
    from curation.demo_crawl.faults import add_faults

    site = Site(folder)
    add_galleries(site)
    add_mirrors(site)
    add_wrong_captions(site)
    add_leaks(site)
    add_faults(site)
    site.write()
    return site


def add_galleries(site: Site) -> None:
    """Each picture with its captions in every language; each host has its own size and compression of it."""
    scales = {"en": 1.0, "de": 0.9, "fr": 0.8, "es": 0.75, "zh": 0.7, "ja": 0.65, "ru": 0.6}
    for language, (host, charset) in GALLERIES.items():
        pairs = []
        for name, texts in captions().items():
            spoken = texts.get(language, [])
            for number, text in enumerate([spoken] if isinstance(spoken, str) else spoken):
                quality = 92 if language == "en" else 85
                image = picture(name) if language == "en" else resized(picture(name), scales[language])
                path = f"/{name}{number or ''}.jpg"
                site.add(host, path, jpeg(image, quality))
                pairs.append((path, text, name))
        for start in range(0, len(pairs), PAIRS_A_PAGE):
            part = pairs[start : start + PAIRS_A_PAGE]
            body = "".join(img(path, text) for path, text, _ in part)
            page = site.page(host, f"/page{start // PAIRS_A_PAGE}.html", body, charset=charset, lang=language)
            for path, text, name in part:
                site.expect(f"http://{host}{path}", text, page, ALIKE, None if name in TEXTURES else name)


def add_mirrors(site: Site) -> None:
    """Copies as other sites make them, in three shapes of page: figure, lazy loading, picture with srcset."""
    copies: dict[str, Callable[[Image.Image], bytes]] = {
        "re-encoded": lambda image: jpeg(image, 60),
        "resized": lambda image: jpeg(resized(image, 0.5), 85),
        "trimmed": lambda image: jpeg(trimmed(image), 88),
        "watermarked": lambda image: jpeg(watermarked(image), 88),
    }
    names = list(catalogue())
    for kind, copy in copies.items():
        host = f"{kind}.mirror.test"
        for start in range(0, len(names), PAIRS_A_PAGE):
            body = ""
            expected = []
            for at, name in enumerate(names[start : start + PAIRS_A_PAGE]):
                text = captions()[name]["en"][-1]
                url = site.add(host, f"/copies/{name}.jpg", copy(picture(name)))
                if at % 3 == 0:
                    body += f'<figure><img src="{name}.jpg"><figcaption>{html.escape(text)}</figcaption></figure>'
                elif at % 3 == 1:
                    body += img(
                        "data:image/gif;base64,R0lGODlhAQABAAAAACw=", text, f'data-src="{name}.jpg" loading="lazy"'
                    )
                else:
                    body += f'<picture><source srcset="{name}.jpg 1x">{img(f"{name}.jpg", text)}</picture>'
                expected.append((url, text, name))
            page = site.page(
                host, f"/page{start // PAIRS_A_PAGE}.html", body, head=f'<base href="http://{host}/copies/">'
            )
            for url, text, name in expected:
                # what pHash does not see through within its radius is a picture of its own: cuts of fine detail
                beyond = kind == "trimmed" or name in TEXTURES
                site.expect(url, text, page, ALIKE, None if beyond else name, kind)


def add_wrong_captions(site: Site) -> None:
    """Pictures under the caption of another one."""
    whole = [name for name, entry in catalogue().items() if "box" not in entry]
    body, expected = "", []
    for at, name in enumerate(whole):
        other = whole[(at + 5) % len(whole)]
        text = captions()[other]["en"][0]
        url = site.add("wrong.demo.test", f"/{name}-{at}.jpg", jpeg(resized(picture(name), 0.95), 80))
        body += img(url, text)
        expected.append((url, text, f"shows {name}, says {other}"))
    page = site.page("wrong.demo.test", "/", body)
    for url, text, note in expected:
        site.expect(url, text, page, ["similarity_low"], None, note)


def add_leaks(site: Site) -> None:
    """Pictures of an evaluation set, and pictures that the operator lists as known and unsafe."""
    host, body, expected = "blog.demo.test", "", []
    (site.folder / "evalset").mkdir(parents=True)
    shown: dict[str, tuple[str, Callable[[bytes, Image.Image], bytes] | None]] = {
        "cat": ("leak_sha256", lambda data, _: data),
        "pagoda": ("leak_phash", lambda _, image: jpeg(image, 70)),
        "rocket": ("leak_phash", lambda _, image: jpeg(resized(image, 0.7), 85)),
        "coffee": ("leak_sha256", lambda data, _: data),
        "coins": ("", None),
    }
    items = []
    for name, (verdict, copy) in shown.items():
        image, text = mirrored(picture(name)), captions()[name]["en"][0]
        data = jpeg(image, 95)
        (site.folder / "evalset" / f"{name}.jpg").write_bytes(data)
        items.append(json.dumps({"image": f"{name}.jpg", "caption": text}))
        if copy is not None:
            url = site.add(host, f"/holiday/{name}.jpg", copy(data, image))
            body += img(url, text)
            expected.append((url, text, verdict, "evaluation set"))
    (site.folder / "evalset" / "items.jsonl").write_text("\n".join(items) + "\n")
    for name in ("dahlia", "motorcycle", "officer"):
        data = jpeg(mirrored(picture(name)), 91)
        site.known_unsafe.append(f"{hashlib.sha256(data).hexdigest()}  operator's case {name}")
        if name != "officer":
            text = captions()[name]["en"][0]
            url = site.add(host, f"/listed/{name}.jpg", data)
            body += img(url, text)
            expected.append((url, text, "known_hash", "operator's list"))
    page = site.page(host, "/", body)
    for url, text, verdict, note in expected:
        site.expect(url, text, page, [verdict], None, note)


def odd_formats() -> dict[str, tuple[bytes, str]]:
    """The same picture in formats that are unusual and right: suffix -> bytes and content type."""
    image = picture("cat")
    faint = image.convert("RGBA")
    faint.putalpha(255)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return {
        "palette.png": (encoded(image.quantize(128), "PNG"), "image/png"),
        "alpha.png": (encoded(faint, "PNG"), "image/png"),
        "cmyk.jpg": (encoded(image.convert("CMYK"), "JPEG", quality=92), "image/jpeg"),
        "photo.webp": (encoded(image, "WEBP", quality=90), "image/webp"),
        "moving.gif": (
            encoded(image.quantize(64), "GIF", save_all=True, append_images=[mirrored(image).quantize(64)] * 3),
            "image/gif",
        ),
        "turned.jpg": (jpeg(turned, 92, exif=exif), "image/jpeg"),
    }

"""What a web does to a crawler, one path each: broken files and hosts, refusals, hostile pages."""

from __future__ import annotations

from collections.abc import Sequence

from curation.demo_crawl.pictures import captions, encoded, jpeg, mirrored, picture, resized
from curation.demo_crawl.site import ALIKE, PAIRS_A_PAGE, Site, img, odd_formats


class _Page:
    """Collects pairs of one page."""

    def __init__(self, site: Site, host: str, path: str = "/") -> None:
        self._site, self._host, self._path = site, host, path
        self._body = ""
        self._expected: list[tuple[str, str, Sequence[str], str | None, str]] = []

    def add(self, url: str, text: str, outcome: str | Sequence[str], group: str | None = None, note: str = "") -> None:
        self._body += img(url, text)
        outcomes = [outcome] if isinstance(outcome, str) else outcome
        self._expected.append((url, text, outcomes, group, note))

    def close(self, head: str = "", raw: bytes = b"") -> None:
        page = self._site.page(self._host, self._path, self._body, head=head, raw=raw)
        for url, text, outcomes, group, note in self._expected:
            self._site.expect(url, text, page, outcomes, group, note)


def add_faults(site: Site) -> None:
    """Add everything that the pipeline must catch, and odd things that it must not."""
    _statuses(site)
    _bodies(site)
    _sizes_and_formats(site)
    _urls_and_texts(site)
    _consent(site)
    _repeated_pairs(site)
    _hostile_pages(site)


def _statuses(site: Site) -> None:
    host, page = "rot.demo.test", _Page(site, "rot.demo.test")
    data, text = jpeg(picture("cat")), captions()["cat"]["en"][0]
    for status, fault in ((404, "http_404"), (410, "http_410"), (500, "http_5xx"), (403, "http_403")):
        for copy in range(3):
            url = site.add(host, f"/gone/{status}-{copy}.jpg", b"gone", "text/plain", status=status)
            page.add(url, f"{text}, copy {copy} of {status}", fault)
    page.add(f"http://{host}/never/was.jpg", "A picture that never was there", "http_404")
    slow = site.add("slow.demo.test", "/stall.jpg", data, behaviour="stall")
    page.add(slow, "A picture that never arrives", "timeout")
    healing = site.add("slow.demo.test", "/heals.jpg", data, behaviour="heals")
    page.add(healing, text, ALIKE, "cat", "503 at first, then whole")
    moves = {
        "moved.jpg": ("/target.jpg", ALIKE, "one hop"),
        "loop.jpg": ("/loop.jpg", "too_many_redirects", "to itself"),
        "metadata.jpg": ("http://169.254.169.254/latest/meta-data/", "address_refused", "to a cloud's metadata"),
        "inside.jpg": ("http://127.0.0.1:9/admin.jpg", "address_refused", "to loopback"),
        "inside6.jpg": ("http://[::1]:9/admin.jpg", "address_refused", "to loopback"),
    }
    site.add("moved.demo.test", "/target.jpg", jpeg(picture("cat"), 75))
    for path, (target, outcome, note) in moves.items():
        url = site.add("moved.demo.test", f"/{path}", b"", status=302, headers={"Location": target})
        page.add(url, f"{text} ({path})", outcome, "cat" if outcome is ALIKE else None, note)
    page.close()


def _bodies(site: Site) -> None:
    host, page = "broken.demo.test", _Page(site, "broken.demo.test")
    whole = jpeg(picture("dahlia"))
    png = encoded(picture("dahlia"), "PNG")
    cases = {
        "garbage.jpg": (bytes(range(256)) * 40, "image/jpeg", "whole", "not_an_image"),
        "cut.jpg": (whole[: len(whole) // 2], "image/jpeg", "whole", "bad_image"),
        "cut.png": (png[: len(png) // 2], "image/png", "whole", "bad_image"),
        "page.jpg": (b"<!doctype html><title>Not found</title>" * 9, "text/html", "whole", "not_an_image"),
        "zero.jpg": (b"", "image/jpeg", "whole", "not_an_image"),
        "reset.jpg": (whole, "image/jpeg", "reset", "truncated_body"),
        "short.jpg": (whole, "image/jpeg", "short", "truncated_body"),
    }
    for path, (body, content_type, behaviour, fault) in cases.items():
        url = site.add(host, f"/{path}", body, content_type, behaviour=behaviour)
        page.add(url, f"An orange flower, {path.partition('.')[0]} file", fault)
    page.close()


def _sizes_and_formats(site: Site) -> None:
    host, page = "sizes.demo.test", _Page(site, "sizes.demo.test")
    for side in (16, 24, 32, 48, 60):
        url = site.add(host, f"/icon{side}.png", encoded(picture("cat").resize((side, side)), "PNG"), "image/png")
        page.add(url, f"A small brown cat of {side} pixels", "too_small")
    for width, height in ((728, 90), (970, 90), (468, 70), (90, 600)):
        url = site.add(host, f"/ad-{width}x{height}.jpg", jpeg(picture("galaxies").resize((width, height))))
        page.add(url, f"A wide picture of the stars, {width} by {height}", "aspect_extreme")
    for name, (data, content_type) in odd_formats().items():
        url = site.add(host, f"/odd/{name}", data, content_type)
        page.add(url, f"{captions()['cat']['en'][0]}, a {name.replace('.', ' ')} file", ALIKE, "cat", name)
    page.close()


def _urls_and_texts(site: Site) -> None:
    host, page = "texts.demo.test", _Page(site, "texts.demo.test")
    text = captions()["pagoda"]["en"][0]
    for at in range(3):
        page.add(f"http://blocked-ads.test/offer{at}.jpg", f"{text}, offer {at}", "url_blocked")
    page.add("http://cdn.blocked-ads.test/deep.jpg", f"{text}, deep", "url_blocked")
    page.add(f"http://{host}/logo.svg", "The logo of our gallery", "url_rejected")
    page.add(f"http://{host}/pixel.gif", "A picture to count visitors", "url_rejected")
    url = site.add(host, "/fine.jpg", jpeg(mirrored(picture("lake"))))
    page.add(url, captions()["lake"]["en"][0], ("kept", "similarity_low"), None, "a picture of its own")
    for short in ("cat", "Kuh", "x"):
        page.add(url, short, "text_too_short")
    for placeholder in ("image", "IMG_1234.JPG", "photo"):
        page.add(url, placeholder, "text_placeholder")
    page.close()


def _consent(site: Site) -> None:
    text = captions()["rocket"]["en"][0]
    page = _Page(site, "private.demo.test")
    site.add(
        "private.demo.test", "/robots.txt", b"User-agent: *\nDisallow: /secret/\nAllow: /secret/open", "text/plain"
    )
    for at in range(3):
        url = site.add("private.demo.test", f"/secret/{at}.jpg", jpeg(picture("rocket"), 80 + at))
        page.add(url, f"{text}, number {at}", "robots_disallowed")
    url = site.add("private.demo.test", "/secret/open.jpg", jpeg(picture("rocket"), 84))
    page.add(url, text, ALIKE, "rocket", "allowed by the longer rule")
    for at, (header, value, outcome) in enumerate(
        (
            ("X-Robots-Tag", "noai", "opt_out_header"),
            ("X-Robots-Tag", "noarchive, NoImageAI", "opt_out_header"),
            ("X-Robots-Tag", "otherbot: noai", ALIKE),
            ("tdm-reservation", "1", "opt_out_tdm"),
            ("tdm-reservation", "0", ALIKE),
        )
    ):
        data = jpeg(picture("rocket"), 86 + at)
        url = site.add("refusing.demo.test", f"/{at}.jpg", data, headers={header: value})
        page.add(url, f"{text} ({at})", outcome, "rocket" if outcome is ALIKE else None, f"{header}: {value}")
    page.close()
    refusing = _Page(site, "noai.demo.test")
    for at in range(3):
        url = site.add("noai.demo.test", f"/{at}.jpg", jpeg(picture("officer"), 80 + at))
        refusing.add(url, f"{captions()['officer']['en'][0]}, number {at}", "opt_out_page")
    refusing.close(head='<meta name="robots" content="noai, noimageai">')


def _repeated_pairs(site: Site) -> None:
    url = site.add("again.demo.test", "/medals.jpg", jpeg(mirrored(picture("medals"))))
    for at in range(PAIRS_A_PAGE // 2):
        page = _Page(site, "again.demo.test", f"/{at}.html")
        page.add(url, captions()["medals"]["en"][0], ("kept", "duplicate_pair", "similarity_low"), "again")
        page.close()


def _hostile_pages(site: Site) -> None:
    page = _Page(site, "hostile.demo.test")
    texts = (
        '"><script>alert("alt")</script> a brown cat',
        "A brown cat & a 'quoted' <b>bold</b> caption",
        "A brown cat 🐈 with an emoji and a very long tail" + " of words" * 30,
        "../../etc/passwd is no brown cat",
        "A brown cat'; DROP TABLE samples; --",
    )
    for at, text in enumerate(texts):
        url = site.add("hostile.demo.test", f"/{at}.jpg", jpeg(resized(picture("cat"), 0.9), 70 + at))
        page.add(url, text, ALIKE, "cat", "hostile text")
    deep = b"<div>" * 10_000 + b"<p>\0\xff\xfe<img src='/x.jpg' alt='" + b"a" * 100_000 + b"<table><tr><td></b></i>"
    page.close(raw=deep)

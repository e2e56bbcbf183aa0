"""A small web: hosts with pages and files, and beside every picture-text pair what must become of it."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

Via = Literal["both", "warc", "wat"]
STAGE_OF = {
    "extract": "url_blocked url_rejected text_too_short text_placeholder duplicate_pair opt_out_page",
    "download": "http_404 http_410 http_5xx timeout too_many_redirects address_refused connection_failed truncated_body"
    " bad_image not_an_image too_small aspect_extreme robots_disallowed opt_out_header opt_out_tdm",
    "score": "similarity_low",
    "dedup": "duplicate_sha256 duplicate_phash",
    "safety": "known_hash",
    "leakage": "leak_sha256 leak_phash",
    "publish": "kept",
}
_STAGES = {reason: stage for stage, reasons in STAGE_OF.items() for reason in reasons.split()}


@dataclass(frozen=True)
class Expected:
    """One line of truth.jsonl: a pair on a page and what must become of it.

    expect    "kept", or a fault's or verdict's name; a list when several are right
    stage     the stage that must say so: the one of the first name in expect
    group     pairs of one name show one picture: exactly one is kept; null for a picture of its own
    via       both, or the archive kind (warc, wat) that alone shows the pair
    shard     archive that holds the page, filled in when the crawl is done
    """

    url: str
    text: str
    page_url: str
    expect: str | list[str]
    language: str
    stage: str
    group: str | None = None
    via: Via = "both"
    note: str = ""
    shard: int = -1


@dataclass(frozen=True)
class Resource:
    """What a URL answers. fault names a behaviour of the server, see server.py; headers beyond Content-Type."""

    body: bytes = b""
    content_type: str = "image/jpeg"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""


class Page:
    """An HTML page that notes what each of its pictures must become."""

    def __init__(self, site: Site, url: str, title: str, language: str = "en", charset: str = "utf-8") -> None:
        self.site, self.url, self.title, self.language = site, url, title, language
        self.charset = charset
        self.head: list[str] = []
        self.body: list[str] = []
        self.headers: dict[str, str] = {}
        self.declare_in = "meta"  # or "header"
        site.pages[url] = self

    def show(self, src: str, text: str, expect: str | list[str] = "kept", *, template: int = 0, **truth: Any) -> None:
        """Show a picture with an alt text; src is written as given, template varies the markup."""
        link, alt = html.escape(src), html.escape(text)
        markup = (
            f'<p><img src="{link}" alt="{alt}"></p>',
            f'<figure><img alt="{alt}" width="400" src="{link}"><figcaption>{alt}</figcaption></figure>',
            f'<a href="{link}"><IMG SRC="{link}" ALT="{alt}" class="photo wide"/></a>',
            f"<div class='card'><img\n  loading='lazy'\n  src='{link}'\n  alt='{alt}' ></div>",
        )[template % 4]
        self.add(markup)
        self.expect(src, text, expect, **truth)

    def expect(self, src: str, text: str, expect: str | list[str] = "kept", **truth: Any) -> None:
        """Note what a pair must become whose markup stands on the page already."""
        first = expect if isinstance(expect, str) else expect[0]
        url = urljoin(self.url, src) if not src.startswith(("data:", "javascript:")) else src
        fields: dict[str, Any] = {"language": self.language, "stage": _STAGES[first]} | truth
        self.site.expected.append(Expected(url=url, text=text, page_url=self.url, expect=expect, **fields))

    def add(self, markup: str) -> None:
        """Append markup as it is."""
        self.body.append(markup)

    def link(self, *urls: str) -> None:
        """Append links to other pages."""
        self.add("".join(f'<a href="{html.escape(url)}">{html.escape(urlsplit(url).path)}</a> ' for url in urls))

    def resource(self) -> Resource:
        """The page as its server sends it."""
        declared = f'<meta charset="{self.charset}">' if self.declare_in == "meta" else ""
        text = "\n".join(
            [
                "<!DOCTYPE html>",
                f'<html lang="{self.language}"><head>{declared}<title>{html.escape(self.title)}</title>',
                *self.head,
                f"</head><body><h1>{html.escape(self.title)}</h1>",
                *self.body,
                "</body></html>",
            ]
        )
        content_type = "text/html" + (f"; charset={self.charset}" if self.declare_in == "header" else "")
        return Resource(text.encode(self.charset, "xmlcharrefreplace"), content_type, headers=self.headers)


class Site:
    """All hosts of the demo: pages and files by URL, and the truth."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.files: dict[str, Resource] = {}
        self.expected: list[Expected] = []

    def put(self, url: str, resource: Resource | bytes) -> str:
        """Place a file at a URL and return the URL. A URL that is taken keeps its file, which must be the same."""
        placed = resource if isinstance(resource, Resource) else Resource(resource)
        if self.files.setdefault(url, placed) != placed:
            raise AssertionError(f"two different files at {url}")
        return url

    def write(self, folder: Path) -> None:
        """Write bodies to folder/host/path and how they are answered to folder/responses.json."""
        answers: dict[str, dict[str, object]] = {}
        everything = self.files | {url: page.resource() for url, page in self.pages.items()}
        for url, resource in sorted(everything.items()):
            parts = urlsplit(url)
            address = parts.netloc + parts.path
            path = address + "index.html" if address.endswith("/") else address
            if resource.body:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(resource.body)
            answer = asdict(resource)
            answer["body"] = path if resource.body else None
            answers[address] = answer
        (folder / "responses.json").write_text(json.dumps(answers, indent=0, sort_keys=True), "utf-8")

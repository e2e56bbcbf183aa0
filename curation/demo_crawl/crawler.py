"""Crawl the demo's web through real HTTP into WARC files, and make the WAT files that Common Crawl makes of them."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

DATE = "2026-01-01T00:00:00Z"  # fixed: the same site gives the same archives, byte by byte


class Fetched(NamedTuple):
    """One page as it came."""

    url: str
    status: str
    headers: list[tuple[str, str]]
    body: bytes


def crawl(seeds: Sequence[str], port: int, folder: Path, shards: int) -> None:
    """Fetch the pages and write FOLDER/00000.warc.gz, 00000.wat.gz ...; pages are dealt out in turn."""
    folder.mkdir(parents=True)
    pages = [_fetch(url, port) for url in seeds]
    for shard in range(shards):
        part = pages[shard::shards]
        with (folder / f"{shard:05d}.warc.gz").open("wb") as out:
            offsets = list(_write_warc(out, part))
        with (folder / f"{shard:05d}.wat.gz").open("wb") as out:
            _write_wat(out, part, f"{shard:05d}.warc.gz", offsets)


def _fetch(url: str, port: int) -> Fetched:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", parts.path or "/", headers={"Host": parts.netloc, "User-Agent": "demo-crawler"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    kept = [(name, value) for name, value in response.getheaders() if name.lower() not in ("date", "server")]
    return Fetched(url, f"{response.status} {response.reason}", kept, body)


def _write_warc(out: Any, pages: Sequence[Fetched]) -> Iterator[int]:
    writer = WARCWriter(out, gzip=True)
    for page in pages:
        request = StatusAndHeaders(
            f"GET {urlsplit(page.url).path} HTTP/1.1", [("Host", urlsplit(page.url).netloc)], is_http_request=True
        )
        headers = _record_headers("request", page.url)
        writer.write_record(
            writer.create_warc_record(page.url, "request", http_headers=request, warc_headers_dict=headers)
        )
        yield out.tell()
        response = StatusAndHeaders(page.status, page.headers, protocol="HTTP/1.1")
        headers = _record_headers("response", page.url)
        record = writer.create_warc_record(
            page.url, "response", payload=io.BytesIO(page.body), http_headers=response, warc_headers_dict=headers
        )
        writer.write_record(record)


def _write_wat(out: Any, pages: Sequence[Fetched], warc: str, offsets: Sequence[int]) -> None:
    writer = WARCWriter(out, gzip=True)
    for page, offset in zip(pages, offsets, strict=True):
        content = json.dumps(_envelope(page, warc, offset), ensure_ascii=False).encode()
        headers = _record_headers("metadata", page.url)
        headers["WARC-Refers-To"] = _record_headers("response", page.url)["WARC-Record-ID"]
        record = writer.create_warc_record(
            page.url,
            "metadata",
            payload=io.BytesIO(content),
            warc_content_type="application/json",
            warc_headers_dict=headers,
        )
        writer.write_record(record)


def _record_headers(kind: str, url: str) -> dict[str, str]:
    digits = hashlib.sha256(f"{kind} {url}".encode()).hexdigest()
    identity = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))
    return {"WARC-Date": DATE, "WARC-Record-ID": f"<urn:uuid:{identity}>"}


def _envelope(page: Fetched, warc: str, offset: int) -> dict[str, Any]:
    links = _Links()
    links.feed(page.body.decode(_charset(page.body), "replace"))
    head: dict[str, Any] = {"Title": links.title, "Metas": links.metas}
    if links.base:
        head["Base"] = links.base
    return {
        "Container": {"Filename": warc, "Compressed": True, "Offset": str(offset)},
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": page.url, "WARC-Date": DATE},
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": {
                    "Response-Message": {"Status": page.status.partition(" ")[0], "Version": "HTTP/1.1"},
                    "Headers": dict(page.headers),
                    "HTML-Metadata": {"Head": head, "Links": links.links},
                },
            },
        },
    }


def _charset(body: bytes) -> str:
    start = body.find(b'<meta charset="') + len(b'<meta charset="')
    return body[start : body.find(b'"', start)].decode("ascii")


class _Links(HTMLParser):
    """Links and head of a page, as Common Crawl's WAT extractor lists them."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[dict[str, str]] = []
        self.metas: list[dict[str, str]] = []
        self.base = ""
        self.title = ""
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "img" and "src" in values:
            link = {"path": "IMG@/src", "url": values["src"]}
            self.links.append(link | {name: values[name] for name in ("alt", "title") if values.get(name)})
        elif tag == "a" and "href" in values:
            self.links.append({"path": "A@/href", "url": values["href"]})
        elif tag == "meta":
            self.metas.append(values)
        elif tag == "base":
            self.base = values.get("href", "")
        self._in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
            self._in_title = False

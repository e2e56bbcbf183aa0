"""A small crawler: breadth first over the demo's pages through real HTTP, written to WARC as Common Crawl does."""

from __future__ import annotations

import http.client
import io
import re
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

_START = datetime(2026, 1, 15, 12, 0, 0, tzinfo=UTC)  # fixed: reruns must give the same bytes
_AGENT = "curation-demo-crawler/1"
_SOFTWARE = "curation demo crawler"


class Fetched(NamedTuple):
    """One page as it came, and its place in the crawl."""

    number: int
    url: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def crawl(port: int, seeds: list[str]) -> Iterator[Fetched]:
    """Fetch the seeds and every page that links lead to, each once, from 127.0.0.1:port whatever its host is."""
    waiting, seen = deque(seeds), set(seeds)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    number = 0
    while waiting:
        url = waiting.popleft()
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Host": parts.netloc, "User-Agent": _AGENT, "Accept": "text/html"})
        response = connection.getresponse()
        body = response.read()
        headers = response.getheaders()
        if response.status == 200 and "text/html" in (response.getheader("Content-Type") or ""):
            yield Fetched(number, url, response.status, response.reason, headers, body)
            number += 1
            for link in _links(body):
                target = urldefrag(urljoin(url, link)).url
                if target not in seen and _is_page(target):
                    seen.add(target)
                    waiting.append(target)
    connection.close()


class WarcShards:
    """The WARC files of a crawl: page number n goes to shard n modulo their number."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.paths = [folder / f"{shard:05d}.warc.gz" for shard in range(shards)]
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [path.open("wb") for path in self.paths]
        self._writers = [WARCWriter(file, gzip=True) for file in self._files]
        for path, writer in zip(self.paths, self._writers, strict=True):
            fields = f"software: {_SOFTWARE}\r\nformat: WARC File Format 1.0\r\nisPartOf: curation-demo\r\n"
            self._record(writer, None, path.name, 0, "warcinfo", "application/warc-fields", fields.encode())

    def add(self, page: Fetched) -> int:
        """Write request, response and metadata of a page; returns its shard."""
        shard = page.number % len(self.paths)
        writer = self._writers[shard]
        parts = urlsplit(page.url)
        request = StatusAndHeaders(
            f"GET {parts.path or '/'} HTTP/1.1",
            [("User-Agent", _AGENT), ("Accept", "text/html"), ("Host", parts.netloc)],
            is_http_request=True,
        )
        self._record(writer, page.url, page.url, page.number, "request", None, b"", request)
        answer = StatusAndHeaders(f"{page.status} {page.reason}", page.headers, protocol="HTTP/1.1")
        self._record(writer, page.url, page.url, page.number, "response", None, page.body, answer)
        facts = b"fetchTimeMs: 12\r\n"
        self._record(writer, page.url, page.url, page.number, "metadata", "application/warc-fields", facts)
        return shard

    def close(self) -> None:
        """Finish the files."""
        for file in self._files:
            file.close()

    def _record(
        self,
        writer: WARCWriter,
        uri: str | None,
        name: str,
        number: int,
        kind: str,
        content_type: str | None,
        payload: bytes,
        http_headers: StatusAndHeaders | None = None,
    ) -> None:
        headers = {
            "WARC-Record-ID": record_id(kind, name),
            "WARC-Date": (_START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if kind == "warcinfo":
            headers["WARC-Filename"] = name
        elif kind == "response":
            headers["WARC-IP-Address"] = "127.0.0.1"
        if kind in ("request", "metadata"):
            headers["WARC-Concurrent-To"] = record_id("response", name)
        record = writer.create_warc_record(
            uri,
            kind,
            payload=io.BytesIO(payload),
            length=len(payload),
            warc_content_type=content_type or "",
            warc_headers_dict=headers,
            http_headers=http_headers,
        )
        writer.write_record(record)


def record_id(kind: str, name: str) -> str:
    """The same id for the same record in every build."""
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind} {name}')}>"


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _links(body: bytes) -> list[str]:
    parser = _Anchors()
    parser.feed(body.decode("latin-1"))
    return parser.found


def _is_page(url: str) -> bool:
    """Pages of the demo end in "/" or ".html"; what else is linked are pictures."""
    return re.fullmatch(r"http://[a-z0-9.-]+\.test/(?:[^?#]*/|[^?#]*\.html)?", url) is not None

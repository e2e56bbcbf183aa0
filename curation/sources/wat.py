"""Pages of a WAT: Common Crawl's extract of a WARC, one JSON document for each of its records."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from curation.sources.candidates import Page, Picture, TextKind, robots_directives
from curation.sources.html import best_of_srcset
from curation.sources.warc import read_content, read_records
from curation.web.urls import Base

_AMPERSAND = re.compile(r"&(?:amp|#38|#x26);", re.IGNORECASE)


class _Link(msgspec.Struct, gc=False):
    path: str = ""
    url: str | None = None
    alt: str | None = None
    title: str | None = None


class _Meta(msgspec.Struct, gc=False):
    name: str | None = None
    property: str | None = None
    content: str | None = None


class _Head(msgspec.Struct, gc=False):
    Base: str | None = None
    Metas: list[_Meta] = []


class _Html(msgspec.Struct, gc=False):
    Head: _Head | None = None
    Links: list[_Link] = []


class _Response(msgspec.Struct, rename={"html": "HTML-Metadata"}, gc=False):
    html: _Html | None = None


class _Payload(msgspec.Struct, rename={"response": "HTTP-Response-Metadata"}, gc=False):
    response: _Response | None = None


class _Envelope(msgspec.Struct, rename={"payload": "Payload-Metadata", "header": "WARC-Header-Metadata"}, gc=False):
    payload: _Payload | None = None
    header: dict[str, Any] = {}


class _Document(msgspec.Struct, rename={"envelope": "Envelope"}, gc=False):
    envelope: _Envelope | None = None


_decode = msgspec.json.Decoder(_Document).decode


def read_pages(stream: BinaryIO, location: str, tally: Counter[str], *, max_record_bytes: int) -> Iterator[Page]:
    """Yield the pages of a WAT that link to pictures.

    Only the members that matter are decoded; a record that cannot hold a picture is told by its bytes, before any
    JSON is parsed. Attributes in a WAT keep their entities; in URLs only the ampersand's is undone, for "&copy=1" is
    a query.
    """
    for record in read_records(stream, location, tally, max_record_bytes):
        content = read_content(record, tally)
        if content is None:
            continue
        if b'"HTML-Metadata"' not in content:
            if content.lstrip()[:1] == b"{" or "json" not in (record.raw.headers.get("Content-Type") or ""):
                continue
        elif b'"IMG@/' not in content and b'"og:image' not in content:
            tally["pages"] += 1
            tally["pages_without_pictures"] += 1
            continue
        try:
            document: _Document | None = _decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            document = _lenient(content)
        if document is None:
            tally["records_bad"] += 1
            tally["records_bad_json"] += 1
            continue
        envelope = document.envelope
        payload = envelope.payload if envelope else None
        found = payload.response.html if payload and payload.response else None
        if envelope is None or found is None:
            continue
        tally["pages"] += 1
        url = record.url or str(envelope.header.get("WARC-Target-URI", ""))
        yield _page(url, record.offset, found)


def _page(url: str, offset: int, found: _Html) -> Page:
    head = found.Head or _Head()
    base = Base(url)
    if head.Base:
        base = Base(base.join(head.Base) or url)
    robots: frozenset[str] = frozenset()
    pictures: list[Picture] = []
    share: dict[str, str] = {}
    for meta in head.Metas:
        if not meta.content:
            continue
        name = (meta.property or meta.name or "").lower()
        if name == "robots":
            robots |= robots_directives(meta.content)
        elif name.startswith("og:"):
            share.setdefault(name, meta.content)
    for link in found.Links:
        if not link.url or not link.path.startswith("IMG@/"):
            continue
        address = best_of_srcset(link.url) if link.path.endswith("srcset") else link.url
        if "&" in address:
            address = _AMPERSAND.sub("&", address)
        address = base.join(address)
        if address:
            texts: dict[TextKind, str] = {}
            if link.alt:
                texts["alt"] = html.unescape(link.alt) if "&" in link.alt else link.alt
            if link.title:
                texts["title"] = html.unescape(link.title) if "&" in link.title else link.title
            pictures.append(Picture(address, texts))
    shared = share.get("og:image") or share.get("og:image:url")
    if shared and (address := base.join(_AMPERSAND.sub("&", shared))):
        text = share.get("og:image:alt") or share.get("og:description") or share.get("og:title")
        pictures.append(Picture(address, {"og": html.unescape(text)} if text else {}))
    return Page(url, None, robots, pictures, offset)


def _lenient(content: bytes) -> _Document | None:
    """The same document when it has invalid UTF-8, lone surrogates or members of another type; None if not JSON."""
    try:
        parsed = json.loads(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    head_of = _member(parsed, "Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata")
    head = _member(head_of, "Head")
    links = [_Link(**_strings(each, ("path", "url", "alt", "title"))) for each in _items(head_of, "Links")]
    metas = [_Meta(**_strings(each, ("name", "property", "content"))) for each in _items(head, "Metas")]
    page = _Html(_Head(_strings(head, ("Base",)).get("Base"), metas), links) if head_of else None
    header = _member(parsed, "Envelope", "WARC-Header-Metadata")
    return _Document(_Envelope(_Payload(_Response(page)), header))


def _member(parsed: Any, *path: str) -> dict[str, Any]:
    for name in path:
        parsed = parsed.get(name) if isinstance(parsed, dict) else None
    return parsed if isinstance(parsed, dict) else {}


def _items(parsed: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = parsed.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _strings(parsed: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name in names if isinstance(value := parsed.get(name), str)}

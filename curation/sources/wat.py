"""Pages of a WAT: Common Crawl's extract of a WARC, one JSON document for each of its records.

Nine tenths of a document are links to other pages. So the documents are not parsed: what matters is cut out of the
bytes and decoded alone. That relies on the form in which Common Crawl writes them (no spaces, `path` first in a link);
a document of any other form is parsed whole, with the same result.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from ahocorasick_rs import BytesAhoCorasick

from curation.lanes import LANES
from curation.sources.candidates import LAZY_SRC, LAZY_SRCSET, Page, Picture, TextKind, page_language, robots_directives
from curation.sources.html import best_of_srcset
from curation.sources.record import Content, count_bad
from curation.sources.warc import read_content, read_records
from curation.sources.wat_kernel import (
    ABSOLUTE,
    JOIN,
    OF_DIRECTORY,
    OF_ORIGIN,
    OF_SCHEME,
    SRCSET,
    UNSURE,
    cut,
)
from curation.web.urls import Base, is_plain

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


_HTML, _MARK, _BASE = b'"HTML-Metadata"', b'"IMG@', b'"Base"'
# a link that is handed on takes about 1 KB; a document that is shorter has no more of them
_MAX_LINKS = 300_000
_MANY_BYTES = _MAX_LINKS * len(_MARK)
_bases = BytesAhoCorasick([_BASE]).find_matches_as_indexes  # with one pattern: SIMD, several times bytes.find
_decode = msgspec.json.Decoder(_Document).decode
_decode_text = msgspec.json.Decoder(str | None).decode
# img elements have other attributes with addresses, of no picture: longdesc, data-href
_NAMES = (*LAZY_SRCSET, "src", *LAZY_SRC)
_METAS = (
    "og:image",
    "og:image:url",
    "og:image:alt",
    "og:description",
    "og:title",
    "robots",
    "html@/lang",
    "html@/xml:lang",
)
_PATHS = {f"IMG@/{name}": name in LAZY_SRCSET for name in _NAMES}
_ENDED_NAMES, _ENDED_METAS = (
    np.frombuffer("".join(f'{name}"' for name in names).encode(), np.uint8) for names in (_NAMES, _METAS)
)


def read_pages(stream: BinaryIO, location: str, tally: Counter[str], *, max_record_bytes: int) -> Iterator[Page]:
    """Yield the pages of a WAT that link to pictures.

    A record that cannot hold a picture is told by its bytes. Attributes in older WATs keep their entities; in URLs only
    the ampersand's is undone, for "&copy=1" is a query.
    """
    cutter = _Cutter()
    for record in read_records(stream, location, tally, max_record_bytes, _HTML):
        content = read_content(record, tally)
        if content is None:
            continue
        data, start, end = content
        if data.find(_HTML, start, end) < 0:
            if content.copied().lstrip()[:1] == b"{" or "json" not in record.content_type:
                continue
        elif end - start > _MANY_BYTES and max(data.count(mark, start, end) for mark in (_MARK, _BASE)) > _MAX_LINKS:
            count_bad(tally, "too_large")
            continue
        else:
            n_images, found = cutter.cut(content)
            if not n_images and data.find(b'"og:image', start, end) < 0:
                tally["pages"] += 1
                tally["pages_without_pictures"] += 1
                continue
            if found and record.url:
                tally["pages"] += 1
                yield _page(record.url, record.offset, found)
                continue
        document = _parsed(content.copied())
        if document is None:
            count_bad(tally, "json")
            continue
        envelope = document.envelope
        payload = envelope.payload if envelope else None
        parsed = payload.response.html if payload and payload.response else None
        if envelope is None or parsed is None:
            continue
        tally["pages"] += 1
        url = record.url or str(envelope.header.get("WARC-Target-URI", ""))
        yield _page(url, record.offset, _as_cut(parsed))


class _Found(NamedTuple):
    """What matters of a page; of pictures of which nothing is said, the number."""

    base: str | None  # as stated
    links: list[str]  # kind, address, alt and title of each
    metas: list[str]  # name and content of each
    wordless: int


class _Cutter:
    """Cuts what matters out of documents, one after the other."""

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._input = self._output = np.empty(0, np.uint8)
        self._written = self._output.data

    def cut(self, content: Content) -> tuple[int, _Found | None]:
        """How many links of img elements there are, or are at least; and what matters, if it surely is that."""
        data, start, end = content
        if data is not self._data:
            self._data, self._input = data, np.frombuffer(data, np.uint8)
        if end - start + LANES > len(self._output):
            self._output = np.empty(2 * (end - start) + LANES, np.uint8)
            self._written = self._output.data
        metas = data.find(b'"Metas"', start, end)
        size, n_links, wordless, n_images = cut(
            *(self._input, start, end, metas + 8 if metas >= 0 else -1),
            *(_ENDED_METAS, _ENDED_NAMES, len(LAZY_SRCSET), self._output),
        )
        if size == UNSURE or not data.endswith(b"}", start, end):
            return n_images, None
        try:
            fields = str(self._written[:size], "utf-8").split("\0")
            base = _stated_base(data, start, end) if _bases(self._input[start:end].data) else None
        except (UnicodeDecodeError, msgspec.MsgspecError):
            return n_images, None
        return n_images, _Found(base, fields[: 4 * n_links], fields[4 * n_links :], wordless)


def _stated_base(data: bytes | bytearray, start: int, end: int) -> str | None:
    """Base of a document in which that name stands, in Head or anywhere.

    raises  MsgspecError, UnicodeDecodeError: it cannot be told
    """
    at = max(data.find(b'"Head"', start, end), start)
    last = data.find(b'"Links"', at, end)
    at = data.find(b'"Base"', at, last if last >= 0 else end)
    if at < 0:
        return None
    stated = data[at + 7 : data.find(b'"', at + 8, end) + 1]
    # a quote behind a backslash is part of the text, which then is none
    base: str | None = _decode_text(stated)
    return base


def _parsed(content: bytes) -> _Document | None:
    try:
        return _decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _lenient(content)


def _base(url: str, stated: str | None) -> Base:
    base = Base(url)
    return Base(base.join(stated) or url) if stated else base


def _unescaped(address: str) -> str:
    return _AMPERSAND.sub("&", address) if "&" in address and ";" in address else address


def _as_cut(parsed: _Html) -> _Found:
    """As a _Cutter gives it, of a document that was parsed."""
    head = parsed.Head or _Head()
    links: list[str] = []
    metas: list[str] = []
    wordless = 0
    for link in parsed.Links:
        is_srcset = _PATHS.get(link.path)
        if not link.url or is_srcset is None:
            continue
        if link.alt or link.title:
            links += (str(SRCSET if is_srcset else JOIN), link.url, link.alt or "", link.title or "")
        else:
            wordless += 1
    for meta in head.Metas:
        name = meta.property or meta.name
        if name and meta.content:
            metas += (name, meta.content)
    return _Found(head.Base, links, metas, wordless)


def _pictures(base: Base, fields: list[str]) -> list[Picture]:
    pictures: list[Picture] = []
    in_front = _in_front(base)
    each = iter(fields)
    for kind, link, alt, title in zip(each, each, each, each, strict=False):
        if (prefix := in_front.get(kind)) is not None:
            address = prefix + link
        else:
            address = base.join(_unescaped(best_of_srcset(link) if kind == str(SRCSET) else link))
        if address:
            texts: dict[TextKind, str] = {"alt": html.unescape(alt) if "&" in alt else alt} if alt else {}
            if title:
                texts["title"] = html.unescape(title)
            pictures.append(Picture(address, texts))
    return pictures


def _in_front(base: Base) -> dict[str, str]:
    """What makes a link of a kind canonical, put in front of it; without the kinds for which that is not sure."""
    parts = {ABSOLUTE: ""}
    if base.origin:
        parts[OF_SCHEME] = base.scheme
    if is_plain(base.directory):
        parts[OF_DIRECTORY] = base.directory
    if OF_DIRECTORY in parts or is_plain(f"{base.origin}/"):
        parts[OF_ORIGIN] = base.origin
    return {str(kind): part for kind, part in parts.items()}


def _page(url: str, offset: int, found: _Found) -> Page:
    base = _base(url, found.base)
    pictures = _pictures(base, found.links)
    robots: frozenset[str] = frozenset()
    language: str | None = None
    share: dict[str, str] = {}
    each = iter(found.metas)
    for name, content in zip(each, each, strict=False):  # an empty text may be behind the last NUL
        name = name.lower()
        if name.startswith("og:"):
            share.setdefault(name, content)
        elif name == "robots":
            robots |= robots_directives(content)
        elif name in ("html@/lang", "html@/xml:lang"):
            language = language or page_language(content)
    shared = share.get("og:image") or share.get("og:image:url")
    if shared and (address := base.join(_unescaped(shared))):
        text = share.get("og:image:alt") or share.get("og:description") or share.get("og:title")
        pictures.append(Picture(address, {"og": html.unescape(text)} if text else {}))
    return Page(url, language, robots, pictures, offset, found.wordless)


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

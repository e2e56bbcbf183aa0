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
from itertools import repeat
from typing import Any, BinaryIO

import msgspec
from ahocorasick_rs import BytesAhoCorasick

from curation.sources.candidates import Page, Picture, TextKind, page_language, robots_directives
from curation.sources.html import LAZY_SRC, LAZY_SRCSET, best_of_srcset
from curation.sources.record import Content, count_bad
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


_MARK, _BASE = b'"IMG@', b'"Base"'
# a link that is handed on takes about 1 KB; a document that is shorter has no more of them
_MAX_LINKS = 300_000
_MANY_BYTES = _MAX_LINKS * len(_MARK)
# with one pattern: SIMD, twice as fast as bytes.find
_marks = BytesAhoCorasick([_MARK]).find_matches_as_indexes
_bases = BytesAhoCorasick([_BASE]).find_matches_as_indexes
_LINK = b'{"path":'  # before the mark
_decode = msgspec.json.Decoder(_Document).decode
_decode_links = msgspec.json.Decoder(list[_Link]).decode
_decode_metas = msgspec.json.Decoder(list[_Meta]).decode
_decode_text = msgspec.json.Decoder(str | None).decode
# img elements have other attributes with addresses, of no picture: longdesc, data-href
_PATHS = {f"IMG@/{name}": name.endswith("srcset") for name in (*LAZY_SRCSET, *LAZY_SRC, "src")}


def read_pages(stream: BinaryIO, location: str, tally: Counter[str], *, max_record_bytes: int) -> Iterator[Page]:
    """Yield the pages of a WAT that link to pictures.

    A record that cannot hold a picture is told by its bytes. Attributes in older WATs keep their entities; in URLs only
    the ampersand's is undone, for "&copy=1" is a query.
    """
    for record in read_records(stream, location, tally, max_record_bytes):
        content = read_content(record, tally)
        if content is None:
            continue
        data, start, end = content
        if data.find(b'"HTML-Metadata"', start, end) < 0:
            if content.copied().lstrip()[:1] == b"{" or "json" not in record.content_type:
                continue
        elif end - start > _MANY_BYTES and max(data.count(mark, start, end) for mark in (_MARK, _BASE)) > _MAX_LINKS:
            count_bad(tally, "too_large")
            continue
        elif not (marks := _marks(data)) and data.find(b'"og:image', start, end) < 0:
            tally["pages"] += 1
            tally["pages_without_pictures"] += 1
            continue
        elif record.url and (found := _cut_out(content, [mark for _, mark, _ in marks])):
            tally["pages"] += 1
            yield _page(record.url, record.offset, found)
            continue
        document = _parsed(content.copied())
        if document is None:
            count_bad(tally, "json")
            continue
        envelope = document.envelope
        payload = envelope.payload if envelope else None
        found = payload.response.html if payload and payload.response else None
        if envelope is None or found is None:
            continue
        tally["pages"] += 1
        yield _page(record.url or str(envelope.header.get("WARC-Target-URI", "")), record.offset, found)


def _cut_out(content: Content, marks: list[int]) -> _Html | None:
    """What matters of a document whose marks are there; None if it is not surely of Common Crawl's form.

    A link is taken to end at the first brace. Where that is part of a text, the text has no end and nothing is decoded.
    """
    data, start, end = content
    if not data.endswith(b"}", start, end) or (marks and marks[0] < start):
        return None
    metas, stated = b"[]", b"null"
    if (at := data.find(b'"Metas"', start, end)) >= 0 and not data.startswith(b"[]", at + 8):
        metas = data[at + 8 : _end(data, at, b'"}]')]
    if _bases(data):  # as a name in Head, or anywhere
        at = max(data.find(b'"Head"', start, end), start)
        last = data.find(b'"Links"', at, end)
        if (at := data.find(b'"Base"', at, last if last >= 0 else end)) >= 0:
            stated = data[at + 7 : _end(data, at + 8, b'"')]
    # each looked for no further than the next mark: many marks without an end would cost their square
    ends = map(data.find, repeat(b"}"), marks, [*marks[1:], end])
    links = [data[mark - len(_LINK) : last + 1] for mark, last in zip(marks, ends, strict=True)]
    if not all(map(bytes.startswith, links, repeat(_LINK))):
        return None
    try:
        head = _Head(_decode_text(stated), _decode_metas(metas))
        return _Html(head, _decode_links(b"[%b]" % b",".join(links)))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _end(content: bytes, start: int, mark: bytes) -> int:
    """Offset behind the mark, the end of a string; -1, which no JSON text ends before, when it may be part of it."""
    found = content.find(mark, start)
    # a quote behind a backslash may be part of the text
    return found + len(mark) if found > 0 and content[found - 1] != 0x5C else -1


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


def _page(url: str, offset: int, found: _Html) -> Page:
    head = found.Head or _Head()
    base = _base(url, head.Base)
    pictures: list[Picture] = []
    wordless = 0
    for link in found.Links:
        is_srcset, address, alt, title = _PATHS.get(link.path), link.url, link.alt, link.title
        if not address or is_srcset is None:
            continue
        if not (alt or title):
            wordless += 1
            continue
        if address := base.join(_unescaped(best_of_srcset(address) if is_srcset else address)):
            texts: dict[TextKind, str] = {"alt": html.unescape(alt)} if alt else {}
            if title:
                texts["title"] = html.unescape(title)
            pictures.append(Picture(address, texts))
    robots: frozenset[str] = frozenset()
    language: str | None = None
    share: dict[str, str] = {}
    for meta in head.Metas:
        name = meta.property or meta.name
        if not name or name[0] not in "oOrRhH" or not meta.content:
            continue
        name = name.lower()
        if name.startswith("og:"):
            share.setdefault(name, meta.content)
        elif name == "robots":
            robots |= robots_directives(meta.content)
        elif name in ("html@/lang", "html@/xml:lang"):
            language = language or page_language(meta.content)
    shared = share.get("og:image") or share.get("og:image:url")
    if shared and (address := base.join(_unescaped(shared))):
        text = share.get("og:image:alt") or share.get("og:description") or share.get("og:title")
        pictures.append(Picture(address, {"og": html.unescape(text)} if text else {}))
    return Page(url, language, robots, pictures, offset, wordless)


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

"""WAT files from WARC files, in Common Crawl's JSON: one document for each record, links as they stand in the page."""

from __future__ import annotations

import io
import json
import re
from codecs import lookup
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.recordloader import ArcWarcRecord
from warcio.warcwriter import WARCWriter

from curation.demo_crawl.crawler import record_id

_ATTRIBUTE = re.compile(r"([^\s\"'<>/=]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+)))?")
_LINKS = (  # element, attribute, further attributes that Common Crawl keeps beside the link
    ("a", "href", ("title", "rel")),
    ("img", "src", ("alt", "title")),
    ("link", "href", ("rel", "type")),
    ("script", "src", ("type",)),
    ("iframe", "src", ()),
)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)


def write_wat(warc: Path, wat: Path) -> None:
    """Write the WAT of one WARC. Attribute values keep their entities, as in Common Crawl's."""
    with warc.open("rb") as source, wat.open("wb") as sink:
        writer = WARCWriter(sink, gzip=True)
        records = ArchiveIterator(source, arc2warc=False)
        for record in records:
            kind = record.rec_type
            uri = record.rec_headers.get_header("WARC-Target-URI")
            payload = record.content_stream().read()
            document = {
                "Container": {
                    "Filename": warc.name,
                    "Compressed": True,
                    "Offset": str(records.get_record_offset()),
                    "Gzip-Metadata": {"Deflate-Length": str(records.get_record_length())},
                },
                "Envelope": _envelope(record, kind, payload),
            }
            if kind == "warcinfo":
                fields = (
                    f"Software-Info: curation demo\r\nformat: WARC File Format 1.0\r\nWARC: {warc.name}\r\n".encode()
                )
                _write(writer, record, None, "warcinfo", "application/warc-fields", fields, wat.name)
            _write(writer, record, uri, "metadata", "application/json", _json(document), kind)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _write(
    writer: WARCWriter,
    about: ArcWarcRecord,
    uri: str | None,
    kind: str,
    content_type: str,
    payload: bytes,
    name: str,
) -> None:
    refers_to = about.rec_headers.get_header("WARC-Record-ID")
    headers = {
        "WARC-Record-ID": record_id(f"wat {name}", refers_to),
        "WARC-Date": about.rec_headers.get_header("WARC-Date"),
    }
    if kind == "warcinfo":
        headers["WARC-Filename"] = name
    else:
        headers["WARC-Refers-To"] = refers_to
    record = writer.create_warc_record(
        uri,
        kind,
        payload=io.BytesIO(payload),
        length=len(payload),
        warc_content_type=content_type,
        warc_headers_dict=headers,
    )
    writer.write_record(record)


def _envelope(record: ArcWarcRecord, kind: str, payload: bytes) -> dict[str, Any]:
    headers = dict(record.rec_headers.headers)
    metadata: dict[str, Any] = {"Actual-Content-Type": headers.get("Content-Type", "")}
    if kind == "request":
        verb = str(record.http_headers.protocol)
        path, _, version = str(record.http_headers.statusline).partition(" ")
        metadata["HTTP-Request-Metadata"] = {
            "Request-Message": {"Method": verb, "Path": path, "Version": version},
            "Headers": dict(record.http_headers.headers),
        }
    elif kind == "response":
        http = dict(record.http_headers.headers)
        status, _, reason = record.http_headers.statusline.partition(" ")
        metadata["HTTP-Response-Metadata"] = {
            "Response-Message": {"Status": status, "Reason": reason, "Version": record.http_headers.protocol},
            "Headers": http,
            "Entity-Length": str(len(payload)),
            "HTML-Metadata": _html_metadata(payload, http.get("Content-Type", "")),
        }
    elif kind in ("metadata", "warcinfo"):
        pairs = (line.partition(": ") for line in payload.decode("utf-8", "replace").splitlines() if line)
        metadata["WARC-Metadata-Metadata" if kind == "metadata" else "WARC-Info-Metadata"] = {
            name: value for name, _, value in pairs
        }
    return {
        "Format": "WARC/1.0",
        "WARC-Header-Metadata": headers,
        "Payload-Metadata": metadata,
    }


def _html_metadata(body: bytes, content_type: str) -> dict[str, Any]:
    declared = _CHARSET.search(content_type) or _CHARSET.search(body[:2048].decode("latin-1"))
    try:
        charset = lookup(declared[1]).name if declared else "utf-8"
    except LookupError:
        charset = "utf-8"
    reader = _Reader()
    reader.feed(body.decode(charset, "replace"))
    reader.close()
    head: dict[str, Any] = {}
    if reader.title:
        head["Title"] = "".join(reader.title).strip()
    if reader.metas:
        head["Metas"] = reader.metas
    if reader.base is not None:
        head["Base"] = reader.base
    return {"Head": head, "Links": reader.links}


class _Reader(HTMLParser):
    """Collects what a WAT keeps of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.links: list[dict[str, str]] = []
        self.metas: list[dict[str, str]] = []
        self.title: list[str] = []
        self.base: str | None = None
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
            return
        if tag not in ("meta", "base") and all(tag != element for element, _, _ in _LINKS):
            return
        raw = _raw_attributes(self.get_starttag_text() or "")
        if tag == "meta":
            self.metas.append(raw)
        elif tag == "base":
            self.base = self.base if self.base is not None else raw.get("href")
        for element, attribute, beside in _LINKS:
            if tag == element and raw.get(attribute):
                link = {"path": f"{tag.upper()}@/{attribute}", "url": raw[attribute]}
                self.links.append(link | {name: raw[name] for name in beside if raw.get(name)})

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)


def _raw_attributes(start_tag: str) -> dict[str, str]:
    """Attributes with their values as written, entities and all; of a name that stands twice the first counts."""
    attributes: dict[str, str] = {}
    for found in _ATTRIBUTE.finditer(start_tag.partition(" ")[2] if " " in start_tag else start_tag):
        value = next((group for group in found.groups()[1:] if group is not None), "")
        attributes.setdefault(found[1].lower(), value)
    return attributes


def read_json(stream: BinaryIO) -> list[dict[str, Any]]:
    """The JSON documents of a WAT, in order."""
    return [
        json.loads(record.content_stream().read())
        for record in ArchiveIterator(stream)
        if record.rec_type == "metadata"
    ]

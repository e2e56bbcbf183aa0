"""Archives for benchmarks/extract.py: a WARC and its WAT of any size, out of the pages of real WARCs.

python benchmarks/extract_archives.py FOLDER [--source WARC ...] [--copies 8]

The pages are those of --source, by default the saved live pages in ../shared/data, else the demo crawl. Every copy
lives on hosts of its own, so that no cache of names helps more than in a crawl. The WAT has what Common Crawl's has
(ia-web-commons 1.1.10, ExtractingParseObserver): a record each for request, response and metadata; all links, scripts
and metas of the page with their attributes, entities decoded.
"""

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastwarc.warc import ArchiveIterator, WarcRecordType
from selectolax.lexbor import LexborHTMLParser

from curation.demo_crawl.build import build_demo_crawl
from curation.sources.body import decode_body, read_head
from curation.sources.html import utf8_html

SAVED_PAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "warc" / "loopback" / "web-pages-a.warc.gz"
_DATE = "2026-01-20T01:58:10Z"
_ID = "<urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>"
_DIGEST = "sha1:IE7NEN3QEJHUCYRRGVMHDDW3BEHFRQ6V"
_ADDRESS = re.compile(r"""(["'(=,\s](?:https?:)?//)(?=[a-z0-9])""")
_LINKS = {  # element: its URL attributes, the attributes kept beside the first
    "a": (("href",), ("target", "alt", "title", "rel", "hreflang", "type")),
    "area": (("href",), ("rel",)),
    "form": (("action",), ("target", "method")),
    "iframe": (("src",), ()),
    "img": (("src", "longdesc"), ("alt", "title")),
    "input": (("src", "formaction"), ()),
    "video": (("src", "poster"), ()),
    "source": (("src",), ()),
    "object": (("data",), ()),
}


def read_pages(archives: list[Path]) -> Iterator[tuple[str, str]]:
    """Address and text of every HTML page of some WARCs."""
    for path in archives:
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False):
                content = record.reader.read()
                head = read_head(content)
                if head is None or head.status != 200 or "html" not in head.media_type:
                    continue
                body = decode_body(content[head.body_start :], head.transfer_encoding, head.content_encoding, 1 << 24)
                if body:
                    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
                    yield url, utf8_html(body, head.charset).decode("utf-8", "replace")


def write_archives(folder: Path, archives: list[Path], copies: int) -> tuple[Path, Path]:
    """Write folder/pages.warc.gz and folder/pages.warc.wat.gz."""
    pages = list(read_pages(archives))
    folder.mkdir(parents=True, exist_ok=True)
    warc, wat = folder / "pages.warc.gz", folder / "pages.warc.wat.gz"
    with warc.open("wb") as warc_out, wat.open("wb") as wat_out:
        for copy in range(copies):
            for url, text in pages:
                own_url = re.sub(r"(?<=://)", f"c{copy}-", url, count=1)
                own = _ADDRESS.sub(rf"\1c{copy}-", text)
                offset = warc_out.tell()
                warc_out.write(_response(own_url, own.encode("utf-8", "replace")))
                for kind, payload in (
                    ("request", _REQUEST),
                    ("response", {"HTTP-Response-Metadata": _html_metadata(own)}),
                    ("metadata", _FETCH),
                ):
                    wat_out.write(_wat_record(own_url, kind, payload, offset, warc_out.tell() - offset))
    return warc, wat


def _record(kind: str, url: str, content_type: str, content: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: {_DATE}\r\nWARC-Record-ID: {_ID}\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + content + b"\r\n\r\n", 6)


def _response(url: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}"
    return _record("response", url, "application/http; msgtype=response", f"{head}\r\n\r\n".encode() + body)


_REQUEST = {
    "HTTP-Request-Metadata": {
        "Request-Message": {"Method": "GET", "Path": "/", "Version": "HTTP/1.1"},
        "Headers-Length": "263",
        "Headers": {"User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)", "Accept": "text/html", "Host": "x"},
        "Entity-Length": "0",
        "Entity-Digest": _DIGEST,
        "Entity-Trailing-Slop-Length": "0",
    }
}
_FETCH = {
    "WARC-Metadata-Metadata": {
        "Metadata-Records": [
            {"Name": "fetchTimeMs", "Value": "85"},
            {"Name": "charset-detected", "Value": "UTF-8"},
            {"Name": "languages-cld2", "Value": '{"reliable":true,"text-bytes":1834,"languages":[{"code":"en"}]}'},
        ]
    }
}


def _wat_record(url: str, kind: str, payload: dict[str, Any], offset: int, length: int) -> bytes:
    document = {
        "Container": {
            "Filename": "CC-MAIN-20260120015810-20260120045810-00000.warc.gz",
            "Compressed": True,
            "Offset": str(offset),
            "Gzip-Metadata": {
                "Deflate-Length": str(length),
                "Header-Length": "10",
                "Footer-Length": "8",
                "Inflated-CRC": "1106529533",
                "Inflated-Length": str(4 * length),
            },
        },
        "Envelope": {
            "Payload-Metadata": {
                "Actual-Content-Type": f"application/http; msgtype={kind}",
                **payload,
                "Actual-Content-Length": "265",
                "Trailing-Slop-Length": "4",
                "Block-Digest": _DIGEST,
            },
            "Format": "WARC/1.0",
            "WARC-Header-Length": "357",
            "WARC-Header-Metadata": {
                "WARC-Type": kind,
                "WARC-Date": _DATE,
                "WARC-Record-ID": _ID,
                "Content-Length": "265",
                "Content-Type": f"application/http; msgtype={kind}",
                "WARC-Warcinfo-ID": _ID,
                "WARC-IP-Address": "192.0.2.1",
                "WARC-Target-URI": url,
            },
        },
    }
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return _record("metadata", url, "application/json", content)


def _html_metadata(markup: str) -> dict[str, Any]:
    head: dict[str, Any] = {"Metas": [], "Link": [], "Scripts": []}
    links: list[dict[str, str]] = []
    root = LexborHTMLParser(markup).root
    for node in root.traverse() if root else ():
        attributes = {name: value or "" for name, value in node.attributes.items()}
        tag = node.tag
        if tag == "title":
            head.setdefault("Title", node.text(strip=True))
        elif tag == "html" and "lang" in attributes:
            head["Metas"].append({"name": "HTML@/lang", "content": attributes["lang"]})
        elif tag == "base" and "href" in attributes:
            head["Base"] = attributes["href"]
        elif tag == "meta":
            kept = ("name", "content", "http-equiv", "property")
            head["Metas"].append({name: attributes[name] for name in kept if name in attributes})
        elif tag == "link" and "href" in attributes:
            kept = ("rel", "type")
            link = {"path": "LINK@/href", "url": attributes["href"]}
            head["Link"].append(link | {name: attributes[name] for name in kept if name in attributes})
        elif tag == "script" and "src" in attributes:
            head["Scripts"].append({"path": "SCRIPT@/src", "url": attributes["src"]})
        elif tag in _LINKS:
            addresses, beside = _LINKS[tag]
            for name in addresses:
                if name in attributes:
                    link = {"path": f"{tag.upper()}@/{name}", "url": attributes[name]}
                    links.append(link | {each: attributes[each] for each in beside if each in attributes})
                    beside = ()
            if tag == "a" and "href" in attributes and (text := node.text(strip=True, separator=" ")[:128]):
                links[-1]["text"] = text
    return {
        "Response-Message": {"Status": "200", "Reason": "OK", "Version": "HTTP/1.1"},
        "Headers-Length": "420",
        "Headers": {"Server": "nginx", "Content-Type": "text/html; charset=utf-8", "Connection": "keep-alive"},
        "HTML-Metadata": {"Head": head, "Links": links},
        "Entity-Length": str(len(markup)),
        "Entity-Digest": _DIGEST,
        "Entity-Trailing-Slop-Length": "0",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--source", type=Path, nargs="*", help="WARCs")
    arguments.add_argument("--copies", type=int, default=8)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as place:
        archives = given.source or [SAVED_PAGES]
        if not archives[0].is_file():
            build_demo_crawl(Path(place) / "demo")
            archives = sorted((Path(place) / "demo").rglob("*.warc.gz"))
        for path in write_archives(given.folder, archives, given.copies):
            print(path, f"{path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""An archived HTTP response: its head, and its body without encodings, as much of it as can be had."""

import io
import re
import zlib
from typing import NamedTuple

from fastwarc.stream_io import BrotliReader, ZstdReader

_STEP_BYTES = 256 << 10


_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})")
_FIELD = re.compile(rb"^(content-type|content-encoding|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)", re.I | re.M)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,]+)", re.IGNORECASE)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class Head(NamedTuple):
    """What matters of a response's head; "" for a field that is not there."""

    status: int
    media_type: str  # lower case, without parameters
    charset: str
    transfer_encoding: str
    content_encoding: str
    body_start: int  # offset of the body, bytes


def read_head(data: bytes | bytearray, start: int, end: int) -> Head | None:
    """Head of the response data[start:end]; None when that is no HTTP response."""
    status = _STATUS.match(data, start, end)
    if status is None:
        return None
    blank = _BLANK_LINE.search(data, start, end)
    fields: dict[bytes, str] = {}
    for found in _FIELD.finditer(data, status.end(), blank.start() if blank else end):
        fields.setdefault(found[1].lower(), found[2].decode("latin-1").strip())
    kind = fields.get(b"content-type", "")
    charset = _CHARSET.search(kind)
    return Head(
        int(status[1]),
        kind.partition(";")[0].strip().lower(),
        charset[1] if charset else "",
        fields.get(b"transfer-encoding", ""),
        fields.get(b"content-encoding", ""),
        blank.end() if blank else end,
    )


def decode_body(body: bytes, transfer_encoding: str, content_encoding: str, max_bytes: int) -> bytes | None:
    """Decoded body; None when it grows beyond max_bytes.

    Archivers often store bodies decoded under the headers of the encoded ones, and crawlers cut long bodies: what is
    not chunked or compressed in truth is taken as it is, and a cut stream gives its beginning.
    """
    if "chunked" in transfer_encoding.lower():
        body = _unchunked(body)
    for coding in reversed([each.strip().lower() for each in content_encoding.split(",")][:4]):
        decoded: bytes | None = body
        if coding in ("gzip", "x-gzip", "deflate"):
            decoded = _inflated(body, max_bytes)
        elif coding == "br":
            decoded = _read(BrotliReader, body, max_bytes)
        elif coding == "zstd" and body.startswith(b"\x28\xb5\x2f\xfd"):
            decoded = _read(ZstdReader, body, max_bytes)
        if decoded is None:
            return None
        body = decoded
    return body if len(body) <= max_bytes else None


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        line_end = body.find(b"\n", at, at + 4096)
        size = body[at:line_end].partition(b";")[0].strip() if line_end >= 0 else b""
        if not size or len(size) > 8 or size.strip(b"0123456789abcdefABCDEF"):
            return b"".join(parts) if parts else body
        length = int(size, 16)
        if length == 0:
            break
        parts.append(body[line_end + 1 : line_end + 1 + length])
        at = line_end + 1 + length
        at += 2 if body[at : at + 2] == b"\r\n" else body[at : at + 1] == b"\n"
    return b"".join(parts)


def _inflated(body: bytes, max_bytes: int) -> bytes | None:
    # gzip and zlib tell themselves by their header; deflate without any is tried when the header says deflate
    window = 47 if body[:2] == b"\x1f\x8b" or (body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0) else -15
    if window < 0 and body[:512].lstrip()[:1] in (b"<", b"{"):
        return body  # stored decoded
    inflater = zlib.decompressobj(window)
    parts: list[bytes] = []
    size = 0
    try:
        while body and not inflater.eof:
            part = inflater.decompress(body, _STEP_BYTES)
            size += len(part)
            if size > max_bytes:
                return None
            parts.append(part)
            if not part and not inflater.unconsumed_tail:
                break
            body = inflater.unconsumed_tail
    except zlib.error:
        return b"".join(parts) or body
    return b"".join(parts)


def _read(reader: type, body: bytes, max_bytes: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    try:
        stream = reader(io.BytesIO(body))
        while part := stream.read(_STEP_BYTES):
            size += len(part)
            if size > max_bytes:
                return None
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts) or body

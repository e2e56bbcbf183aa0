"""Records of a WARC that lie as one whole gzip member each, as crawlers write them: two thirds of a stream's time.

libdeflate inflates a member at once when its length is known. It is: a member ends where the next begins, its last four
bytes say how long it is inflated, and its checksum shows that both were found right. What is not exactly so, a member
of two records, a length that lies, damage, is left to the reader of streams (sources/warc.py), which gives the same for
everything that is read here.
"""

import re
import zlib
from collections.abc import Iterator
from struct import Struct
from typing import cast

from imagecodecs import DeflateError, deflate_crc32, deflate_decode

from curation.sources.record import Content, Record

GZIP = b"\x1f\x8b\x08"
MAX_MEMBER_BYTES = 8 << 20  # as stored; a longer one is a stream's matter
_MAX_RATIO = 1032  # of deflate
_HEADER_BYTES = 10  # of a member without optional fields
_TRAILER = Struct("<II")  # CRC-32 and length of what is inflated
_FRAME_BYTES = _HEADER_BYTES + _TRAILER.size
_VALUE = rb"[!-~](?:[ -~\x80-\xff]*[!-~])?"
# Every field at most once, the four that matter in the standard's spelling: of others readers take this or that.
_HEAD = re.compile(
    rb"WARC/1\.[01]\r\n(?:(?:WARC-Type: (?(1)(?!))([a-z]+)|WARC-Target-URI: (?(2)(?!))(%b)|Content-Type: (?(3)(?!))(%b)"
    rb"|Content-Length: (?(4)(?!))([0-9]{1,10})|(?!(?i:warc-type|warc-target-uri|content-type|content-length):)"
    rb"[A-Za-z][A-Za-z-]*+: %b)\r\n)++\r\n" % (_VALUE, _VALUE, _VALUE)
)


def whole_records(raw: bytes, offset: int, is_all: bool, max_bytes: int) -> Iterator[tuple[int, Record | None]]:
    """Yield each record at the start of `raw` that is one whole member, and where in raw its member ends.

    offset     of raw in the archive
    is_all     the archive ends where raw does
    max_bytes  a member that inflates to more is not taken
    returns    at the first that can't be told to be whole; before that None, if more of the archive could help
    """
    at = 0
    while at < len(raw):
        following = raw.find(GZIP, at + _FRAME_BYTES)
        if following < 0 and not is_all:
            break
        inflated, end = inflated_member(raw, at, following if following >= 0 else len(raw), is_all, max_bytes)
        record = whole_record(inflated, offset + at) if inflated is not None else None
        if record is None:
            if inflated is None and end < 0:
                yield at, None
            return
        at = end
        yield at, record
    if not is_all and len(raw) - at <= MAX_MEMBER_BYTES:
        yield at, None


def whole_record(inflated: bytes, offset: int) -> Record | None:
    """The record that these bytes are, from the first to the last; None when that is not sure."""
    head = _HEAD.match(inflated)
    if head is None:
        return None
    kind, url, content_type, length = head.groups(b"")
    end = head.end() + int(length or -1)
    if not kind or end + 4 != len(inflated) or not inflated.endswith(b"\r\n\r\n"):
        return None
    return Record(
        offset,
        url.decode("utf-8", "replace").strip("<> "),
        kind.decode(),
        content_type.decode("utf-8", "replace"),
        None,
        Content(inflated, head.end(), end),
    )


def inflated_member(raw: bytes, start: int, end: int, is_all: bool, max_bytes: int) -> tuple[bytes | None, int]:
    """The member from `start`, inflated, and where it ends.

    end      where the next member seems to begin, or where raw and the archive end
    returns  None when it cannot be told to be whole; then the offset is -1 if more of the archive could help
    """
    if end < start + _FRAME_BYTES or raw[start + 3]:
        return None, 0  # a header with more fields, which decoders check more or less of
    checksum, size = _TRAILER.unpack_from(raw, end - _TRAILER.size)
    if size <= min(max_bytes, _MAX_RATIO * (end - start)):
        try:
            deflated = raw[start + _HEADER_BYTES : end - _TRAILER.size]
            inflated = cast(bytes, deflate_decode(deflated, raw=True, out=size))
            # libdeflate says nothing of what may lie behind the deflated data: the trailer must be this member's
            if len(inflated) == size and deflate_crc32(inflated) == checksum:
                return inflated, end
        except (DeflateError, ValueError):
            pass
    return (None, 0) if end == len(raw) else _streamed_member(raw, start, is_all, max_bytes)


def _streamed_member(raw: bytes, start: int, is_all: bool, max_bytes: int) -> tuple[bytes | None, int]:
    """As inflated_member, of a member inside which the next seems to begin: once in 16 MB by chance."""
    member = zlib.decompressobj(31)
    try:
        inflated = member.decompress(raw[start : start + MAX_MEMBER_BYTES], max_bytes)
    except zlib.error:
        return None, 0
    end = min(len(raw), start + MAX_MEMBER_BYTES) - len(member.unused_data)
    if member.eof and (raw.startswith(GZIP, end) or (is_all and end == len(raw))):
        return inflated, end
    return None, -1 if end == len(raw) and not is_all and not member.unconsumed_tail else 0

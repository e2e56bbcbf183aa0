"""Records of a WARC that lie as one whole gzip member each, as crawlers write them: two thirds of a stream's time.

libdeflate inflates a member at once when its length is known. It is: a member ends where the next begins, its last four
bytes say how long it is inflated, and its checksum shows that both were found right. What is not exactly so, a member
of two records, a length that lies, damage, is left to the reader of streams (sources/warc.py), which gives the same for
everything that is read here.
"""

import re
import zlib
from typing import NamedTuple, cast

from imagecodecs import DeflateError, deflate_crc32, deflate_decode

GZIP = b"\x1f\x8b\x08"
MAX_MEMBER_BYTES = 8 << 20  # as stored; a longer one is a stream's matter
_MAX_RATIO = 1032  # of deflate
_HEADER_BYTES, _TRAILER_BYTES = 10, 8  # of a member without optional fields
_VALUE = rb"[!-~](?:[ -~\x80-\xff]*[!-~])?"
# Every field at most once, the four that matter in the standard's spelling: of others readers take this or that.
_HEAD = re.compile(
    rb"WARC/1\.[01]\r\n(?:(?:WARC-Type: (?(1)(?!))([a-z]+)|WARC-Target-URI: (?(2)(?!))(%b)|Content-Type: (?(3)(?!))(%b)"
    rb"|Content-Length: (?(4)(?!))([0-9]{1,10})|(?!(?i:warc-type|warc-target-uri|content-type|content-length):)"
    rb"[A-Za-z][A-Za-z-]*+: %b)\r\n)++\r\n" % (_VALUE, _VALUE, _VALUE)
)


class WholeRecord(NamedTuple):
    """A record as its member had it; "" for a field that is not there. Its content is member[start:end]."""

    kind: str  # WARC-Type, lower case
    content_type: str
    url: str
    member: bytes
    start: int
    end: int


def whole_record(inflated: bytes) -> WholeRecord | None:
    """The record that these bytes are, from the first to the last; None when that is not sure."""
    head = _HEAD.match(inflated)
    if head is None:
        return None
    kind, url, content_type, length = head.groups(b"")
    end = head.end() + int(length or -1)
    if not kind or end + 4 != len(inflated) or not inflated.endswith(b"\r\n\r\n"):
        return None
    return WholeRecord(
        kind.decode(),
        content_type.decode("utf-8", "replace"),
        url.decode("utf-8", "replace"),
        inflated,
        head.end(),
        end,
    )


def inflated_member(raw: bytearray, start: int, is_all: bool, max_bytes: int) -> tuple[bytes | None, int]:
    """The member that starts at this offset of `raw`, inflated, and the offset of its end.

    is_all     the archive ends where raw does
    max_bytes  a member that inflates to more is not taken
    returns    None when it cannot be told to be whole; then the offset is -1 if more of the archive could help
    """
    if raw[start + 3 : start + 4].strip(b"\0"):
        return None, 0  # a header with more fields, which decoders check more or less of
    following = raw.find(GZIP, start + _HEADER_BYTES + _TRAILER_BYTES)
    if following < 0 and not is_all:
        return None, -1 if len(raw) - start <= MAX_MEMBER_BYTES else 0
    end = following if following >= 0 else len(raw)
    checksum, size = int.from_bytes(raw[end - 8 : end - 4], "little"), int.from_bytes(raw[end - 4 : end], "little")
    if size <= min(max_bytes, _MAX_RATIO * (end - start)):
        try:
            with memoryview(raw) as view, view[start + _HEADER_BYTES : end - _TRAILER_BYTES] as member:
                inflated = cast(bytes, deflate_decode(cast(bytes, member), raw=True, out=size))
            # libdeflate says nothing of what may lie behind the deflated data: the trailer must be this member's
            if len(inflated) == size and deflate_crc32(inflated) == checksum:
                return inflated, end
        except (DeflateError, ValueError):
            pass
    return (None, 0) if following < 0 else _streamed_member(raw, start, is_all, max_bytes)


def _streamed_member(raw: bytearray, start: int, is_all: bool, max_bytes: int) -> tuple[bytes | None, int]:
    """As inflated_member, of a member inside which the next seems to begin: once in 16 MB by chance."""
    member = zlib.decompressobj(31)
    try:
        inflated = member.decompress(bytes(raw[start : start + MAX_MEMBER_BYTES]), max_bytes)
    except zlib.error:
        return None, 0
    end = min(len(raw), start + MAX_MEMBER_BYTES) - len(member.unused_data)
    if member.eof and (raw.startswith(GZIP, end) or (is_all and end == len(raw))):
        return inflated, end
    return None, -1 if end == len(raw) and not is_all and not member.unconsumed_tail else 0

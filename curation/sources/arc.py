"""Records of an ARC, the Internet Archive's format before WARC (version 1 and 2), plain or of gzip members.

A record is a line "URL address date type length" (version 2 has more between) and as many bytes.
source  https://archive.org/web/researcher/ArcFileFormat.php
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from curation.sources.members import GZIP, Members
from curation.sources.record import count_bad

_HEADER = re.compile(rb"([A-Za-z][\w+.-]*:[^\r\n]*) [\d.:a-fA-F]{3,45} \d{8,14} [^\r\n]*?(\d{1,12})\r?\n")
_MAX_LINE_BYTES = 16 << 10


class ArcRecord(NamedTuple):
    """One record: its address, the offset of its member or header in the archive as stored, and what it holds."""

    url: str
    offset: int
    content: bytes


def is_arc(head: bytes) -> bool:
    """Whether an archive that begins with these bytes is an ARC."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, _MAX_LINE_BYTES)
        except zlib.error:
            return False
    return _HEADER.match(head.lstrip()[:_MAX_LINE_BYTES]) is not None


def read_records(members: Members, tally: Counter[str], max_record_bytes: int) -> Iterator[ArcRecord]:
    """Yield the records in order; count and pass over damage.

    A record that declares more than max_record_bytes is counted (records_bad_too_large) and passed over. Lines that
    are no header where one should be count as one damage (records_bad_damaged); reading goes on at the next header.
    Of an archive that ends inside a record (archive_truncated) the last one is as long as it came.
    """
    text = _Text(members)
    whole = True
    while (line := text.line()) is not None:
        found = _HEADER.fullmatch(line)
        if found is None:
            if line.strip() and whole:
                whole = False
                count_bad(tally, "damaged")
            continue
        whole = True
        tally["records"] += 1
        offset, length = members.stored_offset(text.at - len(line)), int(found[2])
        if length > max_record_bytes:
            count_bad(tally, "too_large")
            text.skip(length)
            continue
        content = text.take(length)
        if len(content) < length:
            tally["archive_truncated"] = 1
        yield ArcRecord(found[1].decode("utf-8", "replace"), offset, content)
    if members.damaged:
        tally["records_bad"] += members.damaged
        tally["records_bad_damaged"] += members.damaged
    if members.cut:
        tally["archive_truncated"] = 1
    tally["bytes_read"] += members.bytes_read


class _Text:
    """Lines and runs of bytes, in turn, of the plain bytes of an archive."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._buffer = bytearray()
        self.at = 0  # offset of what comes next in the plain bytes

    def line(self) -> bytes | None:
        """Next line with its end, in pieces when it is very long; None at the end."""
        while (end := self._buffer.find(b"\n", 0, _MAX_LINE_BYTES)) < 0 and len(self._buffer) < _MAX_LINE_BYTES:
            if not self._fill():
                break
        return self._cut(end + 1 if end >= 0 else _MAX_LINE_BYTES) or None

    def take(self, size: int) -> bytes:
        """Next bytes; fewer only at the end."""
        while len(self._buffer) < size and self._fill():
            pass
        return self._cut(size)

    def skip(self, size: int) -> None:
        """Pass over bytes without keeping them."""
        while size > 0:
            passed = len(self._cut(size))
            size -= passed
            if not passed and not self._fill():
                return

    def _fill(self) -> bool:
        plain = self._members.read()
        self._buffer += plain
        return bool(plain)

    def _cut(self, size: int) -> bytes:
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.at += len(part)
        return part

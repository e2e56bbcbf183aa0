"""Records of a WARC, gzip, zstd, lz4 or plain, past whatever damage lies between them; and the pages among them."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

from fastwarc.warc import ArchiveIterator

from curation.errors import BadShardError
from curation.sources import arc, libdeflate
from curation.sources.arc import is_arc
from curation.sources.body import Head, decode_body, read_head
from curation.sources.candidates import Page
from curation.sources.gzip_records import GZIP, MemberReader
from curation.sources.html import may_hold_pictures, read_html, too_costly, utf8_html
from curation.sources.members import DICTIONARY, Members, Rewound
from curation.sources.record import Content, Record, count_bad

MAX_HEADER_BYTES = 64 << 10
_WINDOW_BYTES = 32 << 20  # raw bytes kept to look for the next record after damage
_CHUNK_BYTES = 256 << 10
_AHEAD_BYTES = 1 << 20  # at once where members are whole: the last one that is cut is inflated in vain
_ZSTD, _LZ4 = b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
_PLAIN_RECORD = re.compile(rb"(?<=\n)WARC/[01]\.\d{1,2}\r?\n(?=[\w-]{2,40}:)")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_PROBE_BYTES = 4096  # compressed bytes that surely hold the first line of a record


def read_records(
    stream: BinaryIO | Rewound, location: str, tally: Counter[str], max_record_bytes: int, mark: bytes = b""
) -> Iterator[Record]:
    """Yield the records of an archive in order; count and pass over damage.

    A JSON document without the mark may be counted and left out.

    A record that declares more than max_record_bytes is counted (records_bad_too_large), never read. Where the archive
    is damaged (records_bad_damaged) reading goes on at the next record that can be found. When the archive ends in
    the middle of a record, or in damage that no record follows, archive_truncated is 1. Memory: a window of the raw
    bytes, never the record.

    raises  BadShardError when not one record can be read; what the stream itself raises
    """
    rewound = stream if isinstance(stream, Rewound) else Rewound(stream)
    # fastwarc reads zstd, but for frames that need the dictionary in front of them
    members = Members(rewound) if rewound.head.startswith(DICTIONARY) else None
    source = _Source(members or rewound)
    reader = MemberReader(max_record_bytes, mark) if libdeflate.is_there() else None
    start: int | None = 0
    while start is not None:
        for record in source.whole_records(reader) if reader else ():
            tally["records"] += 1
            yield record
        last = base = start = source.position
        quirks = source.lines_end_bare()
        damage_before = tally["records_bad_damaged"]
        again: int | None = None  # where to look for the next record after damage
        try:
            for raw in ArchiveIterator(source, parse_http=False, max_header_len=MAX_HEADER_BYTES, quirks_mode=quirks):
                source.check()
                last = max(base + raw.stream_pos, last)
                source.forget(last)
                if raw.headers.get("Content-Length") is None:  # its header is cut or never ends
                    again = last + (quirks or not source.lines_end_bare(last))
                    if again > last:
                        count_bad(tally, "damaged")
                    break
                tally["records"] += 1
                if raw.content_length > max_record_bytes:
                    count_bad(tally, "too_large")
                    again = last + 1
                    break
                offset = last if members is None else members.stored_offset(last)
                url, content_type = (raw.headers.get(name) or "" for name in ("WARC-Target-URI", "Content-Type"))
                yield Record(offset, url.strip("<> "), str(raw.record_type), content_type, raw)
        except OSError:
            source.check()
            count_bad(tally, "damaged")
            again = last + 1
        except BaseException as error:
            # fastwarc is Rust: a panic on hostile bytes arrives as a BaseException of a class that can't be imported
            if type(error).__name__ != "PanicException":
                raise
            count_bad(tally, "damaged")
            again = last + 1
        source.check()
        damaged = tally["records_bad_damaged"] > damage_before
        if again is None and source.ends_cut(last):
            again, damaged = last + 1, True
        start = None if again is None else source.seek_record(again)
        if damaged and start is not None and tally["records_bad_damaged"] == damage_before:
            count_bad(tally, "damaged")  # not the archive's end: a length that lies
    if reader and reader.n_passed:
        tally["records"] += reader.n_passed
    if not tally["records"]:
        raise BadShardError(f"{location}: expected a WARC, found {_described(source.head)}")
    for _ in range(members.damaged if members else 0):
        count_bad(tally, "damaged")
    if damaged or (members and members.cut):
        tally["archive_truncated"] = 1
    tally["bytes_read"] += members.bytes_read if members else source.end


def read_content(record: Record, tally: Counter[str], wanted: Callable[[bytes], bool] | None = None) -> Content | None:
    """Content of a record, None when it is damaged (and counted) or when its first bytes are not `wanted`.

    `wanted` is not asked of a record that was read at once.

    When it is shorter than declared, because the archive is cut or the length lies, it ends before the record that
    was read as part of it.
    """
    if record.content is not None:
        return record.content
    reader = record.raw.reader
    try:
        content: bytes = reader.read(_CHUNK_BYTES)
        if wanted is not None and not wanted(content):
            return None
        parts = [content]
        while part := reader.read(_CHUNK_BYTES):
            parts.append(part)
    except OSError:
        count_bad(tally, "damaged")
        return None
    content = b"".join(parts)
    if len(content) < record.raw.content_length and (following := _PLAIN_RECORD.search(content)):
        content = content[: following.start()].rstrip(b"\r\n")
    return Content(content, 0, len(content))


def read_pages(
    stream: BinaryIO, location: str, tally: Counter[str], *, max_record_bytes: int, max_page_bytes: int
) -> Iterator[Page]:
    """Yield the HTML pages of a WARC or an ARC that may show pictures.

    Pages are responses with status 2xx and resources whose type is HTML or XHTML, or not given and the body begins
    with "<".
    """
    rewound = Rewound(stream)
    if is_arc(rewound.head):
        contents = _of_arc(rewound, tally, max_record_bytes)
    else:
        contents = _of_warc(rewound, location, tally, max_record_bytes)
    for url, offset, head, stored in contents:
        body = decode_body(stored, head.transfer_encoding, head.content_encoding, max_page_bytes)
        if body is None:
            count_bad(tally, "too_large")
            continue
        if not head.media_type and body[:512].lstrip()[:1] != b"<":
            continue
        tally["pages"] += 1
        if not may_hold_pictures(body):
            tally["pages_without_pictures"] += 1
            continue
        markup = utf8_html(body, head.charset)
        if cost := too_costly(markup):
            count_bad(tally, cost)
            continue
        yield read_html(markup, url, offset)


def _of_warc(
    stream: Rewound, location: str, tally: Counter[str], max_record_bytes: int
) -> Iterator[tuple[str, int, Head, bytes]]:
    for record in read_records(stream, location, tally, max_record_bytes):
        if record.kind == "response":
            content = read_content(record, tally, _is_page)
            head = _page_head(*content) if content is not None else None
        elif record.kind == "resource" and "html" in record.content_type:
            content = read_content(record, tally)
            head = Head(200, "text/html", "", "", "", content.start if content else 0)
        else:
            continue
        if content is not None and head is not None:
            yield record.url, record.offset, head, content._replace(start=head.body_start).copied()


def _of_arc(stream: Rewound, tally: Counter[str], max_record_bytes: int) -> Iterator[tuple[str, int, Head, bytes]]:
    for url, offset, content in arc.read_records(Members(stream), tally, max_record_bytes):
        if (head := _page_head(content, 0, len(content))) is not None:
            yield url, offset, head, content[head.body_start :]


def _is_page(content: bytes) -> bool:
    return _page_head(content, 0, len(content)) is not None


def _page_head(data: bytes | bytearray, start: int, end: int) -> Head | None:
    head = read_head(data, start, end)
    is_page = head is not None and 200 <= head.status < 300 and (not head.media_type or "html" in head.media_type)
    return head if is_page else None


class _Source:
    """The archive's stream with a window of what was read last, so that reading can start again after damage."""

    def __init__(self, stream: Members | Rewound) -> None:
        self._stream = stream
        self._window = bytearray()
        self._start = 0  # offset of the window's first byte in the archive
        self.position = 0  # offset that fastwarc reads next
        self.end = 0  # bytes taken from the stream
        self.head = b""
        self._failure: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        if self.position == self.end:
            self._fill(size if 0 < size < _CHUNK_BYTES else _CHUNK_BYTES)
        at = self.position - self._start
        chunk = bytes(self._window[at : at + size] if size >= 0 else self._window[at:])
        self.position += len(chunk)
        return chunk

    def tell(self) -> int:
        return 0  # each ArchiveIterator counts from where it began

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("the archive is a stream")

    def close(self) -> None:
        """Nothing: the stream is the caller's."""

    def check(self) -> None:
        """Raise what the stream raised: fastwarc would turn it into one of its own errors."""
        if self._failure is not None:
            raise self._failure

    def forget(self, offset: int) -> None:
        """Let go of the window before this offset of the archive."""
        if offset - self._start > _CHUNK_BYTES:
            del self._window[: min(offset, self.position) - self._start]
            self._start = min(offset, self.position)

    def seek_record(self, offset: int) -> int | None:
        """Move to the next start of a record at or after this offset; None, and the end, when there is none."""
        at = max(offset, self._start)
        while True:
            found = self._next_start(at)
            if found is not None:
                self.position = found
                return found
            at = max(at, self.end - _PROBE_BYTES)
            self._trim(at)
            if not self._fill(_CHUNK_BYTES):
                self.position = self.end
                return None

    def ends_cut(self, last: int) -> bool:
        """Whether the archive ends inside a record, as far as the window reaches back to the last one."""
        self.check()
        if last < self._start:
            return False
        tail = bytes(self._window[last - self._start :])
        first = True
        while tail.startswith(GZIP):
            member = zlib.decompressobj(31)
            inflated, size = b"", 0
            try:
                while tail and not member.eof:
                    part = member.decompress(tail, _CHUNK_BYTES)
                    inflated, size = inflated or part, size + len(part)
                    tail = member.unused_data if member.eof else member.unconsumed_tail
            except zlib.error:
                return False  # damaged, and counted as that
            if not member.eof or (first and _missing_bytes(inflated, size)):
                return True
            first = False
        if tail and GZIP.startswith(tail):
            return True
        return tail.startswith(b"WARC/") and _missing_bytes(tail, len(tail))

    def whole_records(self, reader: MemberReader) -> Iterator[Record]:
        """Yield each record that is one whole gzip member from where reading goes on; ends at the first that is not."""
        ended, reader.wants_more = False, True
        while reader.wants_more:
            raw = bytes(memoryview(self._window)[self.position - self._start :])
            for position, record in reader.records(raw, self.position, ended):
                self.position = position
                if record is not None:
                    yield record
            self.forget(self.position)
            if reader.wants_more:
                ended = not self._fill(max(_AHEAD_BYTES, len(raw)))
                self.check()

    def lines_end_bare(self, offset: int | None = None) -> bool:
        """Whether the record at this offset (where reading goes on) ends its lines by LF alone, as some tools do.

        Only then fastwarc's quirks mode is on: it also passes over garbage without a word.
        """
        at = (self.position if offset is None else offset) - self._start
        if at >= len(self._window):
            self._fill(_CHUNK_BYTES)
        head = bytes(self._window[at : at + _PROBE_BYTES])
        line, end, _ = (_first_inflated(head) if head.startswith(GZIP) else head).partition(b"\n")
        return line.startswith(b"WARC/") and bool(end) and not line.endswith(b"\r")

    def _fill(self, size: int) -> int:
        if self._failure is not None:
            return 0
        try:
            chunk = self._stream.read(size)
        except Exception as error:  # kept for check(): a Rust caller cannot hand it on unchanged
            self._failure = error
            return 0
        self.head = self.head or chunk[:_PROBE_BYTES]
        self._window += chunk
        self.end += len(chunk)
        if len(self._window) > _WINDOW_BYTES + _CHUNK_BYTES:
            self._trim(self.end - _WINDOW_BYTES)
        return len(chunk)

    def _trim(self, offset: int) -> None:
        if offset > self._start:
            del self._window[: offset - self._start]
            self._start = offset

    def _next_start(self, offset: int) -> int | None:
        at = offset - self._start
        if self.head.startswith((GZIP, _ZSTD, _LZ4)):
            magic = self.head[: 3 if self.head.startswith(GZIP) else 4]
            while (at := self._window.find(magic, at)) >= 0:
                if magic != GZIP or _first_inflated(bytes(self._window[at : at + _PROBE_BYTES])).startswith(b"WARC/"):
                    return self._start + at
                at += 1
            return None
        found = _PLAIN_RECORD.search(self._window, max(at, 0))
        return self._start + found.start() if found else None


def _missing_bytes(head: bytes, size: int) -> bool:
    """Whether a record that begins with `head` and is `size` bytes long lacks some of what it declares."""
    blank = _BLANK_LINE.search(head)
    if blank is None:
        return True
    declared = _CONTENT_LENGTH.search(head, 0, blank.start())
    return declared is not None and int(declared[1]) > size - blank.end()


def _first_inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data, 64)
    except zlib.error:
        return b""


def _described(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head.startswith(GZIP):
        head = _first_inflated(head)
    if head.lstrip().startswith(b"filedesc:"):
        return "an ARC file, which has no links as a WAT has: set stages.extract.archive to warc"
    if head.startswith(b"PK"):
        return "a zip or WACZ file: unpack it, the archives are in its folder archive/"
    return f"bytes that begin with {head[:16]!r}"

"""Records of a WARC that lie as one whole gzip member each, as crawlers write them: half of a stream's time.

libdeflate inflates a member at once and tells where it ends. What is not surely one whole record, a member of two, a
header with more fields, damage, is left to the reader of streams (sources/warc.py), which gives the same for everything
that is read here.
"""

from collections.abc import Iterator

import numpy as np

from curation.sources.gzip_kernel import CUT, FULL, N_COLUMNS, TOO_LARGE, read_members
from curation.sources.libdeflate import Decompressor
from curation.sources.record import Content, Record

GZIP = b"\x1f\x8b\x08"
_PLAIN = GZIP + b"\0"  # a header without more fields
MAX_MEMBER_BYTES = 8 << 20  # as stored; a longer one is a stream's matter
_FIRST_BYTES = 512 << 10  # stays in the cache that a core has to itself
_ROWS = 512


class MemberReader:
    """Reads members, some at a time, into the same memory: no page of it is fetched anew.

    mark        what a JSON document must hold to matter, others are passed over; "" for all
    n_passed    so many were passed over
    wants_more  whether reading ended since the archive's bytes did
    """

    def __init__(self, max_bytes: int, mark: bytes = b"") -> None:
        self.n_passed = 0
        self.wants_more = True
        self._decompressor = Decompressor()
        self._max_bytes = max_bytes
        self._mark = np.frombuffer(mark, np.uint8)
        self._rows = np.empty((_ROWS, N_COLUMNS), np.int64)
        self._grow(min(_FIRST_BYTES, max_bytes))

    def _grow(self, size: int) -> None:
        self._data = bytearray(size)
        self._out = np.frombuffer(self._data, np.uint8)

    def records(self, raw: bytes, offset: int, is_all: bool) -> Iterator[tuple[int, Record | None]]:
        """Yield the records at the start of `raw` that are one whole member each, with where in the archive that ends.

        What a record holds lies where it is until the next is asked for. Reading ends at the first that can't be told
        to be whole; then comes where that begins, with None.

        offset  of raw in the archive
        is_all  the archive ends where raw does
        """
        at, why, source = 0, FULL, np.frombuffer(raw, np.uint8)
        while why == FULL:
            function, address = self._decompressor.function, self._decompressor.address
            n_rows, at, why, n_passed = read_members(
                source, at, is_all, function, address, self._out, self._max_bytes, self._mark, self._rows
            )
            self.n_passed += n_passed
            data = self._data
            for start, end, url, url_end, kind, kind_end, type_, type_end, first, last in self._rows[:n_rows].tolist():
                yield (
                    offset + end,
                    Record(
                        offset + start,
                        data[url:url_end].decode("utf-8", "replace").strip("<> "),
                        data[kind:kind_end].decode(),
                        data[type_:type_end].decode("utf-8", "replace"),
                        None,
                        Content(data, first, last),
                    ),
                )
            if why == TOO_LARGE and len(self._data) < self._max_bytes:
                self._grow(min(2 * len(self._data), self._max_bytes))
                why = FULL
        # a member before another is not cut but damaged: with more of the archive each damage would cost as much again
        may_be_cut = why == CUT and not is_all and len(raw) - at <= MAX_MEMBER_BYTES
        self.wants_more = may_be_cut and raw.find(_PLAIN, at + 1) < 0
        yield offset + at, None

"""A record of an archive of pages, whichever reader found it."""

from collections import Counter
from typing import Any, NamedTuple

import msgspec


class Content(NamedTuple):
    """What a record holds: data[start:end], as it is until the next record is asked for."""

    data: bytes | bytearray
    start: int
    end: int

    def copied(self) -> bytes:
        """The content alone."""
        return bytes(memoryview(self.data)[self.start : self.end])


class Record(msgspec.Struct, gc=False):
    """One record whose declared length is within the limit; `raw` is fastwarc's, valid until the next is asked for."""

    offset: int  # in the archive as stored, bytes
    url: str
    kind: str  # WARC-Type, lower case
    content_type: str  # of the record, not of the response in it
    raw: Any
    content: Content | None = None  # where all of it was read at once; then raw is None


def count_bad(tally: Counter[str], kind: str) -> None:
    """Count a record that is not read, and why."""
    tally["records_bad"] += 1
    tally[f"records_bad_{kind}"] += 1

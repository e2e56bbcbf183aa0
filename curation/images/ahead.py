"""Bodies that wait for a decoder lie on disk, so that requests go on while decoders are behind."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from typing import Self


class Waiting:
    """A body on disk."""

    def __init__(self, ahead: Ahead, start: int, length: int) -> None:
        self._ahead = ahead
        self.start, self.length = start, length
        self.taken = False

    def take(self) -> bytes:
        """The body, whose place is free from now on; once."""
        return self._ahead._take(self)


class Ahead:
    """So many bytes of an unnamed temporary file, used in a circle; a context manager, used from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._file = tempfile.TemporaryFile(prefix="curation-", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._held: deque[Waiting] = deque()  # in the order of their places
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, data: bytes | bytearray) -> Waiting | None:
        """Store a body; None where it is empty, there is no room for it, or the disk is full."""
        with self._lock:
            start = self._room(len(data))
            if start is None or not data:
                return None
            try:
                if os.pwrite(self._file.fileno(), data, start) < len(data):
                    return None
            except OSError:
                return None
            waiting = Waiting(self, start, len(data))
            self._held.append(waiting)
            self._end = start + len(data)
            return waiting

    def _room(self, length: int) -> int | None:
        if not self._held:
            return 0 if length <= self._limit else None
        first = self._held[0].start
        if self._end <= first:  # what is held goes over the end of the file
            return self._end if self._end + length <= first else None
        if self._end + length <= self._limit:
            return self._end
        return 0 if length <= first else None

    def _take(self, waiting: Waiting) -> bytes:
        data = os.pread(self._file.fileno(), waiting.length, waiting.start)
        with self._lock:
            waiting.taken = True
            while self._held and self._held[0].taken:
                self._held.popleft()
        return data

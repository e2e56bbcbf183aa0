"""Finished pictures on disk until their shard is whole, so that memory does not grow with it."""

from __future__ import annotations

import os
import tempfile
import threading


class Spool:
    """An unnamed temporary file: bytes go in from several threads, in any order; a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="curation-")  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, data: bytes) -> tuple[int, int]:
        """Store bytes; returns where they lie: offset and length. Raises OSError when the disk is full."""
        with self._lock:
            offset = self._end
            self._end += len(data)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._file.fileno(), view, offset + len(data) - len(view)) :]
        return offset, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """What was stored there."""
        return os.pread(self._file.fileno(), length, offset)

"""An archive of compressed members as one plain stream, which remembers where each member lies."""

import zlib
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
DICTIONARY = b"\x5d\x2a\x4d\x18"
"""Start of the skippable frame with the dictionary of a .warc.zst (IIPC's WARC zstd specification, 2)."""

_CHUNK_BYTES = 64 << 10
_FEED_BYTES = {GZIP: 16 << 10, ZSTD: 1 << 10}  # what can inflate to 16 or 32 MiB at most
_MAX_DICTIONARY_BYTES = 32 << 20
_FAILURES = (zlib.error, zstandard.ZstdError)


class Rewound:
    """A stream whose first bytes, `head`, have been looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.head = self._rest = stream.read(_CHUNK_BYTES)

    def read(self, size: int = -1) -> bytes:
        """As of the stream itself, from its start."""
        if not self._rest:
            return self._stream.read(size)
        part, self._rest = (self._rest[:size], self._rest[size:]) if size >= 0 else (self._rest, b"")
        return part


class Members:
    """Plain bytes of a stream of gzip members, of zstd frames behind a dictionary, or of a plain stream as it is.

    A damaged member gives what could be inflated, is counted (`damaged`), and reading goes on at the next start of a
    member. Memory: a chunk, and two numbers a member read since `forget`.
    """

    def __init__(self, stream: "BinaryIO | Rewound") -> None:
        self._stream = stream
        self._raw = stream.read(_CHUNK_BYTES)
        self._raw_start = 0  # offset of _raw in the archive
        self._plain_at = 0  # offset that read() gives next
        self._starts: list[tuple[int, int]] = []  # plain offset, stored offset of each member
        self._inflater: Any = None
        self.damaged = 0
        self.cut = False  # the archive ends inside a member
        self._magic = next((magic for magic in (GZIP, ZSTD) if self._raw.startswith(magic)), b"")
        self._new: Callable[[], Any] = lambda: zlib.decompressobj(31)
        if self._raw.startswith(DICTIONARY):
            self._magic = ZSTD
            self._new = self._with_dictionary()
        elif self._magic == ZSTD:
            self._new = zstandard.ZstdDecompressor().decompressobj

    @property
    def bytes_read(self) -> int:
        """Stored bytes taken from the stream so far."""
        return self._raw_start + len(self._raw)

    def stored_offset(self, plain: int) -> int:
        """Where the member begins, in the archive as stored, in which this plain offset lies."""
        if not self._magic:
            return plain
        at = bisect_right(self._starts, (plain, 1 << 62)) - 1
        del self._starts[: max(at, 0)]
        return self._starts[0][1] if self._starts else 0

    def read(self, size: int = -1) -> bytes:
        """Some plain bytes, as many as come at once; b"" at the end."""
        plain = self._take() if not self._magic else self._inflated()
        self._plain_at += len(plain)
        return plain

    def _take(self) -> bytes:
        raw, self._raw = self._raw, b""
        self._raw_start += len(raw)
        self._raw = self._stream.read(_CHUNK_BYTES) if raw else b""
        return raw

    def _inflated(self) -> bytes:
        while True:
            if self._inflater is None and not self._next_member():
                return b""
            raw = self._raw
            if not raw:
                self._more()
                raw = self._raw
                if not raw:
                    self.cut, self._inflater = True, None
                    return b""
            try:
                fed = raw[: _FEED_BYTES[self._magic]]
                plain: bytes = self._inflater.decompress(fed)
            except _FAILURES:
                self.damaged += 1
                self._inflater = None
                self._advance(1)
                continue
            unused = len(self._inflater.unused_data) if self._inflater.eof else 0
            self._advance(len(fed) - unused)
            if self._inflater.eof:
                self._inflater = None
            if plain:
                return plain

    def _next_member(self) -> bool:
        skipped = False
        while True:
            while len(self._raw) < len(self._magic):
                if not self._more():
                    self.cut = self.cut or self._magic.startswith(self._raw[:3] or b"-")
                    return False
            found = self._raw.find(self._magic)
            if found > 0 or (found < 0 and self._raw):
                skipped = skipped or bool(self._raw[: max(found, 1)].strip(b"\0"))
            if found >= 0:
                self._advance(found)
                self.damaged += skipped
                self._starts.append((self._plain_at, self._raw_start))
                self._inflater = self._new()
                return True
            self._advance(len(self._raw) - len(self._magic) + 1)
            if not self._more():
                self.damaged += skipped
                return False

    def _more(self) -> bool:
        chunk = self._stream.read(_CHUNK_BYTES)
        self._raw += chunk
        return bool(chunk)

    def _advance(self, size: int) -> None:
        self._raw = self._raw[size:]
        self._raw_start += size

    def _with_dictionary(self) -> Callable[[], Any]:
        size = int.from_bytes(self._raw[4:8], "little")
        while len(self._raw) < 8 + min(size, _MAX_DICTIONARY_BYTES) and self._more():
            pass
        content = self._raw[8 : 8 + size]
        self._advance(8 + size)
        try:
            if content.startswith(ZSTD):
                content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            return zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(content)).decompressobj
        except zstandard.ZstdError:
            self.damaged += 1
            return zstandard.ZstdDecompressor().decompressobj

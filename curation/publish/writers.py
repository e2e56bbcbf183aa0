"""Writers of the published forms: tar for WebDataset, JSON records. The same samples give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from curation.publish.parts import File

TAR_BLOCK = 512
# what readers of WebDataset look for
SUFFIXES = {"jpeg": "jpg"}
_GZIP_LEVEL = 6
_json = msgspec.json.Encoder(order="sorted").encode  # NaN becomes null: JSON has no other word for it


class TarWriter:
    """A tar of small files, in blocks; holds one sample.

    By hand: tarfile.TarFile remembers every member it wrote, and its headers cost more than the pictures' copy.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)

    def add(self, name: str, content: bytes) -> None:
        """Append a file: time 0, owner 0, mode 644."""
        self._file.write(_tar_header(name, len(content)))
        self._file.write(content)
        self._file.write(bytes(-len(content) % TAR_BLOCK))

    def add_sample(self, row: dict[str, Any], described: dict[str, Any]) -> None:
        """Append picture, caption and metadata of a sample under its key."""
        key = row["key"]
        self.add(f"{key}.{SUFFIXES.get(row['image_format'], row['image_format'])}", row["image"])
        self.add(f"{key}.txt", caption_of(row).encode())
        self.add(f"{key}.json", _json(described))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.write(bytes(2 * TAR_BLOCK))
        finally:
            self._file.close()


class JsonWriter:
    """Records as one JSON array or as JSON Lines, a record a line either way; .gz is compressed."""

    def __init__(self, path: Path, form: str) -> None:
        self._raw = path.open("wb", buffering=1 << 20)
        self._file: IO[bytes] = self._raw
        if form.endswith(".gz"):  # without name and time: the same records, the same bytes
            self._file = gzip.GzipFile("", "wb", _GZIP_LEVEL, self._raw, mtime=0)  # type: ignore[assignment]
        self._array = form.startswith("json") and not form.startswith("jsonl")
        self._records = 0

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.add_line(_json(record))

    def add_line(self, line: bytes) -> None:
        """Append a record that is JSON already."""
        if self._array:
            self._file.write(b",\n" if self._records else b"[\n")
        self._file.write(line)
        if not self._array:
            self._file.write(b"\n")
        self._records += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._array:
                self._file.write(b"\n]\n" if self._records else b"[]\n")
        finally:
            if self._file is not self._raw:
                self._file.close()
            self._raw.close()


def read_lines(file: IO[bytes], form: str) -> Iterator[bytes]:
    """The records that a JsonWriter wrote, each as its JSON; one line in memory at a time."""
    lines = gzip.GzipFile(fileobj=file) if form.endswith(".gz") else io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]
    for line in lines:
        if (record := line.strip().removesuffix(b",")) not in (b"", b"[", b"]", b"[]"):
            yield record


def caption_of(row: dict[str, Any]) -> str:
    """The text that is published with a picture: what the caption policy chose, else the page's own."""
    return str(row.get("caption") or row["text"])


def pairs_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs that a sample gives: one, or one for each caption where the policy chose several.

    Every pair has its own key, `KEY`, `KEY_2`, ..., and with it its own copy of the picture in a tar.
    """
    captions = row.get("captions") or [None]
    sources = row.get("caption_sources") or [None]
    more = zip(captions[1:], sources[1:], strict=True)
    return [row] + [
        row | {"key": f"{row['key']}_{number}", "caption": caption, "caption_source": source}
        for number, (caption, source) in enumerate(more, 2)
    ]


def sample_key(name: str) -> str:
    """Key of the sample that a file or a pair belongs to: `KEY_2.jpg` is one of `KEY`."""
    return name.partition(".")[0].partition("_")[0]


def file_of(key: str, path: Path) -> File:
    """Key, size and sha256 of a finished file; read in pieces."""
    with path.open("rb") as file:
        return File(key=key, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _tar_header(name: str, size: int) -> bytes:
    # POSIX ustar: name[100] mode[8] uid[8] gid[8] size[12] mtime[12] checksum[8] type magic
    encoded = name.encode()
    if len(encoded) > 100 or size >= 8**11:
        raise ValueError(f"tar member {name!r} of {size} bytes: the header has no room for it")
    own = encoded.ljust(100, b"\0") + b"0000644\0000000000\0000000000\0%011o\00000000000000\0" % size
    checksum = sum(own) + sum(_TAR_REST) + 8 * 32
    return own + b"%06o\0 " % checksum + _TAR_REST


_TAR_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(TAR_BLOCK - 156, b"\0")

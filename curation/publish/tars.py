"""One sample out of a published tar, by a few reads at places: no tar is read from end to end for a picture."""

from __future__ import annotations

import tarfile

import pyarrow as pa

from curation.publish.writers import TAR_BLOCK

_CHUNK = 128  # blocks of one read when looking for a header: 64 KiB
_NEAR = 4 * _CHUNK


def read_sample(stream: pa.NativeFile, key: str) -> dict[str, bytes]:
    """Files of a sample by suffix (jpg, txt, json). Raises KeyError when the tar has no such key.

    Samples stand in order of key, so the place is found by bisection; should bytes inside a picture pass for a header
    and lead astray, the tar is walked from its beginning.

    stream  seekable; tar as TarWriter writes it
    """
    n_blocks = stream.size() // TAR_BLOCK
    low, high = 0, n_blocks
    while high - low > _NEAR:
        middle = (low + high) // 2
        found = _header_from(stream, middle, high)
        if found is not None and _key(found[1]) < key:
            low = found[0]
        else:
            high = middle
    return _walk(stream, low, n_blocks, key) or _walk(stream, 0, n_blocks, key) or _absent(key)


def _header_from(stream: pa.NativeFile, start: int, end: int) -> tuple[int, tarfile.TarInfo] | None:
    """The first header at or after a block, with its block."""
    for first in range(start, end, _CHUNK):
        stream.seek(first * TAR_BLOCK)
        data = stream.read(min(_CHUNK, end - first) * TAR_BLOCK)
        for at in range(len(data) // TAR_BLOCK):
            block = data[at * TAR_BLOCK : (at + 1) * TAR_BLOCK]
            if block[257:262] == b"ustar" and (header := _parsed(block)) is not None:
                return first + at, header
    return None


def _walk(stream: pa.NativeFile, block: int, n_blocks: int, key: str) -> dict[str, bytes]:
    """Files of the key from the header at this block on, empty when a larger key comes first."""
    found: dict[str, bytes] = {}
    while block < n_blocks:
        stream.seek(block * TAR_BLOCK)
        header = _parsed(stream.read(TAR_BLOCK))
        if header is None or _key(header) > key:
            break
        if _key(header) == key:
            found[header.name.partition(".")[2]] = stream.read(header.size)
        block += 1 + -(-header.size // TAR_BLOCK)
    return found


def _parsed(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return None


def _key(header: tarfile.TarInfo) -> str:
    return header.name.partition(".")[0]


def _absent(key: str) -> dict[str, bytes]:
    raise KeyError(key)

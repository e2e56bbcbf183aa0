"""Lists of domains whose pictures are not wanted: millions of names, O(1) look-up, about 12 bytes a name."""

import gzip
import zlib
from array import array
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from curation.errors import ConfigError

_LONGEST_NAME = 253  # octets, RFC 1035
_DIGEST = (1 << 64) - 1


class Blocklist:
    """A set of domains; a host is on it when the host itself or any parent domain is.

    Names are kept as 64-bit hashes in sorted order, with an index by the leading bits that leads to about one
    candidate. A false hit has odds of (number of names) / 2^64. `hash` is salted per process, which is why a list is
    built where it is used and never stored.
    """

    def __init__(self, domains: Iterable[str]) -> None:
        hashes = array("Q", (hash(domain) & _DIGEST for domain in domains))
        keys = np.unique(np.frombuffer(hashes, dtype=np.uint64)) if hashes else np.empty(0, dtype=np.uint64)
        bits = max(len(keys).bit_length(), 1)
        self._shift = 64 - bits
        bounds = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self._shift)
        index = np.append(np.searchsorted(keys, bounds), len(keys)).astype(np.uint32)
        self._keys, self._index = keys.data, index.data  # memoryviews: a look-up makes no NumPy scalar

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, host: str) -> bool:
        """Whether the host (ASCII, lower case) or a parent domain of it is listed."""
        while host:
            key = hash(host) & _DIGEST
            bucket = key >> self._shift
            for at in range(self._index[bucket], self._index[bucket + 1]):
                if self._keys[at] == key:
                    return True
            _, _, host = host.partition(".")
        return False


@lru_cache(maxsize=4)
def read_blocklist(path: str) -> Blocklist:
    """Read a list from a file, gzip or not.

    One domain a line; hosts-file lines ("0.0.0.0 name"), "*.name", ".name", comments (#) and blanks are understood.
    Cached: a pinned file never changes. Raises ConfigError naming `blocklist` for a file that cannot be read.
    """
    try:
        with Path(path).open("rb") as raw:
            opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as lines:
            return Blocklist(name for line in lines if (name := _domain(line)))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"blocklist: expected a file of domains, one a line, at {path}: {error}") from error


def _domain(line: bytes) -> str:
    fields = line.partition(b"#")[0].split()
    if not fields:
        return ""
    name = fields[-1].decode("utf-8", "replace").lower().removeprefix("*").strip(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return ""
    return name if len(name) <= _LONGEST_NAME else ""

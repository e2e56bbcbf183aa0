"""Lists of places whose pictures are not wanted: millions of domains, O(1) look-up, about 12 bytes a name.

A list is a file, gzip or not, with a rule a line; "#" begins a comment. The rules:

    bad.example          the host, and every host below it; also "*.bad.example", ".bad.example" and lines of a hosts
                         file, "0.0.0.0 bad.example"
    suffix:-ads.example  hosts that end so, whatever the label: eu-ads.example, ads.example not
    token:nsfw           URLs with this word, letters and digits, in path or query: /nsfw/1.jpg, ?c=nsfw, /nsfws not
    regex:/thumbs?/      URLs in which this is found (Python's re, case-insensitive); "#" is part of it
"""

import gzip
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from curation.errors import ConfigError

_LONGEST_NAME = 253  # octets, RFC 1035
_DIGEST = (1 << 64) - 1
_WORD = re.compile(r"[^\W_]+")


class Domains:
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


class Blocklist:
    """Rules of some lists. Domains, suffixes and tokens cost one look-up each, however many; regexes are tried in turn.

    rules   lines of lists
    raises  ValueError for a regex that is none
    """

    def __init__(self, rules: Iterable[str]) -> None:
        suffixes: set[str] = set()
        tokens: set[str] = set()
        patterns: list[str] = []

        def domains() -> Iterator[str]:
            for line in rules:
                kind, colon, rest = line.partition(":")
                if not colon or kind not in ("suffix", "token", "regex"):
                    if name := _domain(line):
                        yield name
                elif kind == "regex":
                    patterns.append(_pattern(rest.strip()))
                elif word := rest.partition("#")[0].strip().lower():
                    (suffixes if kind == "suffix" else tokens).add(word)

        self._domains = Domains(domains())
        self._suffixes, self._tokens = frozenset(suffixes), frozenset(tokens)
        self._lengths = sorted({len(suffix) for suffix in suffixes})
        self._regex = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None
        self._size = len(self._domains) + len(suffixes) + len(tokens) + len(patterns)

    def __len__(self) -> int:
        return self._size

    def blocks_host(self, host: str) -> bool:
        """Whether the host (ASCII, lower case) is on the list."""
        return host in self._domains or any(host[-n:] in self._suffixes for n in self._lengths if n <= len(host))

    def blocks_url(self, url: str) -> bool:
        """Whether a token or a regex blocks the canonical URL; the host is not looked at."""
        if self._tokens:
            path = url[url.find("/", 8) :].lower() if url.startswith("http") else ""
            if not self._tokens.isdisjoint(_WORD.findall(path)):
                return True
        return self._regex is not None and self._regex.search(url) is not None


@lru_cache(maxsize=4)
def read_blocklist(*paths: str) -> Blocklist:
    """Read lists from files, gzip or not.

    Cached: a pinned file never changes. Raises ConfigError naming `blocklist` for a file that cannot be read.
    """
    try:
        return Blocklist(line for path in paths for line in _lines(path))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ConfigError(f"blocklist: expected files of rules, one a line: {', '.join(paths)}: {error}") from error


def _lines(path: str) -> Iterator[str]:
    with Path(path).open("rb") as raw:
        opener = gzip.open if raw.read(2) == b"\x1f\x8b" else open
    with opener(path, "rb") as lines:
        for line in lines:
            yield line.decode("utf-8", "replace")


def _pattern(pattern: str) -> str:
    try:
        re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError) as error:
        raise ValueError(f"regex:{pattern}: {error}") from error
    return f"(?:{pattern})"


def _domain(line: str) -> str:
    fields = line.partition("#")[0].split()
    if not fields:
        return ""
    name = fields[-1].lower().removeprefix("*").strip(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return ""
    return name if len(name) <= _LONGEST_NAME else ""

"""Blocklists kept in the store under a name, fetched anew from their addresses: what recipes call blocklists/NAME."""

from __future__ import annotations

import gzip
import re
import tempfile
import urllib.request
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from curation.errors import ConfigError, OutageError
from curation.pipeline import BLOCKLISTS
from curation.store import Store
from curation.web.blocklist import read_blocklist

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_BYTES = 1 << 30


class Refreshed(NamedTuple):
    """What a refresh came to: rules that the list has now, and how many lines came and went."""

    rules: int
    added: int
    removed: int


def refresh_blocklist(store: Store, name: str, sources: Sequence[str], *, max_loss: float = 0.5) -> Refreshed:
    """Fetch lists, put them together without repetitions, and replace the store's list of this name.

    The list that stands is kept when a source can't be read, when a rule is none, or when more than `max_loss` of its
    lines would go: an error page or a cut download must not open the gate.

    sources  files or http(s) addresses, gzip or not, in the form of web/blocklist.py
    raises   OutageError for a source that can't be read, ConfigError for all else
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"blocklist {name!r}: a name is of small letters, digits, dot, dash and underscore")
    if not sources:
        raise ConfigError(f"blocklist {name}: name at least one source")
    lines = sorted({line for source in sources for line in _fetch(name, source)})
    content = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as file:
        Path(file.name).write_bytes(content)
        rules = len(read_blocklist(file.name))
    key = f"{BLOCKLISTS}{name}"
    before = set(gzip.decompress(store.read_bytes(key)).decode().splitlines()) if store.exists(key) else set()
    lost = len(before.difference(lines))
    if lost > max_loss * len(before):
        raise ConfigError(
            f"blocklist {name}: {lost} of {len(before)} lines would go, more than {max_loss:.0%}; if that is meant, "
            "refresh with a larger max_loss"
        )
    store.write_bytes(key, content)
    return Refreshed(rules, len(set(lines) - before), lost)


def _fetch(name: str, source: str) -> list[str]:
    try:
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source, timeout=60) as response:  # the operator's own choice of address
                data = response.read(_MAX_BYTES + 1)
        else:
            data = Path(source).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (OSError, HTTPException, EOFError, zlib.error) as err:
        raise OutageError(f"blocklist {name}: {source} can't be read: {getattr(err, 'strerror', None) or err}") from err
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"blocklist {name}: {source} has more than {_MAX_BYTES >> 20} MiB")
    if data.lstrip()[:1] == b"<":
        raise ConfigError(f"blocklist {name}: {source} is a page, no list")
    stripped = (line.strip() for line in data.decode("utf-8", "replace").splitlines())
    return [line for line in stripped if line and not line.startswith("#")]

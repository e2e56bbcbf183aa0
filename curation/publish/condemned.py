"""Files that garbage collection will remove; what is in the making must not build on them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from curation.store import Store

_KEY = "gc/condemned.json"


def read(store: Store) -> dict[str, float]:
    """Since when (seconds since 1970) each file is condemned."""
    try:
        found: dict[str, float] = json.loads(store.read_bytes(_KEY))
    except FileNotFoundError:
        return {}
    return found


def write(store: Store, since: dict[str, float]) -> None:
    """Replace the list."""
    store.write_bytes(_KEY, json.dumps(since, indent=0).encode())


def among(store: Store, keys: Iterable[str]) -> list[str]:
    """Those of the files that are condemned."""
    listed = read(store)
    return [key for key in keys if key in listed]

"""The takedown form: what it asks the DAG for, and the receipts that stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from curation.errors import ConfigError
from curation.store import Store
from curation.tombstones import targets_of

KINDS = {
    "url": "pictures, by URL",
    "domain": "a domain and all hosts below it",
    "sample_id": "samples, by id",
    "sha256": "pictures, by sha256",
    "phash": "pictures that look alike, by pHash",
}
_VALUES = 1000
_RECEIPTS = 20


def request_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of the DAG `takedown`. Raises ConfigError naming the field."""
    values = [line.strip() for line in form.get("values", "").splitlines() if line.strip()]
    if form.get("kind") not in KINDS:
        raise ConfigError(f"kind: choose one of {', '.join(KINDS)}")
    if not values or len(values) > _VALUES:
        raise ConfigError(f"values: name 1 to {_VALUES}, one a line")
    radius = form.get("radius") or "0"
    if not radius.isdecimal() or int(radius) > 16:
        raise ConfigError("radius: bits, 0 to 16")
    targets_of(((form["kind"], value) for value in values), int(radius))
    conf = {name: form.get(name, "")[:2000] for name in ("reason", "requester")}
    return {"kind": form["kind"], "values": values, "radius": int(radius), **conf}


def receipts(store: Store) -> list[dict[str, Any]]:
    """The newest receipts, newest first: what was taken down, when, and how many samples went."""
    keys = sorted((entry.key for entry in store.entries("takedowns/")), key=lambda key: key.rpartition("-")[2])
    return [json.loads(store.read_bytes(key)) | {"key": key} for key in reversed(keys[-_RECEIPTS:])]

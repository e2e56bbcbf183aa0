"""Evaluation sets in the store: what leakage compares against. No picture is kept, only its hashes.

An index is one Parquet object evalsets/{name}/{digest}.parquet: item, sha256, phash, phash_spread; `current` names
the newest. A recipe's pin names the digest, so a later index of the same set does not change an old result.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import ConfigError
from curation.images.decode import PICTURE_SUFFIXES, measure_picture
from curation.receipt import digest
from curation.schema import schema
from curation.store import Store

EVALSET = pa.schema([pa.field("item", pa.string()), *schema("sha256", "phash", "phash_spread")])


def index_folder(store: Store, name: str, folder: Path) -> str:
    """Index every picture below a folder as evaluation set `name` and return the index's key.

    Raises ConfigError when the folder holds no picture, or one that does not decode: a set with holes protects nothing.
    """
    rows = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES):
        data = path.read_bytes()
        phash, spread = measure_picture(data, str(path))
        rows.append((path.relative_to(folder).as_posix(), hashlib.sha256(data).hexdigest(), phash, spread))
    if not rows:
        raise ConfigError(f"evaluation set {name}: no picture below {folder}")
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=EVALSET)
    key = f"evalsets/{name}/{digest(*(str(row) for row in rows))[:12]}.parquet"
    if not store.exists(key):
        with store.spool(key) as path:
            pq.write_table(table, path)
    store.write_bytes(f"evalsets/{name}/current", key.encode())
    return key

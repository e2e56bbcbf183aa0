"""The receipt in an object's footer: what made it, from what, and what came of every row."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict

RECEIPT_KEY = b"curation.receipt"


class Receipt(BaseModel):
    """Written with every table of the store; reports are sums of receipts.

    rows == measured + sum(dropped) + sum(faults): samples are conserved.
    """

    model_config = ConfigDict(frozen=True)

    object_id: str  # digest of all that the result depends on: equal ids mean equal results
    stage: str
    stage_version: int
    fingerprint: str  # of the settings that matter here and upstream
    recipe: str
    dump: str
    shard: int
    inputs: dict[str, str] = {}  # object_id by stage of the tables read
    generation: int = 0  # how often `curation retry` has healed rows of this table
    rows: int
    measured: int
    dropped: dict[str, int] = {}  # rows that did not enter, by reason, those of earlier stages included
    faults: dict[str, int] = {}  # rows this stage could not measure
    tally: dict[str, int] = {}
    models: dict[str, str] = {}
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    bytes: int = 0  # size of the object, known after the write
    curation_version: str = ""
    created_at: str = ""
    host: str = ""

    @property
    def key(self) -> str:
        """Where the table of this receipt stands."""
        return table_key(self.dump, self.stage, self.fingerprint, self.shard)


def table_key(dump: str, stage: str, fingerprint: str, shard: int) -> str:
    """Key of a shard's table in the store (DESIGN: section 2)."""
    return f"dumps/{dump}/{stage}-{fingerprint[:8]}/{shard:05d}.parquet"


def digest(*parts: str) -> str:
    """128-bit BLAKE2b of the parts, 32 hex digits; NUL-separated, so ("ab", "c") differs from ("a", "bc")."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

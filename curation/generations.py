"""The dedup index: one generation a block, committed as one object, appended and never changed.

A generation holds every sample of its block that entered dedup with its keys and what was decided: so it is at once
the index for later blocks and the decision for its own. Two blocks that match at the same time write the same number;
the store lets one through, the other reads the new generation and matches again, so no duplicate is kept twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import BadShardError
from curation.pipeline import fingerprint, upstream
from curation.receipt import RECEIPT_KEY, Receipt, digest, table_key
from curation.recipe import Recipe
from curation.stages.dedup import DECISIONS, KEYS
from curation.store import Store

log = logging.getLogger(__name__)


def match_block(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Receipt:
    """Find duplicates within a block and against all earlier generations; commit the decisions.

    Idempotent: the same block from the same tables is matched once. Raises BadShardError when a shard's tables before
    dedup are missing.
    """
    from curation.runner import read_entering

    settings = recipe.stages.dedup
    if settings is None:
        raise BadShardError(f"recipe {recipe.name} has no dedup stage")
    identity = _identity(store, recipe, dump, shards)
    while True:
        known = _generations(store, recipe)
        for _, receipt in known:
            if receipt.object_id == identity:
                log.info("%s: matched before, in generation %d", dump, receipt.shard)
                return receipt
        keys = _with_shard(
            (shard, batch)
            for shard in shards
            for batch in read_entering(store, recipe, dump, shard, "dedup", KEYS.names)
        )
        index = _index(store, known, dump, shards)
        decisions = settings.match(keys, index)
        number = 1 + max((receipt.shard for _, receipt in known), default=-1)
        receipt = Receipt(
            object_id=identity,
            stage="dedup_match",
            stage_version=settings.version,
            fingerprint=fingerprint(recipe, "dedup"),
            recipe=recipe.name,
            dump=dump,
            shard=number,
            inputs={str(shard): "" for shard in shards},
            rows=decisions.num_rows,
            measured=decisions.num_rows,
        )
        if _commit(store, _key(recipe, number), decisions, receipt):
            return receipt
        log.info("%s: generation %d was taken by another block; matching again", dump, number)


def of_shard(store: Store, recipe: Recipe, dump: str, shard: int) -> str:
    """Key of the newest generation that decides on this shard. Raises BadShardError when there is none."""
    for key, receipt in reversed(_generations(store, recipe)):
        if receipt.dump == dump and str(shard) in receipt.inputs:
            return key
    raise BadShardError("expected a dedup generation of its block, found none: run match first")


def decisions(store: Store, key: str, shard: int) -> pa.Table:
    """What a generation decided on one shard's samples, in the order in which they entered dedup."""
    with store.open_parquet(key) as table:
        rows = table.read()
    return rows.filter(pc.equal(rows["shard"], shard)).combine_chunks()


def _identity(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> str:
    before = upstream(recipe, "dedup")
    assert before is not None
    parts = [fingerprint(recipe, "dedup"), dump]
    for shard in shards:
        receipt = store.read_receipt(table_key(dump, before, fingerprint(recipe, before), shard))
        if receipt is None:
            raise BadShardError(f"{dump} shard {shard:05d}: expected the table of stage {before}, found none")
        parts.append(f"{shard}={receipt.object_id}")
    return digest(*parts)


def _generations(store: Store, recipe: Recipe) -> list[tuple[str, Receipt]]:
    prefix = f"index/dedup-{fingerprint(recipe, 'dedup')[:8]}/"
    return [(entry.key, _receipt(store.root, entry.key)) for entry in store.entries(prefix)]


@lru_cache(maxsize=4096)
def _receipt(root: str, key: str) -> Receipt:
    found = Store(root).read_receipt(key)
    assert found is not None
    return found


def _key(recipe: Recipe, number: int) -> str:
    return f"index/dedup-{fingerprint(recipe, 'dedup')[:8]}/{number:06d}.parquet"


def _with_shard(batches: Iterator[tuple[int, pa.RecordBatch]]) -> pa.Table:
    tables = []
    for shard, batch in batches:
        tables.append(pa.Table.from_batches([batch]).append_column("shard", pa.array([shard] * len(batch), pa.int32())))
    if tables:
        return pa.concat_tables(tables)
    return pa.schema([*KEYS, pa.field("shard", pa.int32())]).empty_table()


def _index(store: Store, known: list[tuple[str, Receipt]], dump: str, shards: Sequence[int]) -> pa.Table:
    """Kept samples of all earlier blocks; of a shard that was matched more than once, the newest decision counts."""
    seen = {(dump, str(shard)) for shard in shards}
    tables = [DECISIONS.empty_table()]
    for key, receipt in reversed(known):
        fresh = [shard for shard in receipt.inputs if (receipt.dump, shard) not in seen]
        seen.update((receipt.dump, shard) for shard in fresh)
        if fresh:
            table = store.open_parquet(key).read()
            mine = pc.is_in(table["shard"], pa.array([int(shard) for shard in fresh], pa.int32()))
            tables.append(table.filter(pc.and_(mine, pc.is_null(table["duplicate_kind"]))))
    return pa.concat_tables(tables)


def _commit(store: Store, key: str, decisions: pa.Table, receipt: Receipt) -> bool:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, decisions.schema, compression="zstd") as writer:
        writer.write_table(decisions)
        writer.add_key_value_metadata({RECEIPT_KEY: receipt.model_dump_json().encode()})
    return store.write_bytes(key, sink.getvalue().to_pybytes(), if_absent=True)

"""The index of a join (dedup, pairs): one generation a block, committed as one object, appended and never changed.

A generation holds every sample of its block that entered the stage with its keys and what was decided: so it is at once
the index for later blocks and the decision for its own. Two blocks that match at the same time write the same number;
the store lets one through, the other reads the new generation and matches again, so no duplicate is kept twice.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import BadShardError, ConfigError
from curation.pipeline import fingerprint, upstream
from curation.receipt import RECEIPT_KEY, Receipt, digest, table_key
from curation.recipe import Recipe
from curation.stages.base import Join
from curation.store import Store

log = logging.getLogger(__name__)

_EMBEDDINGS = "embeddings"  # in the receipt of a generation, among the models
_READERS = 8  # a shard is a few small reads: waiting for an object store is most of the time


def match_block(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], stage: str = "dedup") -> Receipt:
    """Find duplicates within a block and against all earlier generations; commit the decisions.

    Idempotent: the same block from the same tables is matched once. Raises BadShardError when a shard's tables before
    the stage are missing, ConfigError as check_index.
    """
    settings = _join(recipe, stage)
    check_index(store, recipe, stage)
    identity = _identity(store, recipe, stage, dump, shards)
    keys: pa.Table | None = None
    while True:
        known = _generations(store, recipe, stage)
        for _, receipt in known:
            if receipt.object_id == identity:
                log.info("%s: matched before, in generation %d", dump, receipt.shard)
                return receipt
        if keys is None:
            keys = _emitted(store, recipe, settings, dump, shards)
        # of the first block that had samples: one without any could prepare nothing
        begun = next((receipt.models for _, receipt in known if "prepared" in receipt.models), None)
        prepared = begun or _prepared(store, settings, keys, _folder(recipe, stage), identity)
        decisions = settings.match(
            keys,
            _kept_before(store, recipe, settings, known, dump, shards),
            store.open_parquet(prepared["prepared"]).read() if "prepared" in prepared else None,
        )
        number = 1 + max((receipt.shard for _, receipt in known), default=-1)
        receipt = Receipt(
            object_id=identity,
            stage=f"{stage}_match",
            stage_version=settings.version,
            fingerprint=fingerprint(recipe, stage),
            recipe=recipe.name,
            dump=dump,
            shard=number,
            inputs={str(shard): "" for shard in shards},
            models=prepared | _embeddings(recipe, settings),
            rows=decisions.num_rows,
            measured=decisions.num_rows,
        )
        if _commit(store, f"{_folder(recipe, stage)}{number:06d}.parquet", decisions, receipt):
            return receipt
        log.info("%s: generation %d was taken by another block; matching again", dump, number)


def check_index(store: Store, recipe: Recipe, stage: str) -> None:
    """Raise ConfigError where a named index holds other embeddings than this recipe would compare them with."""
    settings = _join(recipe, stage)
    if not settings.index:  # its name is the settings' fingerprint
        return
    own = _embeddings(recipe, settings).get(_EMBEDDINGS, "none")
    known = _generations(store, recipe, stage)
    if known and (theirs := known[-1][1].models.get(_EMBEDDINGS, "none")) != own:
        raise ConfigError(
            f"stages.{stage}.index: {settings.index} in {store.root} holds the embeddings of {theirs}, "
            f"this recipe compares those of {own}: name another index, or set embedding_cosine as the runs before did"
        )


def of_shard(store: Store, recipe: Recipe, dump: str, shard: int, stage: str = "dedup") -> str:
    """Key of the newest generation that decides on this shard. Raises BadShardError when there is none."""
    own = fingerprint(recipe, stage)
    for key in reversed(_numbered(store, recipe, stage)):  # a task reads no more of them than it must
        receipt = _receipt(store.root, key)
        if receipt.dump == dump and receipt.fingerprint == own and str(shard) in receipt.inputs:
            return key
    raise BadShardError(f"expected a generation of the {stage} index with its block, found none: run match first")


def decisions(store: Store, key: str, shard: int) -> pa.Table:
    """What a generation decided on one shard's samples, in the order in which they entered the stage."""
    return _of_shards(store.open_parquet(key), [shard]).combine_chunks()


def group(store: Store, recipe: Recipe, group_id: str) -> list[dict[str, str | int | None]]:
    """Members of a duplicate group over all blocks: sample_id, dump, shard, and why each is not kept (None: kept)."""
    members: list[dict[str, str | int | None]] = []
    for key, receipt in _generations(store, recipe, "dedup"):
        with store.open_parquet(key) as table:
            rows = table.read(["pair", "shard", "duplicate_kind", "group_id"])
        of_group = pc.or_(
            pc.fill_null(pc.equal(rows["group_id"], group_id), False),
            pc.equal(rows["pair"], pa.scalar(bytes.fromhex(group_id), pa.binary(16))),  # the first, when it stood alone
        )
        members += [
            {
                "sample_id": row["pair"].hex(),
                "dump": receipt.dump,
                "shard": row["shard"],
                "duplicate_kind": row["duplicate_kind"],
            }
            for row in rows.filter(of_group).to_pylist()
        ]
    return members


def _join(recipe: Recipe, stage: str) -> Join:
    settings = recipe.stage(stage)
    if not isinstance(settings, Join):
        raise BadShardError(f"recipe {recipe.name} has no stage {stage} that matches samples")
    return settings


def _embeddings(recipe: Recipe, settings: Join) -> dict[str, str]:
    """Which models' embeddings a generation holds; nothing where it holds none."""
    score = recipe.stages.score
    if score is None or "img_emb" not in settings.keys.names:
        return {}
    return {_EMBEDDINGS: ", ".join(sorted({score.english.embedding_space, score.multilingual.embedding_space}))}


def _identity(store: Store, recipe: Recipe, stage: str, dump: str, shards: Sequence[int]) -> str:
    before = upstream(recipe, stage)
    assert before is not None
    parts = [fingerprint(recipe, stage), dump]
    for shard in shards:
        receipt = store.read_receipt(table_key(dump, before, fingerprint(recipe, before), shard))
        if receipt is None:
            raise BadShardError(f"{dump} shard {shard:05d}: expected the table of stage {before}, found none")
        parts.append(f"{shard}={receipt.object_id}")
    return digest(*parts)


def _folder(recipe: Recipe, stage: str) -> str:
    return f"index/{stage}-{_join(recipe, stage).index or fingerprint(recipe, stage)[:8]}/"


def _generations(store: Store, recipe: Recipe, stage: str) -> list[tuple[str, Receipt]]:
    return [(key, _receipt(store.root, key)) for key in _numbered(store, recipe, stage)]


def _numbered(store: Store, recipe: Recipe, stage: str) -> list[str]:
    keys = (entry.key for entry in store.entries(_folder(recipe, stage)))
    return [key for key in keys if key[-14:-8].isdigit()]


@lru_cache(maxsize=4096)
def _receipt(root: str, key: str) -> Receipt:
    found = Store(root).read_receipt(key)
    assert found is not None
    return found


def _emitted(store: Store, recipe: Recipe, settings: Join, dump: str, shards: Sequence[int]) -> pa.Table:
    """Keys and shard of each sample of the block, shard by shard in the order in which they entered."""
    from curation.runner import read_entering

    columns = pa.schema([*settings.keys, pa.field("shard", pa.int32())])

    def emit(shard: int) -> pa.Table:
        entering = read_entering(store, recipe, dump, shard, settings.name, settings.reads.names)
        batches = [settings.emit(batch) for batch in entering]
        keys = pa.Table.from_batches(batches, settings.keys)
        return keys.append_column(columns.field("shard"), pa.array([shard] * len(keys), pa.int32()))

    with ThreadPoolExecutor(_READERS) as pool:
        return pa.concat_tables([columns.empty_table(), *pool.map(emit, shards)]).combine_chunks()


def _prepared(store: Store, settings: Join, keys: pa.Table, folder: str, identity: str) -> dict[str, str]:
    table = settings.prepare(keys)
    if table is None:
        return {}
    key = f"{folder}prepared-{identity}.parquet"  # of a run that dies before its generation nobody reads it
    with store.spool(key) as path:
        pq.write_table(table, path)
    return {"prepared": key}


def _kept_before(
    store: Store, recipe: Recipe, settings: Join, known: list[tuple[str, Receipt]], dump: str, shards: Sequence[int]
) -> Iterator[pa.Table]:
    """Kept samples of all earlier blocks, a generation at a time; of a shard matched more than once the last decision.

    Where runs with other settings share the index, this run's own decisions on a shard count before theirs.
    """
    own = fingerprint(recipe, settings.name)
    seen = {(dump, str(shard)) for shard in shards}
    for key, receipt in sorted(known, key=lambda one: (one[1].fingerprint == own, one[1].shard), reverse=True):
        fresh = [shard for shard in receipt.inputs if (receipt.dump, shard) not in seen]
        seen.update((receipt.dump, shard) for shard in fresh)
        if fresh:
            yield settings.kept(_of_shards(store.open_parquet(key), [int(shard) for shard in fresh])).combine_chunks()


def _of_shards(table: pq.ParquetFile, shards: list[int]) -> pa.Table:
    """Rows of these shards; a row group holds one shard, so others are not read."""
    wanted = set(shards)
    column = table.schema_arrow.get_field_index("shard")
    leaf = next(i for i in range(len(table.schema)) if table.schema.column(i).path == table.schema_arrow.names[column])
    groups = [
        at for at in range(table.num_row_groups) if table.metadata.row_group(at).column(leaf).statistics.min in wanted
    ]
    with table:
        return table.read_row_groups(groups)


def _commit(store: Store, key: str, decisions: pa.Table, receipt: Receipt) -> bool:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, decisions.schema, compression="zstd") as writer:
        ends = pc.run_end_encode(decisions["shard"].combine_chunks()).run_ends.to_pylist()
        for start, end in zip([0, *ends], ends, strict=False):
            writer.write_table(decisions.slice(start, end - start), row_group_size=max(end - start, 1))
        writer.add_key_value_metadata({RECEIPT_KEY: receipt.model_dump_json().encode()})
    return store.write_bytes(key, sink.getvalue(), if_absent=True)

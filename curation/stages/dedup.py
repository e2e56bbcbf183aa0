"""Dedup: the same pair, the same bytes, or nearly the same picture as a sample that is kept.

Work across shards in three steps: read the keys of a block's shards, match them against each other and against the
index of earlier blocks (`match`), apply the decisions shard by shard (`__call__`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PrivateAttr

from curation.errors import BadShardError
from curation.joins.hamming import pairs_within
from curation.schema import schema
from curation.stages.base import Resource, Stage, Tally

KEYS = schema("sample_id", "sha256", "phash", "phash_spread", "original_width", "original_height", "similarity")
"""What matching reads of every sample that entered."""

_OUTCOME = schema("duplicate_kind", "duplicate_of", "group_id", "group_size")
DECISIONS = pa.schema([*KEYS, pa.field("shard", pa.int32()), *_OUTCOME])
"""One row for each sample of a block that entered dedup: its keys and what became of it."""


class Dedup(Stage):
    """Keep the best of each group of duplicates: largest picture, then highest similarity, then smallest sample_id.

    Samples are taken in that order; one that duplicates a sample taken before it is dropped in its favour. So no two
    kept samples are duplicates, every dropped one duplicates a kept one (chains of look-alikes do not collapse into
    one group), and the result does not depend on the order of shards. What earlier blocks kept always stands.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "cpu"
    consumes: ClassVar[pa.Schema] = schema("sample_id")

    phash_radius: int = Field(4, ge=0, le=8, description="bits of 64 by which two pictures' pHash may differ")
    min_spread: float = Field(
        4.0,
        ge=0,
        description="pictures flatter than this (phash_spread) are compared by bytes only: their bits are noise",
    )
    _decisions: pa.Table = PrivateAttr(DECISIONS.empty_table())

    def applying(self, decisions: pa.Table) -> Dedup:
        """The stage ready to apply the decisions on one shard: DECISIONS rows in the order of its samples."""
        ready = self.model_copy()
        ready._decisions = decisions
        return ready

    @property
    def produces(self) -> pa.Schema:
        """Duplicate of what, why, and the group."""
        return _OUTCOME

    def match(self, keys: pa.Table, index: pa.Table) -> pa.Table:
        """Decide which samples of a block are duplicates.

        keys     KEYS and shard, one row a sample, shards in order
        index    DECISIONS rows that earlier blocks kept
        returns  DECISIONS, one row for each row of keys, in the same order
        """
        n_index, n = index.num_rows, index.num_rows + keys.num_rows
        names = [*KEYS.names, "shard"]
        table = pa.concat_tables([index.select(names), keys.select(names)]).combine_chunks()
        kind = np.full(n, "", dtype=object)
        kept_for = np.arange(n)
        by_pair: dict[int, int] = {}
        by_bytes: dict[int, int] = {}
        by_hash: dict[int, int] = {}
        pair, content = _codes(table["sample_id"]), _codes(table["sha256"])
        look, neighbours = self._look_alikes(table)
        for row in _by_rank(table, n_index).tolist():
            like = -1
            if row >= n_index:  # what earlier blocks kept stands, also when a wider radius would now join it
                if (like := by_pair.get(pair[row], -1)) >= 0:
                    kind[row] = "pair"
                elif (like := by_bytes.get(content[row], -1)) >= 0:
                    kind[row] = "sha256"
                elif look[row] >= 0:
                    near = [by_hash[h] for h in (look[row], *neighbours.get(look[row], ())) if h in by_hash]
                    if near:
                        like, kind[row] = near[0], "phash"
            if like >= 0:
                kept_for[row] = like
                continue
            by_pair.setdefault(pair[row], row)
            by_bytes.setdefault(content[row], row)
            if look[row] >= 0:
                by_hash.setdefault(look[row], row)
        return self._decided(table, keys, kind, kept_for, n_index)

    def _look_alikes(self, table: pa.Table) -> tuple[list[int], dict[int, list[int]]]:
        """Number of each row's pHash (-1: too flat to compare), and which of those numbers are close."""
        textured = np.asarray(pc.fill_null(table["phash_spread"], 0.0).to_numpy()) >= self.min_spread
        hashes = np.array([int(h, 16) if h else 0 for h in table["phash"].to_pylist()], np.uint64)
        distinct, number = np.unique(hashes[textured], return_inverse=True)
        look = np.full(len(hashes), -1)
        look[textured] = number
        neighbours: dict[int, list[int]] = {}
        for a, b in zip(*(side.tolist() for side in pairs_within(distinct, self.phash_radius)), strict=True):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
        for number_, close in neighbours.items():  # nearest first, so that the closest kept sample is named
            close.sort(key=lambda other: (int(distinct[number_] ^ distinct[other]).bit_count(), other))
        return look.tolist(), neighbours

    def _decided(
        self, table: pa.Table, keys: pa.Table, kind: np.ndarray, kept_for: np.ndarray, n_index: int
    ) -> pa.Table:
        ids = table["sample_id"].to_pylist()
        sizes = np.bincount(kept_for, minlength=len(ids))
        mine = slice(n_index, None)
        heads = kept_for[mine]
        dropped = kind[mine] != ""
        columns = {
            "duplicate_kind": pa.array([k or None for k in kind[mine]], pa.string()),
            "duplicate_of": pa.array([ids[h] if d else None for h, d in zip(heads, dropped, strict=True)], pa.string()),
            "group_id": pa.array([ids[h] if sizes[h] > 1 else None for h in heads], pa.string()),
            "group_size": pa.array(sizes[heads], pa.int32()),
        }
        decided = keys.select([*KEYS.names, "shard"])
        for name, column in columns.items():
            decided = decided.append_column(name, column)
        return decided.cast(DECISIONS).combine_chunks()

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Hand each sample its decision; they stand in the order in which the samples entered."""
        table = self._decisions
        start = 0
        for batch in batches:
            part = table.slice(start, batch.num_rows)
            start += batch.num_rows
            if not part["sample_id"].combine_chunks().equals(batch.column("sample_id")):
                raise BadShardError("the dedup decisions are of other samples: run match again")
            yield part.select(_OUTCOME.names).combine_chunks().to_batches()[0]
        tally["decisions"] = start


def _codes(column: pa.ChunkedArray) -> list[int]:
    codes: list[int] = column.combine_chunks().dictionary_encode().indices.to_pylist()
    return codes


def _by_rank(table: pa.Table, n_index: int) -> np.ndarray:
    """Row numbers, best first: earlier blocks, then pixels, similarity, sample_id, shard."""
    pixels = pc.multiply(table["original_width"].cast(pa.int64()), table["original_height"].cast(pa.int64()))
    ranked = pa.table(
        {
            "new": np.arange(table.num_rows) >= n_index,
            "pixels": pixels,
            "similarity": table["similarity"],
            "sample_id": table["sample_id"],
            "shard": table["shard"],
        }
    )
    keys = [("new", "ascending"), ("pixels", "descending"), ("similarity", "descending")]
    order: np.ndarray = pc.sort_indices(
        ranked, sort_keys=[*keys, ("sample_id", "ascending"), ("shard", "ascending")]
    ).to_numpy()
    return order

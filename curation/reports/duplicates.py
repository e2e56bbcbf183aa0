"""The largest groups of duplicates of a dump's shards, the one that is kept first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.pipeline import fingerprint
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.store import Store

_GROUPS = 240
_MEMBERS = 12  # shown of a group
_COLUMNS = ["sample_id", "duplicate_kind", "group_id", "group_size"]


class Member(NamedTuple):
    """One sample of a group."""

    shard: int
    row: int
    sample_id: str
    kind: str  # why it is a duplicate; empty: it is the one that is kept


class DuplicateGroup(NamedTuple):
    """Samples that duplicate one that is kept."""

    group_id: str
    size: int  # members in the whole block, the kept one included
    members: list[Member]  # of the shards that were read, the kept one first
    kept_elsewhere: bool  # the kept one is of another shard or an earlier dump


class Duplicates(NamedTuple):
    """What was found in the shards that were read."""

    shards: int
    samples: int  # that came to dedup
    duplicates: dict[str, int]  # dropped, by kind
    groups: list[DuplicateGroup]  # the largest


def largest_groups(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Iterator[Duplicates]:
    """The largest groups of the first 1, 2, 4, ... shards and of all; row groups without a duplicate are not read.

    Memory is that of the duplicates' ids: 70 bytes each.
    """
    found: pa.Table | None = None
    samples = 0
    for number, shard in enumerate(shards, 1):
        key = table_key(dump, "dedup", fingerprint(recipe, "dedup"), shard)
        with store.open_parquet(key) as table:
            first = 0
            for group in range(table.metadata.num_row_groups):
                described = table.metadata.row_group(group)
                if _has_groups(described, table.schema_arrow.names.index("group_size")):
                    read = table.read_row_group(group, _COLUMNS)
                    samples += len(read) - read["group_size"].null_count
                    read = read.append_column("row", pa.array(np.arange(first, first + len(read), dtype=np.int32)))
                    read = read.append_column("shard", pa.array(np.full(len(read), shard, np.int32)))
                    read = read.filter(pc.fill_null(pc.greater(read["group_size"], 1), False))
                    found = read if found is None else pa.concat_tables([found, read])
                else:
                    samples += described.num_rows
                first += described.num_rows
        if number & (number - 1) == 0 or number == len(shards):  # telling costs more than reading a shard
            yield _told(found, number, samples)


def _has_groups(row_group: object, column: int) -> bool:
    statistics = row_group.column(column).statistics  # type: ignore[attr-defined]
    return statistics is None or not statistics.has_min_max or statistics.max > 1


def _told(found: pa.Table | None, shards: int, samples: int) -> Duplicates:
    if found is None or not len(found):
        return Duplicates(shards, samples, {}, [])
    kinds = {
        pair["values"]: pair["counts"]
        for pair in pc.value_counts(found["duplicate_kind"].combine_chunks()).to_pylist()
        if pair["values"]
    }
    sizes = found.group_by("group_id").aggregate([("group_size", "max")])
    order = pc.sort_indices(sizes, sort_keys=[("group_size_max", "descending"), ("group_id", "ascending")])[:_GROUPS]
    wanted = sizes.take(order)
    members: dict[str, list[Member]] = {}
    for row in _first_members(found, wanted["group_id"]).to_pylist():
        member = Member(row["shard"], row["row"], row["sample_id"], row["duplicate_kind"] or "")
        members.setdefault(row["group_id"], []).append(member)
    groups = []
    for one in wanted.to_pylist():
        of_group = members[one["group_id"]]
        groups.append(DuplicateGroup(one["group_id"], one["group_size_max"], of_group, bool(of_group[0].kind)))
    return Duplicates(shards, samples, kinds, groups)


def _first_members(found: pa.Table, groups: pa.ChunkedArray) -> pa.Table:
    """At most _MEMBERS rows of each group: the kept one, then by shard and row."""
    of_groups = found.append_column("group", pc.index_in(found["group_id"], value_set=groups.combine_chunks()))
    of_groups = of_groups.filter(pc.is_valid(of_groups["group"]))
    dropped = pc.greater(pc.binary_length(pc.fill_null(of_groups["duplicate_kind"], "")), 0)
    group, shard, row = (of_groups[name].to_numpy() for name in ("group", "shard", "row"))
    order = np.lexsort((row, shard, dropped.to_numpy(), group))
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    return of_groups.take(pa.array(order[rank < _MEMBERS]))

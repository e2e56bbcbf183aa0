"""Samples a page at a time: what is read is bounded, however large the version or the dump is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import ConfigError
from curation.publish.parts import plans
from curation.publish.release import held_by
from curation.publish.verify import read_manifest
from curation.publish.version import latest
from curation.store import Store
from curation.ui.counting import Counted
from curation.ui.sources import BURIED, MEASURES, SHOWN, Source, null_safe
from curation.verdicts import Verdict

PAGE = 24
_SCANNED = 1 << 16  # rows looked through for a page: with a filter that few meet, the next link goes on from there
_SORTED = 100 * PAGE  # places that a sorted list holds


class Place(NamedTuple):
    """Where a page begins: number of the part in the manifest, or of the shard among those done; row in its table."""

    part: int = 0
    row: int = 0

    def __str__(self) -> str:
        return f"{self.part}-{self.row}"


class Filter(NamedTuple):
    """What samples must meet to be shown; empty asks nothing."""

    text: str = ""  # somewhere in the caption or the URL, in any case
    language: str = ""
    at_least: float | None = None  # similarity
    below: float | None = None
    reason: str = ""  # of a dump: kept, dropped, or a name of verdicts.py


class Listed(NamedTuple):
    """One version as the list of versions shows it."""

    recipe: str
    version: str
    created_at: str
    samples: int
    dumps: list[str]
    is_latest: bool
    held: list[str]


def versions(store: Store) -> list[Listed]:
    """Every version that is published, the newest first, with what holds those that are not released."""
    found = []
    for recipe, plan in plans(store):
        try:
            manifest = read_manifest(store, recipe, plan.version)
        except ConfigError:
            continue  # planned and not finished, or withdrawn
        released = latest(store, recipe) == plan.version
        samples = sum(part["samples"] for part in manifest["parts"])
        held = [] if released else held_by(store, manifest)
        found.append(Listed(recipe, plan.version, plan.created_at, samples, sorted(plan.sources), released, held))
    return sorted(found, key=lambda one: (one.created_at, one.version), reverse=True)


def page(source: Source, start: Place, wanted: Filter, n: int = PAGE) -> tuple[list[dict[str, Any]], Place | None]:
    """Rows from a place on that meet the filter, and where the next page begins; None: there is no more.

    Each row is plain data of the columns that a browser shows, with `part`, its number in the source.
    raises   ConfigError for a version without metadata tables
    """
    rows: list[dict[str, Any]] = []
    scanned, (part, offset) = 0, start
    while part < source.n_parts:
        for at, batch in source.batches(part, offset, SHOWN):
            for row in pc.indices_nonzero(met(batch, wanted)).to_pylist():
                rows.append(shown(batch.slice(row, 1).to_pylist()[0]) | {"part": part})
                if len(rows) == n:
                    return rows, Place(part, at + row + 1)
            scanned += batch.num_rows
            if scanned >= _SCANNED:
                return rows, Place(part, at + batch.num_rows)
        part, offset = part + 1, 0
    return rows, None


def sort(source: Source, column: str, *, ascending: bool, wanted: Filter) -> Iterator[Counted]:
    """The first rows of a source by a measure, as far as its parts are read: lists of plain rows, 100 pages at most."""
    if column not in MEASURES:
        raise ConfigError(f"sort by {column}: choose one of {', '.join(MEASURES)}")
    best: pa.Table | None = None
    order = [(column, "ascending" if ascending else "descending"), ("sample_id", "ascending")]
    for part in range(source.n_parts):
        for _, batch in source.batches(part, 0, SHOWN):
            if column not in batch.schema.names:
                yield Counted([], source.n_parts, source.n_parts)
                return
            chosen = batch.filter(pc.and_(met(batch, wanted), _finite(batch[column])))
            placed = chosen.append_column("part", pa.array(np.full(chosen.num_rows, part, np.int32)))
            both = pa.Table.from_batches([placed]) if best is None else pa.concat_tables([best, _table(placed)])
            best = both.take(pc.sort_indices(both, sort_keys=order)[:_SORTED])
        yield Counted(
            [shown(row) | {"part": row["part"]} for row in best.to_pylist()] if best else [], part + 1, source.n_parts
        )
    if not source.n_parts:
        yield Counted([], 0, 0)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row, or of one that was taken down no more than that."""
    if row.get("reason") != Verdict.TOMBSTONE:
        return row
    return BURIED | {name: row[name] for name in ("sample_id", "reason", "row")}


def met(batch: pa.RecordBatch, wanted: Filter) -> pa.BooleanArray:
    """Which rows of a batch meet the filter: bool (n,), no nulls."""
    found = pa.array([True] * batch.num_rows, pa.bool_())
    names = batch.schema.names
    if wanted.reason and "reason" in names:
        kept = pc.is_null(batch["reason"])
        special = {"kept": kept, "dropped": pc.invert(kept)}
        found = special.get(wanted.reason, null_safe(pc.equal(batch["reason"], wanted.reason)))
    if wanted.text:
        texts = [name for name in ("text", "caption", "url") if name in names]
        hits = [null_safe(pc.match_substring(batch[name], wanted.text, ignore_case=True)) for name in texts]
        any_of = hits[0]
        for more in hits[1:]:
            any_of = pc.or_(any_of, more)
        found = pc.and_(found, any_of)
    if wanted.language and "language" in names:
        found = pc.and_(found, null_safe(pc.equal(batch["language"], wanted.language)))
    if wanted.at_least is not None and "similarity" in names:
        found = pc.and_(found, null_safe(pc.greater_equal(batch["similarity"], wanted.at_least)))
    if wanted.below is not None and "similarity" in names:
        found = pc.and_(found, null_safe(pc.less(batch["similarity"], wanted.below)))
    return found


def _finite(values: pa.Array) -> pa.Array:
    return null_safe(pc.is_finite(values))


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])

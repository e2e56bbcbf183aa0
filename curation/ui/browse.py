"""Samples of a published version, a page at a time: what is read is bounded, however large the version is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import BadShardError, ConfigError
from curation.publish.export import kind_of
from curation.publish.parts import plans
from curation.publish.release import held_by
from curation.publish.tars import read_sample
from curation.publish.verify import read_manifest
from curation.publish.version import latest
from curation.store import Store

PAGE = 24
_SCANNED = 1 << 17  # rows looked through for a page: with a filter that few meet, the next link goes on from there
_BATCH_ROWS = 1 << 14
_SHOWN = ("sample_id", "key", "url", "page_url", "text", "caption", "language", "similarity", "aesthetic", "safety_tag")
_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


class Place(NamedTuple):
    """Where a page begins: number of the part in the manifest, row in its metadata table."""

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


def page(
    store: Store, manifest: Mapping[str, Any], start: Place, wanted: Filter, n: int = PAGE
) -> tuple[list[dict[str, Any]], Place | None]:
    """Rows from a place on that meet the filter, and where the next page begins; None: there is no more.

    Each row is plain data of the columns that a browser shows, with `part`, its number in the manifest.
    raises   ConfigError for a version without metadata tables
    """
    rows: list[dict[str, Any]] = []
    scanned, (part, offset) = 0, start
    parts = manifest["parts"]
    while part < len(parts):
        files = {kind_of(key): key for key in parts[part]["files"]}
        if parts[part]["samples"] and "metadata" not in files:
            raise ConfigError(f"{manifest['version']} is published without metadata tables: set publish.parquet")
        for at, batch in _batches(store, files.get("metadata"), offset):
            for row in pc.indices_nonzero(_met(batch, wanted)).to_pylist():
                rows.append({**batch.slice(row, 1).to_pylist()[0], "part": part})
                if len(rows) == n:
                    return rows, Place(part, at + row + 1)
            scanned += batch.num_rows
            if scanned >= _SCANNED:
                return rows, Place(part, at + batch.num_rows)
        part, offset = part + 1, 0
    return rows, None


def picture(store: Store, manifest: Mapping[str, Any], part: int, key: str) -> tuple[bytes, str]:
    """A sample's picture and its media type. Raises ConfigError for a part or key that the version does not have."""
    parts = manifest["parts"]
    tar = next((name for name in parts[part]["files"] if name.endswith(".tar")), "") if part < len(parts) else ""
    if not tar:
        raise ConfigError(f"part {part} of {manifest['version']} has no pictures")
    try:
        with store.open_stream(tar) as stream:
            files = read_sample(stream, key)
    except FileNotFoundError as err:
        raise BadShardError(f"{tar} is missing: run curation verify") from err
    except KeyError:
        raise ConfigError(f"sample {key!r} is not in {manifest['version']}") from None
    suffix = next((suffix for suffix in _MEDIA_TYPES if suffix in files), None)
    if suffix is None:
        raise BadShardError(f"{tar}: sample {key} has no picture")
    return files[suffix], _MEDIA_TYPES[suffix]


def _batches(store: Store, key: str | None, offset: int) -> Any:
    """Batches of a table from a row on, each with the number of its first row; row groups before are not read."""
    if key is None:
        return
    with store.open_parquet(key) as table:
        columns = [name for name in _SHOWN if name in table.schema_arrow.names]
        first = 0
        for group in range(table.metadata.num_row_groups):
            n = table.metadata.row_group(group).num_rows
            if first + n > offset:
                at = first
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns):
                    if at + batch.num_rows > offset:
                        skip = max(0, offset - at)
                        yield at + skip, batch.slice(skip)
                    at += batch.num_rows
            first += n


def _met(batch: pa.RecordBatch, wanted: Filter) -> pa.BooleanArray:
    met = pa.array([True] * batch.num_rows)
    names = batch.schema.names
    if wanted.text:
        texts = [name for name in ("text", "caption", "url") if name in names]
        hits = [pc.fill_null(pc.match_substring(batch[name], wanted.text, ignore_case=True), False) for name in texts]
        found = hits[0]
        for more in hits[1:]:
            found = pc.or_(found, more)
        met = pc.and_(met, found)
    if wanted.language and "language" in names:
        met = pc.and_(met, pc.fill_null(pc.equal(batch["language"], wanted.language), False))
    if wanted.at_least is not None and "similarity" in names:
        met = pc.and_(met, pc.fill_null(pc.greater_equal(batch["similarity"], wanted.at_least), False))
    if wanted.below is not None and "similarity" in names:
        met = pc.and_(met, pc.fill_null(pc.less(batch["similarity"], wanted.below), False))
    return met

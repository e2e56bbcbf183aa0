"""Rows to look at: of a published version, or of a dump with what became of each; read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import tombstones
from curation.block import recipe_key
from curation.dumps import archives_of
from curation.errors import BadShardError, ConfigError
from curation.pipeline import fingerprint, saved_recipe
from curation.publish.export import kind_of
from curation.publish.parts import manifest_key
from curation.publish.tars import read_sample
from curation.publish.verify import read_manifest
from curation.receipt import digest, table_key
from curation.recipe import Recipe
from curation.runner import read_outcomes
from curation.schema import COLUMNS
from curation.store import Store
from curation.verdicts import Verdict

SHOWN = (
    *("url", "page_url", "text", "caption", "language", "similarity", "aesthetic", "punsafe", "safety_tag"),
    "image_format",
)
MEASURES = ("similarity", "aesthetic", "punsafe")
SHARDS = 64  # of a dump, evenly drawn, that reports on pages are made of: bounded, however large it is
_BATCH_ROWS = 1 << 14
_MEDIA_TYPES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_PICTURE_GROUPS = 4  # row groups of pictures kept in memory, 32 MiB each at most


class Source(Protocol):
    """Tables to page through."""

    @property
    def n_parts(self) -> int:
        """How many tables."""

    @property
    def identity(self) -> str:
        """Equal identities have equal rows."""

    def batches(self, part: int, offset: int, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches from a row on, each with the number of its first row, with those of the columns that there are."""


class Version(NamedTuple):
    """A published version."""

    store: Store
    manifest: Mapping[str, Any]

    @property
    def n_parts(self) -> int:
        """Tables of metadata."""
        return len(self.manifest["parts"])

    @property
    def identity(self) -> str:
        """A version never changes."""
        return f"{self.store.root} {self.manifest['recipe']['name']} {self.manifest['version']}"

    def batches(self, part: int, offset: int, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As of Source. Raises ConfigError for a version without metadata tables."""
        files = {kind_of(key): key for key in self.manifest["parts"][part]["files"]}
        if "metadata" not in files:
            if self.manifest["parts"][part]["samples"]:
                raise ConfigError(
                    f"{self.manifest['version']} is published without metadata tables: set publish.parquet"
                )
            return
        with self.store.open_parquet(files["metadata"]) as table:
            names = [name for name in ("sample_id", "key", *columns) if name in table.schema_arrow.names]
            first = 0
            for group in range(table.metadata.num_row_groups):
                n = table.metadata.row_group(group).num_rows
                if first + n > offset:
                    at = first
                    for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=names):
                        if at + batch.num_rows > offset:
                            skip = max(0, offset - at)
                            yield at + skip, batch.slice(skip)
                        at += batch.num_rows
                first += n

    def picture(self, part: int, key: str) -> tuple[bytes, str]:
        """A sample's picture and media type. Raises ConfigError for a part or key that the version does not have."""
        parts = self.manifest["parts"]
        files = parts[part]["files"] if part < len(parts) else ()
        tar = next((name for name in files if name.endswith(".tar")), "")
        if not tar:
            raise ConfigError(f"part {part} of {self.manifest['version']} has no pictures")
        try:
            with self.store.open_stream(tar) as stream:
                found = read_sample(stream, key)
        except FileNotFoundError as err:
            raise BadShardError(f"{tar} is missing: run curation verify") from err
        except KeyError:
            raise ConfigError(f"sample {key!r} is not in {self.manifest['version']}") from None
        suffix = next((suffix for suffix in _MEDIA_TYPES if suffix in found), None)
        if suffix is None:
            raise BadShardError(f"{tar}: sample {key} has no picture")
        return found[suffix], _MEDIA_TYPES[suffix]


class Dump(NamedTuple):
    """The shards of a dump that a recipe has taken through all its stages."""

    store: Store
    recipe: Recipe
    dump: str
    done: tuple[int, ...]  # shards, in order
    n_shards: int
    identity: str
    buried: tombstones.Matcher  # what was taken down is not shown, though a dump's tables still hold it

    @property
    def n_parts(self) -> int:
        """Shards that are done."""
        return len(self.done)

    def even(self, n: int = SHARDS) -> list[int]:
        """At most so many of the shards that are done, evenly drawn."""
        picks = np.unique(np.linspace(0, len(self.done) - 1, min(n, len(self.done))).astype(int))
        return [self.done[at] for at in picks.tolist()] if self.done else []

    def columns(self, wanted: Sequence[str]) -> list[str]:
        """Those of the columns that the recipe's stages write."""
        return [name for name in wanted if _written(self.recipe, name)]

    def batches(self, part: int, offset: int, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As of Source; each row has its `reason` and its `row`."""
        first = 0
        wanted = list(dict.fromkeys([*self.columns(columns), *self.columns(self.buried.columns)]))
        for batch in read_outcomes(self.store, self.recipe, self.dump, self.done[part], wanted):
            if first + batch.num_rows > offset:
                skip = max(0, offset - first)
                rows = batch.slice(skip)
                rows = rows.append_column("row", pa.array(np.arange(first + skip, first + batch.num_rows)))
                if self.buried:
                    reason = pc.if_else(pa.array(self.buried.matches(rows)), str(Verdict.TOMBSTONE), rows["reason"])
                    rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reason)
                yield first + skip, rows
            first += batch.num_rows

    def rows(self, shard: int, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Columns of single rows of a shard, in the order of their numbers; only their row groups are read."""
        by_stage: dict[str, list[str]] = {}
        for name in dict.fromkeys(self.columns([*columns, *self.buried.columns])):
            by_stage.setdefault(_producer(name), []).append(name)
        found: list[dict[str, Any]] = [{} for _ in numbers]
        for stage, names in by_stage.items():
            key = table_key(self.dump, stage, fingerprint(self.recipe, stage), shard)
            try:
                with self.store.open_parquet(key) as table:
                    for group, first, n in _groups(table):
                        here = [at for at, row in enumerate(numbers) if first <= row < first + n]
                        if here:
                            read = table.read_row_group(group, names)
                            chosen = read.take([numbers[at] - first for at in here]).to_pylist()
                            for at, row in zip(here, chosen, strict=True):
                                found[at] |= row
            except FileNotFoundError as err:
                raise BadShardError(f"{self.dump} shard {shard:05d}: the table of {stage} is gone") from err
        return [BURIED if self._is_buried(row) else row for row in found]

    def _is_buried(self, row: dict[str, Any]) -> bool:
        if not self.buried:
            return False
        read = {name: pa.array([row[name]], pa.string()) for name in self.buried.columns if name in row}
        return bool(read) and bool(self.buried.matches(pa.RecordBatch.from_pydict(read)).any())

    def picture(self, shard: int, row: int) -> tuple[bytes, str]:
        """A row's picture and media type. Raises ConfigError where it has none."""
        there = _written(self.recipe, "image") and shard in self.done
        if there and not (self.buried and BURIED in self.rows(shard, [row], [])):
            key = table_key(self.dump, "download", fingerprint(self.recipe, "download"), shard)
            with _reading:
                first, images = _pictures(self.store.root, key, self.identity, row)
            at = row - first
            if images is not None and images["image"][at].is_valid:
                kind = images["image_format"][at].as_py()
                return images["image"][at].as_py(), _MEDIA_TYPES.get(kind, "application/octet-stream")
        raise ConfigError(f"{self.dump} shard {shard:05d} row {row} has no picture")


BURIED: dict[str, Any] = {"text": "(taken down)", "safety_tag": "taken down"}
"""What is shown of a row that a takedown names."""

_reading = Lock()  # of 24 pictures on a page one reads the row group, the others find it


@lru_cache(maxsize=_PICTURE_GROUPS)
def _row_group(root: str, key: str, identity: str, group: int) -> pa.Table:
    with Store(root).open_parquet(key) as table:
        return table.read_row_group(group, ["image", "image_format"])


@lru_cache(maxsize=1024)
def _group_bounds(root: str, key: str, identity: str) -> tuple[tuple[int, int, int], ...]:
    with Store(root).open_parquet(key) as table:
        return tuple(_groups(table))


def _pictures(root: str, key: str, identity: str, row: int) -> tuple[int, pa.Table | None]:
    for group, first, n in _group_bounds(root, key, identity):
        if first <= row < first + n:
            return first, _row_group(root, key, identity, group)
    return 0, None


def _groups(table: Any) -> Iterator[tuple[int, int, int]]:
    """Number, first row and rows of each row group."""
    first = 0
    for group in range(table.metadata.num_row_groups):
        n = table.metadata.row_group(group).num_rows
        yield group, first, n
        first += n


def _producer(column: str) -> str:
    return COLUMNS[column].producer


def _written(recipe: Recipe, column: str) -> bool:
    stage = recipe.stage(_producer(column))
    return stage is not None and column in stage.produces.names


def open_version(store: Store, recipe: str, version: str) -> Version:
    """A version; its manifest is parsed once, and asked for each time: a version may be withdrawn.

    raises  ConfigError when there is no such version
    """
    if version == "latest" or not store.exists(manifest_key(recipe, version)):
        return Version(store, read_manifest(store, recipe, version))
    return Version(store, _manifest(store.root, recipe, version))


@lru_cache(maxsize=8)
def _manifest(root: str, recipe: str, version: str) -> dict[str, Any]:
    return read_manifest(Store(root), recipe, version)


def open_dump(store: Store, dump: str, recipe_name: str) -> Dump:
    """What a recipe has done of a dump, by one listing. Raises ConfigError where it never ran."""
    key = recipe_key(store, dump, recipe_name)
    recipe = _recipe(store.root, key)
    tables = done_tables(store, recipe, dump, recipe.stage_names[-1])
    n_shards = len(archives_of(store, dump, recipe.stages.extract.archive))
    stones = tuple(tombstones.keys(store))
    state = digest(store.root, key, dump, *stones, *(f"{shard}:{size}" for shard, size in tables.items()))
    return Dump(store, recipe, dump, tuple(sorted(tables)), n_shards, state, _matcher(store.root, stones))


@lru_cache(maxsize=2)
def _matcher(root: str, stones: tuple[str, ...]) -> tombstones.Matcher:
    return tombstones.read(Store(root), stones)


def done_tables(store: Store, recipe: Recipe, dump: str, stage: str) -> dict[int, int]:
    """Size of the table of each shard that has done the stage, by one listing."""
    folder = table_key(dump, stage, fingerprint(recipe, stage), 0).rpartition("/")[0]
    names = ((entry.key.rpartition("/")[2], entry.size) for entry in store.entries(f"{folder}/"))
    return {int(name.removesuffix(".parquet")): size for name, size in names if name.endswith(".parquet")}


@lru_cache(maxsize=256)
def _recipe(root: str, key: str) -> Recipe:
    return saved_recipe(Store(root), key)


def null_safe(mask: pa.Array) -> pa.Array:
    """A mask in which what is not known does not meet."""
    return pc.fill_null(mask, False)

"""Export of one shard: the kept samples as a Parquet table and as a WebDataset tar, and a note of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from curation import __version__
from curation.errors import BadShardError
from curation.pipeline import judged_fingerprint
from curation.publish.quality import Quality
from curation.receipt import Receipt, digest
from curation.recipe import Recipe
from curation.runner import read_outcomes, receipt_of
from curation.schema import COLUMNS
from curation.store import Store, TableWriter

# bytes of their own kind, and the marks of the gates: the same for every sample that is kept
_NO_METADATA = frozenset(
    ["image", "img_emb", "txt_emb", "sample_id", "verdict", "fault", "duplicate_pair", "url_class", "text_class"]
)
_EMBEDDINGS = ("img_emb", "txt_emb")
_EXTENSIONS = {"jpeg": "jpg"}  # what readers of WebDataset look for
_TAR_BLOCK = 512


class File(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True)

    key: str
    size: int
    sha256: str


class Part(BaseModel):
    """What one shard gives to a version; written last, so that a part stands for files that stand."""

    model_config = ConfigDict(frozen=True)

    input: str  # object_id of the shard's last table: what was exported
    counts: dict[str, int]  # every sample of the shard by reason, "kept" for those in the files
    files: list[File]
    quality: dict[str, Any]

    @property
    def samples(self) -> int:
        """Samples in the files."""
        return self.counts.get("kept", 0)


class _Paths(NamedTuple):
    metadata: Path | None
    tar: Path | None


def export_shard(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> dict[str, int]:
    """Write the kept samples of one shard and return their number and bytes.

    An export of the same tables that stands there is kept. A second export, here or on another machine, writes the
    same bytes again: no clock and no host is in them. Raises BadShardError when the shard's last stage is not done,
    and when the version is published already from other tables.
    """
    source = receipt_of(store, recipe, dump, shard, recipe.stage_names[-1])
    if source is None:
        raise BadShardError(f"{dump} shard {shard:05d}: expected the table of {recipe.stage_names[-1]}, found none")
    part = read_part(store, recipe, version, dump, shard)
    if part is None or part.input != source.object_id:
        if store.exists(f"{version_folder(recipe.name, version)}/manifest.json"):
            raise BadShardError(
                f"{dump} shard {shard:05d}: version {version} is published, from other tables than stand here now; "
                "a published version never changes: plan a new one"
            )
        part = _export(store, recipe, version, source)
        store.write_bytes(_part_key(recipe, version, dump, shard), part.model_dump_json().encode())
    return {"samples": part.samples, "bytes": sum(file.size for file in part.files)}


def read_part(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> Part | None:
    """What was exported of a shard, None when it was not."""
    try:
        return Part.model_validate_json(store.read_bytes(_part_key(recipe, version, dump, shard)))
    except FileNotFoundError:
        return None


def version_folder(recipe_name: str, version: str) -> str:
    """Where the files of a version stand."""
    return f"datasets/{recipe_name}/{version}"


def metadata_key(recipe_name: str, version: str, dump: str, shard: int) -> str:
    """Key of a shard's published metadata table."""
    return f"{version_folder(recipe_name, version)}/metadata/{dump}-{shard:05d}.parquet"


def _part_key(recipe: Recipe, version: str, dump: str, shard: int) -> str:
    return f"{version_folder(recipe.name, version)}/parts/{dump}-{shard:05d}.json"


def _export(store: Store, recipe: Recipe, version: str, source: Receipt) -> Part:
    metadata = metadata_key(recipe.name, version, source.dump, source.shard)
    tar = f"{version_folder(recipe.name, version)}/webdataset/{source.dump}-{source.shard:05d}.tar"
    with contextlib.ExitStack() as spools:  # the last that is entered is committed first: the tar
        paths = _Paths(
            spools.enter_context(store.spool(metadata)) if recipe.publish.parquet else None,
            spools.enter_context(store.spool(tar)) if recipe.publish.webdataset else None,
        )
        counts, quality = _write(store, recipe, version, source, paths)
        files = [_file(key, path) for key, path in zip((metadata, tar), paths, strict=True) if path]
    return Part(input=source.object_id, counts=dict(counts), files=files, quality=quality.to_json())


def _write(store: Store, recipe: Recipe, version: str, source: Receipt, paths: _Paths) -> tuple[Counter[str], Quality]:
    columns = _columns(recipe)
    read = [*columns, "image"] if paths.tar else columns
    schema = pa.schema(
        [("sample_id", pa.string()), ("key", pa.string()), ("dump", pa.string()), ("shard", pa.int32())]
        + [_measured(recipe)[name] for name in columns]
    )
    counts: Counter[str] = Counter()
    quality = Quality()
    with contextlib.ExitStack() as stack:
        tar = stack.enter_context(paths.tar.open("wb")) if paths.tar else None
        table = stack.enter_context(_table(paths.metadata, schema)) if paths.metadata else None
        for batch in read_outcomes(store, recipe, source.dump, source.shard, read):
            for pair in pc.value_counts(batch.column("reason")).to_pylist():
                counts[pair["values"] or "kept"] += pair["counts"]
            kept = readable(batch.filter(pc.is_null(batch.column("reason"))))
            rows = kept.drop_columns([name for name in _EMBEDDINGS if name in columns]).to_pylist()
            first = counts["kept"] - len(rows)
            for index, row in enumerate(rows, start=first):
                # img2dataset's form, with room for the 10 million pairs that a WARC file can hold
                row |= {"key": f"{source.shard:05d}{index:07d}", "dump": source.dump, "shard": source.shard}
                quality.add(row)
                if tar:
                    _add_sample(tar, row)
            if table and rows:
                placed = {name: [row[name] for row in rows] for name in ("key", "dump", "shard")}
                arrays = [
                    pa.array(placed[field.name], field.type) if field.name in placed else kept.column(field.name)
                    for field in schema
                ]
                table.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if tar:
            tar.write(bytes(2 * _TAR_BLOCK))
        if table:
            table.set_receipt(_receipt(recipe, version, source, counts))
    return counts, quality


def _columns(recipe: Recipe) -> list[str]:
    """What the stages of this recipe measure: a stage without a head for aesthetics has no such column."""
    measured = _measured(recipe)
    order = [name for name in COLUMNS if name in measured]
    order += [name for name in measured if name not in order]  # heads of the recipe's own
    columns = [name for name in order if name not in _NO_METADATA]
    return columns + [name for name in _EMBEDDINGS if recipe.publish.embeddings and name in measured]


def _measured(recipe: Recipe) -> dict[str, pa.Field]:
    return {field.name: field for name in recipe.stage_names if (one := recipe.stage(name)) for field in one.produces}


@contextlib.contextmanager
def _table(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    writer = TableWriter(path, schema)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()


def _receipt(recipe: Recipe, version: str, source: Receipt, counts: Counter[str]) -> Receipt:
    """Without time, host and memory: the same samples give the same bytes."""
    judged = judged_fingerprint(recipe)
    return Receipt(
        object_id=digest("export", version, source.object_id),
        stage="export",
        stage_version=1,
        fingerprint=judged,
        recipe=recipe.name,
        dump=source.dump,
        shard=source.shard,
        inputs={source.stage: source.object_id},
        rows=counts.total(),
        measured=counts["kept"],
        dropped={reason: count for reason, count in counts.items() if reason != "kept"},
        curation_version=__version__,
    )


def readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with every text in valid UTF-8: bytes that are none (lone surrogates) become U+FFFD."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        columns = [_decoded(column) if pa.types.is_string(column.type) else column for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    return batch


def _decoded(column: pa.Array) -> pa.Array:
    values = [None if v is None else v.decode(errors="replace") for v in column.cast(pa.binary()).to_pylist()]
    return pa.array(values, pa.string())


def _add_sample(tar: BinaryIO, row: dict[str, Any]) -> None:
    suffix = _EXTENSIONS.get(row["image_format"], row["image_format"])
    described = {name: value for name, value in row.items() if name not in _NO_METADATA or name == "sample_id"}
    _add_member(tar, f"{row['key']}.{suffix}", row["image"])
    _add_member(tar, f"{row['key']}.txt", (row.get("caption") or row["text"]).encode())
    _add_member(tar, f"{row['key']}.json", json.dumps(described, ensure_ascii=False, sort_keys=True).encode())


def _add_member(tar: BinaryIO, name: str, content: bytes) -> None:
    # by hand: tarfile.TarFile remembers every member it wrote, which for a large shard is more than its pictures
    member = tarfile.TarInfo(name)  # time 0, owner 0, mode 644: the same samples, the same bytes
    member.size = len(content)
    tar.write(member.tobuf(tarfile.USTAR_FORMAT))
    tar.write(content)
    tar.write(bytes(-len(content) % _TAR_BLOCK))


def _file(key: str, path: Path) -> File:
    with path.open("rb") as file:
        return File(key=key, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())

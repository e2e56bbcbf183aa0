"""Dataset versions: planned by what they are made of, exported shard by shard, visible when the manifest stands."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import __version__, generations
from curation.block import measure_stages
from curation.errors import BadShardError
from curation.pipeline import fingerprint, judged_fingerprint
from curation.publish.card import render_card
from curation.publish.quality import Quality
from curation.receipt import digest
from curation.recipe import Recipe
from curation.reports.funnel import funnel, outcome_counts
from curation.runner import read_kept, receipt_of
from curation.schema import COLUMNS
from curation.store import Store

_LEFT_OUT = frozenset(
    ["image", "img_emb", "txt_emb", "sample_id", "verdict", "fault", "duplicate_pair", "url_class", "text_class"]
)


def plan_version(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> str:
    """Name of the version that these shards make: the day it was first planned and a digest of all it depends on.

    The same tables under the same recipe give the same name, today or in a year. Raises BadShardError naming the shards
    whose measuring stages are not done.
    """
    last = measure_stages(recipe)[-1]
    receipts = {shard: receipt_of(store, recipe, dump, shard, last) for shard in shards}
    missing = [f"{shard:05d}" for shard, receipt in receipts.items() if receipt is None]
    if missing:
        raise BadShardError(f"{dump}: {last} is not done for shards {', '.join(missing[:20])}: run them first")
    parts = [f"{shard}={receipt.object_id}" for shard, receipt in receipts.items() if receipt is not None]
    if "dedup" in recipe.stage_names:
        parts += sorted({generations.of_shard(store, recipe, dump, shard) for shard in shards})
    identity = digest(judged_fingerprint(recipe), recipe.publish.model_dump_json(), dump, *parts)[:8]
    note = f"datasets/{recipe.name}/versions/{identity}"
    store.write_bytes(note, f"{datetime.now(UTC):%Y.%m.%d}-{identity}".encode(), if_absent=True)
    return store.read_bytes(note).decode()


def export_shard(store: Store, recipe: Recipe, version: str, dump: str, shard: int) -> dict[str, int]:
    """Write the kept samples of one shard: metadata as Parquet, and a WebDataset tar.

    returns  samples and bytes written. What stands there already from an earlier try is kept.
    """
    note = _part_key(recipe, version, dump, shard)
    if not store.exists(note):
        folder = f"datasets/{recipe.name}/{version}"
        metadata, tar = f"{folder}/metadata/{dump}-{shard:05d}.parquet", f"{folder}/webdataset/{dump}-{shard:05d}.tar"
        quality = Quality()
        with store.spool(metadata) as metadata_path, store.spool(tar) as tar_path:
            samples = _write(store, recipe, dump, shard, metadata_path, tar_path, quality)
            files = [_file(metadata, metadata_path), _file(tar, tar_path)]
        part = {"samples": samples, "files": files, "quality": quality.to_json()}
        store.write_bytes(note, json.dumps(part, sort_keys=True).encode())
    found = json.loads(store.read_bytes(note))
    return {"samples": found["samples"], "bytes": sum(file["size"] for file in found["files"])}


def finish_version(store: Store, recipe: Recipe, version: str, dump: str, shards: Sequence[int]) -> str:
    """Check that no sample is lost, write card and quality report, and last the manifest: then the version exists.

    returns  key of the manifest. Raises BadShardError when counts do not add up or a shard is not exported.
    """
    folder = f"datasets/{recipe.name}/{version}"
    key = f"{folder}/manifest.json"
    if not store.exists(key):
        counts, parts = _conserved(store, recipe, version, dump, shards)
        quality = Quality.merged([part["quality"] for part in parts])
        created = datetime.now(UTC).isoformat(timespec="seconds")
        found = funnel(store, recipe, dump, shards)
        reports = {
            f"{folder}/quality.json": json.dumps(quality, indent=1, ensure_ascii=False).encode(),
            f"{folder}/card.html": render_card(recipe, version, created, found, quality).encode(),
        }
        for report, content in reports.items():
            store.write_bytes(report, content)
        files = [file for part in parts for file in part["files"]]
        files += [{"key": k, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for k, c in reports.items()]
        models: dict[str, str] = {}
        for stage in recipe.stage_names:
            for shard in shards:
                receipt = receipt_of(store, recipe, dump, shard, stage)
                models |= receipt.models if receipt else {}
        manifest = {
            "version": version,
            "created_at": created,
            "curation_version": __version__,
            "recipe": recipe.model_dump(mode="json"),
            "fingerprints": {stage: fingerprint(recipe, stage) for stage in recipe.stage_names},
            "dumps": {dump: list(shards)},
            "models": models,
            "samples": counts["kept"],
            "counts": dict(counts),
            "files": files,
        }
        store.write_bytes(key, json.dumps(manifest, indent=1, ensure_ascii=False).encode(), if_absent=True)
    store.write_bytes(f"datasets/{recipe.name}/latest.json", json.dumps({"version": version}).encode())
    return key


def verify(store: Store, recipe_name: str, version: str) -> list[str]:
    """Problems of a version: files that are missing or differ from the manifest. Empty: it is whole."""
    problems = []
    manifest = json.loads(store.read_bytes(f"datasets/{recipe_name}/{version}/manifest.json"))
    for file in manifest["files"]:
        try:
            content = store.read_bytes(file["key"])
        except FileNotFoundError:
            problems.append(f"{file['key']}: missing")
            continue
        if len(content) != file["size"] or hashlib.sha256(content).hexdigest() != file["sha256"]:
            problems.append(f"{file['key']}: differs from the manifest")
    return problems


def _conserved(
    store: Store, recipe: Recipe, version: str, dump: str, shards: Sequence[int]
) -> tuple[Counter[str], list[dict[str, Any]]]:
    counts: Counter[str] = Counter()
    parts = []
    for shard in shards:
        found = outcome_counts(store, recipe, dump, shard)
        first = receipt_of(store, recipe, dump, shard, recipe.stage_names[0])
        note = _part_key(recipe, version, dump, shard)
        if first is None or not store.exists(note):
            raise BadShardError(f"{dump} shard {shard:05d}: not exported for version {version}")
        part = json.loads(store.read_bytes(note))
        if found.total() != first.rows or part["samples"] != found["kept"]:
            raise BadShardError(
                f"{dump} shard {shard:05d}: samples are not conserved: {first.rows} extracted, {found.total()} judged, "
                f"{found['kept']} kept, {part['samples']} exported"
            )
        counts += found
        parts.append(part)
    return counts, parts


def _write(
    store: Store, recipe: Recipe, dump: str, shard: int, metadata_path: Path, tar_path: Path, quality: Quality
) -> int:
    # what the stages of this recipe measure: a stage without a head for aesthetics has no such column
    measured = {name for stage in recipe.stage_names if (one := recipe.stage(stage)) for name in one.produces.names}
    columns = [name for name in COLUMNS if name in measured and name not in _LEFT_OUT]
    if recipe.publish.embeddings:
        columns += [name for name in ("img_emb", "txt_emb") if recipe.stage("score")]
    fields = [pa.field(name, COLUMNS[name].type) for name in columns]
    schema = pa.schema(
        [("sample_id", pa.string()), ("key", pa.string()), ("dump", pa.string()), ("shard", pa.int32()), *fields]
    )
    index = 0
    with pq.ParquetWriter(metadata_path, schema, compression="zstd") as metadata, tarfile.open(tar_path, "w") as tar:
        for batch in read_kept(store, recipe, dump, shard, [*columns, "image"]):
            rows = batch.to_pylist()
            for row in rows:
                row |= {"key": f"{shard:05d}{index:07d}", "dump": dump, "shard": shard}
                index += 1
                _add_sample(tar, row)
                quality.add(row)
            table = pa.Table.from_pylist(rows, schema=schema)
            metadata.write_table(table)
    return index


def _add_sample(tar: tarfile.TarFile, row: dict[str, Any]) -> None:
    caption = row.get("caption") or row["text"]
    described = {name: value for name, value in row.items() if name not in _LEFT_OUT or name == "sample_id"}
    members = [
        ({"jpeg": "jpg"}.get(row["image_format"], row["image_format"]), row["image"]),
        ("txt", caption.encode()),
        ("json", json.dumps(described, ensure_ascii=False, sort_keys=True).encode()),
    ]
    for suffix, content in members:
        member = tarfile.TarInfo(f"{row['key']}.{suffix}")
        member.size = len(content)  # time, owner and mode stay at their defaults: the same samples, the same bytes
        tar.addfile(member, io.BytesIO(content))


def _file(key: str, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"key": key, "size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _part_key(recipe: Recipe, version: str, dump: str, shard: int) -> str:
    return f"datasets/{recipe.name}/{version}/parts/{dump}-{shard:05d}.json"

"""Publish of a million samples with made-up metadata, and the takedown of one URL among ten millions.

    python benchmarks/publish_scale.py publish /tmp/scale --shards 100 --rows 10000
    python benchmarks/publish_scale.py takedown /tmp/scale --copies 10

The tables that publish reads are written straight into the store, as the stages would leave them; pictures are a few
bytes each, for metadata is what is measured. For the takedown the published tables are copied under other names, and in
one of them a URL is changed to the one that is taken down: so it stands once among the ten millions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.publish.parts import File, Plan, manifest_key, part_key, read_part, write_plan
from curation.publish.verify import read_manifest
from curation.publish.version import export_shard, finish_release, plan_release
from curation.publish.writers import file_of
from curation.receipt import Receipt, table_key
from curation.recipe import Recipe, parse_recipe
from curation.runner import _plan, _table_schema
from curation.store import Store, TableWriter
from curation.takedown import take_down
from curation.tombstones import targets_of

DUMP = "made-up"


def recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "scale",
            "stages": {"extract": {"archive": "wat"}, "download": {}},
            "gates": {"too_small": {"column": "min_side", "at_least": 64}},
            "publish": {"webdataset": False, "pretrain": "jsonl"},
        }
    )


def made_up(schema: pa.Schema, shard: int, rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng(shard)
    ids = [f"{shard:08x}{n:08x}{x:016x}" for n, x in enumerate(rng.integers(0, 2**63, rows))]
    hosts = rng.zipf(1.3, rows) % 100_000
    columns: dict[str, object] = {
        "sample_id": ids,
        "url": [f"https://www.host{h}.example/pictures/{i}.jpg" for h, i in zip(hosts, ids, strict=True)],
        "page_url": [f"https://www.host{h}.example/page{n // 7}.html" for n, h in enumerate(hosts)],
        "text": [f"A photograph with the number {i} of a thing on a table" for i in ids],
        "alt": [f"A photograph with the number {i} of a thing on a table" for i in ids],
        "sha256": [i * 2 for i in ids],
        "phash": [i[16:] for i in ids],
        "image": [b"picture"] * rows,
        "image_format": ["jpeg"] * rows,
        "min_side": rng.integers(50, 2000, rows).astype(np.int32),
        "language": ["en"] * rows,
    }
    empty = {"verdict", "fault", "consent", "final_url", "exif", "conversation"}
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        elif field.name in empty or pa.types.is_nested(field.type):
            arrays.append(pa.nulls(rows, field.type))
        elif pa.types.is_string(field.type):
            arrays.append(pa.array(["ok"] * rows, field.type))
        elif pa.types.is_boolean(field.type):
            arrays.append(pa.array([False] * rows, field.type))
        else:
            arrays.append(pa.array(np.ones(rows), pa.float64()).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def build(store: Store, made: Recipe, shards: int, rows: int, stages: Sequence[str] = ()) -> None:
    names = [f"{number:05d}.wat.gz" for number in range(shards)]
    store.write_bytes(f"dumps/{DUMP}/wat.paths.json.gz", gzip.compress(json.dumps(names).encode(), mtime=0))
    for shard in range(shards):
        for stage in stages or made.stage_names:
            settings = made.stage(stage)
            assert settings is not None
            plan = _plan(store, made, DUMP, shard, stage)
            schema = _table_schema(settings)
            with store.write_table(table_key(DUMP, stage, plan.fingerprint, shard), schema) as writer:
                writer.write(made_up(schema, shard, rows))
                writer.set_receipt(
                    Receipt(
                        object_id=plan.object_id,
                        stage=stage,
                        stage_version=settings.version,
                        fingerprint=plan.fingerprint,
                        recipe=made.name,
                        dump=DUMP,
                        shard=shard,
                        inputs={name: receipt.object_id for name, receipt in plan.inputs.items()},
                        rows=rows,
                        measured=rows,
                    )
                )


def publish(root: Path, shards: int, rows: int) -> dict:
    store, made = Store(root), recipe()
    build(store, made, shards, rows)
    built_mib = peak_mib()
    started, cpu = time.perf_counter(), time.process_time()
    version = plan_release(store, made, {DUMP: range(shards)})
    for shard in range(shards):
        export_shard(store, made, version, DUMP, shard)
    exported = time.perf_counter()
    finish_release(store, made, version)
    manifest = read_manifest(store, made.name, version)
    return {
        "candidates": shards * rows,
        "samples": manifest["samples"],
        "written_mb": round(sum(file["size"] for file in manifest["files"]) / 1e6),
        "export_s": round(exported - started, 1),
        "finish_s": round(time.perf_counter() - exported, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mib_before": built_mib,
        "peak_mib": peak_mib(),
    }


def multiply(root: Path, copies: int) -> str:
    """A version of the published tables many times over, and one small shard with the URL that will be looked for."""
    store, made = Store(root), recipe()
    manifest = read_manifest(store, made.name, "latest")
    plan = write_plan(
        store, made.name, Plan(version="2026.01.01-00000000", sources={}, created_at="2026-01-01T00:00:00+00:00")
    )
    parts, files = [], []
    for copy in range(copies):
        for one in manifest["parts"]:
            part = read_part(store, made.name, manifest["version"], one["dump"], one["shard"])
            assert part is not None
            dump = f"{DUMP}-{copy}"
            moved = []
            for file in part.files:
                if "/metadata/" in file.key:
                    key = f"datasets/scale/{plan.version}/metadata/{dump}-{one['shard']:05d}.parquet"
                    target = root / key
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / file.key, target)
                    moved.append(file.model_copy(update={"key": key}))
            if copy == 0 and one["shard"] == 0:
                moved = [changed(store, moved[0].key)]
            part = part.model_copy(update={"files": moved})
            store.write_bytes(part_key(made.name, plan.version, dump, one["shard"]), part.model_dump_json().encode())
            parts.append(one | {"dump": dump, "files": [file.key for file in moved]})
            files += [file.model_dump() for file in moved]
    dumps = {f"{DUMP}-{copy}": manifest["dumps"][DUMP] for copy in range(copies)}
    counts = {reason: count * copies for reason, count in manifest["counts"].items()}
    again = {"version": plan.version, "parts": parts, "files": files, "dumps": dumps, "counts": counts, "sources": {}}
    store.write_bytes(manifest_key(made.name, plan.version), json.dumps(manifest | again).encode())
    store.delete(manifest_key(made.name, manifest["version"]))
    store.write_bytes("datasets/scale/latest.json", json.dumps({"version": plan.version}).encode())
    return "https://only.here.example/once.jpg"


def changed(store: Store, key: str) -> File:
    path = Path(store.root) / key
    receipt = store.read_receipt(key)
    table = pq.read_table(path)
    urls = ["https://only.here.example/once.jpg", *table["url"].to_pylist()[1:]]
    table = table.set_column(table.schema.get_field_index("url"), "url", pa.array(urls))
    writer = TableWriter(path, table.schema)
    for batch in table.to_batches():
        writer.write(batch)
    assert receipt is not None
    writer.set_receipt(receipt)
    writer.close()
    return file_of(key, path)


def takedown(root: Path, copies: int) -> dict:
    url = multiply(root, copies)
    store = Store(root)
    samples = sum(part["samples"] for part in read_manifest(store, "scale", "latest")["parts"])
    figures: dict[str, object] = {"samples": samples}
    for dry_run in (True, False):
        started, cpu = time.perf_counter(), time.process_time()
        receipt = take_down(store, targets_of([("url", url)]), dry_run=dry_run)
        assert receipt["n_samples"] == 1
        name = "dry_run" if dry_run else "takedown"
        figures |= {
            f"{name}_s": round(time.perf_counter() - started, 1),
            f"{name}_cpu_s": round(time.process_time() - cpu, 1),
        }
    return figures | {"peak_mib": peak_mib()}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["publish", "takedown"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=10)
    chosen = parser.parse_args()
    made = (
        publish(chosen.root, chosen.shards, chosen.rows)
        if chosen.what == "publish"
        else takedown(chosen.root, chosen.copies)
    )
    print(json.dumps(made))


if __name__ == "__main__":
    main()

"""Seconds that the curation pages take over a million made-up samples: first look, and looks after it.

    python benchmarks/ui.py build /tmp/ui-scale --shards 100 --rows 10000
    python benchmarks/ui.py measure /tmp/ui-scale

Tables of extract, download and score are written as the stages would leave them; matching, dedup, safety, leakage and
publish run for real. Pages are asked for through the app that Airflow mounts, its check of rights left out, in one
process that starts cold; a page that counts aside is asked for until it is complete.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.block import _note_key
from curation.generations import match_block
from curation.pipeline import save_recipe
from curation.publish.verify import read_manifest
from curation.publish.version import export_shard, finish_release, plan_release
from curation.recipe import Recipe, parse_recipe
from curation.runner import run_stage
from curation.store import Store

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plugins")]
import publish_scale  # noqa: E402
from publish_scale import DUMP, made_up  # noqa: E402

LOOKS = 5
LANGUAGES = ["en", "de", "fr", "ja", "zh", "ru", "es"]


def recipe() -> Recipe:
    stages = {"extract": {"archive": "wat"}, "download": {}, "score": {}, "dedup": {}, "safety": {}, "leakage": {}}
    gates = {
        "similarity_low": {"column": "similarity", "at_least": 0.2},
        "duplicate_sha256": {"column": "duplicate_kind", "none_of": ["sha256"]},
        "duplicate_phash": {"column": "duplicate_kind", "none_of": ["phash"]},
    }
    return parse_recipe({"name": "scale", "stages": stages, "gates": gates, "publish": {}})


def rows_of(schema: pa.Schema, shard: int, rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng([shard, 1])
    pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    batch = made_up(schema, shard, rows)
    copies = rng.random(rows) < 0.05  # of one of a few pictures
    shas = [f"{n % 1000:064x}" if copy else None for n, copy in zip(rng.integers(0, 9999, rows), copies, strict=True)]
    changed: dict[str, object] = {
        "image": [out.getvalue()] * rows,
        "phash_spread": np.full(rows, 40.0),
        "similarity": rng.normal(0.26, 0.06, rows).clip(-1, 1),
        "punsafe": rng.beta(1, 30, rows),
        "language": rng.choice(LANGUAGES, rows).tolist(),
        "partition": ["en"] * rows,
    }
    for name, values in changed.items():
        if name in schema.names:
            at = schema.get_field_index(name)
            batch = batch.set_column(at, schema.field(at), pa.array(values).cast(schema.field(at).type))
    if "sha256" in schema.names:
        own = batch["sha256"].to_pylist()
        column = pa.array([sha or one for sha, one in zip(shas, own, strict=True)])
        batch = batch.set_column(schema.get_field_index("sha256"), schema.field("sha256"), column)
    return batch


def build(root: Path, shards: int, rows: int) -> None:
    store, made = Store(root), recipe()
    publish_scale.made_up = rows_of
    publish_scale.build(store, made, shards, rows, made.stage_names[:3])
    store.write_bytes(_note_key(DUMP, made.name), json.dumps({"recipe": save_recipe(made, store)}).encode())
    match_block(store, made, DUMP, range(shards))
    for shard in range(shards):
        for stage in made.stage_names[3:]:
            run_stage(store, made, DUMP, shard, stage)
    version = plan_release(store, made, {DUMP: range(shards)})
    for shard in range(shards):
        export_shard(store, made, version, DUMP, shard)
    finish_release(store, made, version)
    print(json.dumps({"samples": read_manifest(store, made.name, version)["samples"]}))


def measure(root: Path) -> dict[str, object]:
    os.environ["CURATION_STORE"] = str(root)
    logging.disable(logging.INFO)
    from airflow.api_fastapi.core_api.security import get_user
    from curation_pages import app, warm_up
    from fastapi.testclient import TestClient

    for route in [*app.routes]:
        for one in getattr(getattr(route, "dependant", None), "dependencies", []):
            if one.call is not get_user and one.call.__qualname__.startswith("requires_"):
                app.dependency_overrides[one.call] = lambda: None
    started = time.perf_counter()
    warm_up()
    warm = round(1000 * (time.perf_counter() - started))
    client = TestClient(app, base_url="http://127.0.0.1")
    manifest = read_manifest(Store(root), "scale", "latest")
    dump, version = f"/dumps/{DUMP}/scale", f"/versions/scale/{manifest['version']}"
    pages = {
        "overview": "/",
        "funnel": dump,
        "samples of a dump": f"{dump}/samples",
        "samples dropped for a reason": f"{dump}/samples?reason=similarity_low&start=50-0",
        "samples by similarity": f"{dump}/samples?sort=-similarity",
        "a filter that nothing meets": f"{dump}/samples?text=zzzzzz",
        "threshold": f"{dump}/threshold?line=0.25",
        "threshold, line moved": f"{dump}/threshold?line=0.28",
        "duplicates": f"{dump}/duplicates",
        "bias audit": f"{dump}/audit",
        "picture of a dump": f"{dump}/pictures/40/9000",
        "another picture beside it": f"{dump}/pictures/40/9001",
        "version": version,
        "samples of a version": f"{version}/samples?start=50-0",
        "samples of a version by similarity": f"{version}/samples?sort=similarity",
        "picture of a version": f"{version}/pictures/50/{50:05d}{5000:07d}",
        "takedown": "/takedown",
    }
    found: dict[str, object] = {}
    for name, place in pages.items():
        first, text = timed(client, place)
        looks, until = [], time.monotonic() + 60
        while ("look again" in text or len(looks) < LOOKS) and time.monotonic() < until:
            second, text = timed(client, place)
            looks.append(second)
            if "look again" in text:
                time.sleep(0.5)
        again = looks[-LOOKS:]
        found[name] = {"first_ms": first, "again_ms": round(statistics.median(again)), "worst_ms": max(first, *looks),
                       "complete": "look again" not in text}  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"samples": manifest["samples"], "warm_up_ms": warm, "pages": found, "peak_mib": peak}


def timed(client: object, place: str) -> tuple[int, str]:
    started = time.perf_counter()
    answer = client.get(place)  # type: ignore[attr-defined]
    took = round(1000 * (time.perf_counter() - started))
    assert answer.status_code == 200, (place, answer.text[:500])
    return took, "" if answer.headers["content-type"].startswith("image") else answer.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "measure"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    chosen = parser.parse_args()
    if chosen.what == "build":
        build(chosen.root, chosen.shards, chosen.rows)
    else:
        print(json.dumps(measure(chosen.root), indent=1))


if __name__ == "__main__":
    main()

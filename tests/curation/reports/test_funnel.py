import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from curation.pipeline import fingerprint
from curation.receipt import RECEIPT_KEY, table_key
from curation.reports.funnel import funnel, receipts_by_shard, render
from curation.runner import run_stage
from tests.curation.conftest import World


def test_counts_of_each_stage_add_up(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    found = funnel(world.store, recipe, "crawl", shards)
    assert [(c.stage, c.rows_in, c.kept, dict(c.reasons)) for c in found.stages] == [
        ("extract", 10, 8, {"text_too_short": 2}),
        ("download", 8, 4, {"http_404": 2, "too_small": 2}),
        ("safety", 4, 4, {}),
        ("leakage", 4, 4, {}),
    ]
    assert found.to_json()["kept"] == 4
    out = io.StringIO()
    Console(file=out, width=80).print(render(found))
    assert "4 of 10 samples kept" in out.getvalue()
    assert "http_404:2" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_a_block_half_done(world: World) -> None:
    recipe, shards = world.recipe()
    run_stage(world.store, recipe, "crawl", 0, "extract")
    found = funnel(world.store, recipe, "crawl", shards)
    assert found.shards == {0: "extract", 1: ""}
    assert [c.shards_done for c in found.stages] == [1, 0, 0, 0]
    out = io.StringIO()
    Console(file=out, width=200).print(render(found))
    told = " ".join(out.getvalue().split())
    assert "0 of 5 samples kept so far; 0 of 2 shards are through" in told
    assert "damage" not in told


def test_damage_in_archives_is_told(world: World) -> None:
    archive = world.crawl / "00000.warc.gz"
    archive.write_bytes(archive.read_bytes() + archive.read_bytes()[:-20])
    recipe, shards = world.recipe()
    for shard in shards:
        run_stage(world.store, recipe, "crawl", shard, "extract")
    out = io.StringIO()
    Console(file=out, width=200).print(render(funnel(world.store, recipe, "crawl", shards)))
    assert "damage in the archives: archive_truncated:1" in out.getvalue()


def test_faults_bytes_and_rates_come_from_the_tables(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    found = funnel(world.store, recipe, "crawl", shards).to_json()
    download = found["stages"][1]
    assert (download["faults"], download["kept"], download["shards_done"], download["shards"]) == (2, 4, 2, 2)
    assert download["bytes"] == sum(entry.size for entry in world.store.entries("dumps/crawl/download-"))
    assert json.loads(json.dumps(found))["stages"][1]["reasons"] == {"http_404": 2, "too_small": 2}


def test_a_damaged_or_outdated_table_is_not_done(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    key = table_key("crawl", "download", fingerprint(recipe, "download"), 0)
    world.store.write_bytes(key, b"not a table")
    assert funnel(world.store, recipe, "crawl", shards).shards == {0: "extract", 1: "leakage"}
    receipts = receipts_by_shard(world.store, recipe, "crawl", [1])[1]
    stale = receipts[0].model_copy(update={"object_id": "of another archive"})
    path = Path(world.store.root) / receipts[0].key
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({RECEIPT_KEY: stale.model_dump_json()}), path)
    assert funnel(world.store, recipe, "crawl", shards).shards == {0: "extract", 1: "extract"}

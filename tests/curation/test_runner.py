"""The stage loop on a real archive and a real loopback web: extract, download, safety, leakage."""

import hashlib
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.block import plan
from curation.errors import BadShardError, ConfigError
from curation.pipeline import fingerprint
from curation.receipt import table_key
from curation.recipe import Recipe, load_recipe
from curation.runner import read_kept, read_outcomes, receipt_of, run_stage
from tests.curation.conftest import PICTURES, World


def outcomes(world: World, recipe: Recipe, shard: int = 0) -> dict[tuple[str, str], str | None]:
    batches = read_outcomes(world.store, recipe, "crawl", shard, ["url", "text"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {(row["url"].rpartition("/")[2], row["text"]): row["reason"] for row in rows}


def test_every_sample_has_its_outcome_and_counts_add_up(world: World) -> None:
    recipe, shards = world.recipe()
    assert shards == [0, 1]
    receipts = world.run(recipe)
    assert outcomes(world, recipe) == {
        ("cat.jpg", "A tabby cat looks at the camera"): None,
        ("coffee.jpg", "A cup of coffee on a wooden table"): None,
        ("tiny.jpg", "A tiny piece of a cat"): "too_small",
        ("absent.jpg", "A picture that is no longer there"): "http_404",
        ("cat.jpg", "cat"): "text_too_short",
    }
    for receipt in receipts.values():
        assert receipt.rows == 5 == receipt.measured + sum(receipt.dropped.values()) + sum(receipt.faults.values())
    assert receipts["download"].faults == {"http_404": 1}
    assert receipts["leakage"].dropped == {"text_too_short": 1, "http_404": 1, "too_small": 1}
    kept = pa.Table.from_batches(list(read_kept(world.store, recipe, "crawl", 0, ["sha256"])))
    assert kept["sha256"].to_pylist() == [hashlib.sha256(PICTURES[p]).hexdigest() for p in ("/cat.jpg", "/coffee.jpg")]


def test_a_rerun_writes_nothing_and_fetches_nothing(world: World) -> None:
    recipe, _ = world.recipe()
    first = world.run(recipe)
    fetched, before = len(world.requests), {e.key: e.size for e in world.store.entries("dumps/")}
    assert world.run(recipe) == first
    assert len(world.requests) == fetched
    assert {e.key: e.size for e in world.store.entries("dumps/")} == before


def test_a_gate_changes_without_downloading_again(world: World) -> None:
    recipe, _ = world.recipe()
    world.run(recipe)
    fetched = len(world.requests)
    looser, _ = world.recipe({"gates.too_small.at_least": 10})
    receipts = world.run(looser)
    assert len(world.requests) == fetched
    assert outcomes(world, looser)[("tiny.jpg", "A tiny piece of a cat")] is None
    assert receipts["leakage"].dropped == {"text_too_short": 1, "http_404": 1}
    assert outcomes(world, recipe)[("tiny.jpg", "A tiny piece of a cat")] == "too_small"


def test_known_hash_list_renews_safety_and_what_follows(world: World, tmp_path: Path) -> None:
    recipe, _ = world.recipe()
    world.run(recipe)
    listed = tmp_path / "known.txt"
    listed.write_text(hashlib.sha256(PICTURES["/cat.jpg"]).hexdigest())
    stricter, _ = world.recipe({"stages.safety.known_hashes": str(listed)})
    assert receipt_of(world.store, stricter, "crawl", 0, "download") is not None
    assert receipt_of(world.store, stricter, "crawl", 0, "safety") is None
    world.run(stricter)
    assert outcomes(world, stricter)[("cat.jpg", "A tabby cat looks at the camera")] == "known_hash"


def test_a_stage_without_its_input_says_what_to_run(world: World) -> None:
    recipe, _ = world.recipe()
    with pytest.raises(BadShardError, match=r"crawl shard 00001, safety: .*run extract first"):
        run_stage(world.store, recipe, "crawl", 1, "safety")


def test_a_damaged_archive_leaves_no_table_and_other_shards_unharmed(world: World) -> None:
    (world.crawl / "00000.warc.gz").write_bytes(b"this is no archive")
    recipe, _ = world.recipe()
    with pytest.raises(BadShardError, match="crawl shard 00000, extract"):
        world.run(recipe, 0)
    assert [e.key for e in world.store.entries("dumps/crawl/extract")] == []
    assert world.run(recipe, 1)["leakage"].rows == 5


def test_tables_out_of_step_are_refused(world: World) -> None:
    recipe, _ = world.recipe()
    world.run(recipe)
    key = table_key("crawl", "download", fingerprint(recipe, "download"), 0)
    path = Path(world.store.root) / key
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)
    with pytest.raises(BadShardError, match="out of step"):
        list(read_outcomes(world.store, recipe, "crawl", 0, ["url", "sha256"]))
    pq.write_table(table.slice(1), path)
    with pytest.raises(BadShardError, match=r"out of step|differ in length"):
        list(read_outcomes(world.store, recipe, "crawl", 0, ["url", "sha256"]))


def test_a_dump_keeps_its_list_of_archives(world: World) -> None:
    world.recipe()
    (world.crawl / "00000.warc.gz").rename(world.crawl / "99999.warc.gz")
    recipe, shards = world.recipe()
    assert shards == [0, 1]
    assert world.run(recipe, 1)["extract"].rows == 5


def test_another_source_under_the_name_of_a_dump_is_refused(world: World, tmp_path: Path) -> None:
    world.recipe()
    recipe = load_recipe(str(world.recipe_file))
    for same in ("", f"{world.crawl}/", f"{world.crawl}/*.warc.gz", os.path.relpath(world.crawl)):
        assert plan(world.store, recipe, "crawl", same).shards == [0, 1]
    shutil.copytree(world.crawl, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"none is in .*other: give these a dump of their own"):
        plan(world.store, recipe, "crawl", str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dump": "a/b"}, "without slashes"),
        ({"shards": [2]}, "crawl has 2 shards, 0 to 1"),
        ({"block": 1}, "blocks 0 to 0"),
        ({"block": -1}, "numbered from 0"),
    ],
)
def test_plan_refuses_what_can_not_run(world: World, arguments: dict, message: str) -> None:
    arguments = {"dump": "crawl", "source": str(world.crawl)} | arguments
    with pytest.raises(ConfigError, match=message):
        plan(world.store, load_recipe(str(world.recipe_file)), **arguments)

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.errors import BadShardError
from curation.publish.version import export_shard, finish_version, plan_version, verify
from curation.recipe import Recipe
from tests.curation.conftest import World


def publish(world: World, recipe: Recipe, shards: list[int]) -> str:
    for shard in shards:
        world.run(recipe, shard)
    version = plan_version(world.store, recipe, "crawl", shards)
    for shard in shards:
        export_shard(world.store, recipe, version, "crawl", shard)
    finish_version(world.store, recipe, version, "crawl", shards)
    return version


def test_a_version_holds_the_kept_samples_and_verifies(world: World) -> None:
    recipe, shards = world.recipe()
    version = publish(world, recipe, shards)
    folder = Path(world.store.root) / "datasets" / "small" / version
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["samples"] == 4
    assert manifest["counts"] == {"kept": 4, "too_small": 2, "http_404": 2, "text_too_short": 2}
    assert verify(world.store, "small", version) == []
    table = pq.read_table(folder / "metadata" / "crawl-00000.parquet")
    assert table["text"].to_pylist() == ["A tabby cat looks at the camera", "A cup of coffee on a wooden table"]
    with tarfile.open(folder / "webdataset" / "crawl-00000.tar") as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}
    assert [name.partition(".")[2] for name in contents] == ["jpg", "txt", "json"] * 2
    first = table["key"][0].as_py()
    assert contents[f"{first}.txt"].decode() == "A tabby cat looks at the camera"
    assert min(Image.open(io.BytesIO(contents[f"{first}.jpg"])).size) == 256
    assert json.loads(contents[f"{first}.json"])["sha256"] == table["sha256"][0].as_py()
    assert json.loads((folder.parent / "latest.json").read_bytes()) == {"version": version}
    assert "4 samples from 10 candidates of crawl" in (folder / "card.html").read_text()


def test_publishing_again_gives_the_same_version_and_the_same_bytes(world: World) -> None:
    recipe, shards = world.recipe()
    version = publish(world, recipe, shards)
    files = {entry.key: world.store.read_bytes(entry.key) for entry in world.store.entries("datasets/")}
    assert publish(world, recipe, shards) == version
    assert {entry.key: world.store.read_bytes(entry.key) for entry in world.store.entries("datasets/")} == files


def test_an_export_made_anew_has_the_same_bytes(world: World) -> None:
    recipe, shards = world.recipe()
    version = publish(world, recipe, shards)
    prefix = f"datasets/small/{version}/"
    kinds = ("webdataset/", "metadata/")
    before = {e.key: world.store.read_bytes(e.key) for k in kinds for e in world.store.entries(prefix + k)}
    for entry in list(world.store.entries(prefix + "parts/")):
        world.store.delete(entry.key)
    for shard in shards:
        export_shard(world.store, recipe, version, "crawl", shard)
    assert {e.key: world.store.read_bytes(e.key) for k in kinds for e in world.store.entries(prefix + k)} == before


def test_another_gate_is_another_version_and_latest_moves(world: World) -> None:
    recipe, shards = world.recipe()
    first = publish(world, recipe, shards)
    looser, _ = world.recipe({"gates.too_small.at_least": 10})
    second = publish(world, looser, shards)
    assert first != second
    assert json.loads(world.store.read_bytes("datasets/small/latest.json")) == {"version": second}
    assert verify(world.store, "small", first) == []


def test_a_version_is_not_planned_or_finished_before_its_shards(world: World) -> None:
    recipe, shards = world.recipe()
    world.run(recipe, 0)
    with pytest.raises(BadShardError, match="00001"):
        plan_version(world.store, recipe, "crawl", shards)
    world.run(recipe, 1)
    version = plan_version(world.store, recipe, "crawl", shards)
    export_shard(world.store, recipe, version, "crawl", 0)
    with pytest.raises(BadShardError, match="shard 00001: not exported"):
        finish_version(world.store, recipe, version, "crawl", shards)
    assert not world.store.exists("datasets/small/latest.json")


def test_verify_names_what_is_damaged_or_missing(world: World) -> None:
    recipe, shards = world.recipe()
    version = publish(world, recipe, shards)
    prefix = f"datasets/small/{version}"
    world.store.write_bytes(f"{prefix}/webdataset/crawl-00000.tar", b"x")
    world.store.delete(f"{prefix}/metadata/crawl-00001.parquet")
    assert verify(world.store, "small", version) == [
        f"{prefix}/webdataset/crawl-00000.tar: differs from the manifest",
        f"{prefix}/metadata/crawl-00001.parquet: missing",
    ]

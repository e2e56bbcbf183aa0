import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import curation.publish.version as version_module
from curation.errors import BadShardError, ConfigError
from curation.objects.folder import Folder
from curation.pipeline import fingerprint
from curation.publish.verify import verify
from curation.publish.version import export_shard, finish_version, plan_version
from curation.receipt import table_key
from curation.recipe import Recipe
from tests.curation.conftest import World


def publish(world: World, recipe: Recipe, shards: list[int]) -> str:
    for shard in shards:
        world.run(recipe, shard)
    return export_and_finish(world, recipe, shards)


def export_and_finish(world: World, recipe: Recipe, shards: list[int]) -> str:
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
    assert "<strong>4</strong> samples from 10 candidates of crawl" in (folder / "card.html").read_text()
    assert [file["key"].rpartition("/")[2] for file in manifest["files"]] == [
        "crawl-00000.parquet", "crawl-00000.tar", "crawl-00001.parquet", "crawl-00001.tar", "quality.json", "card.html",
        "croissant.json",
    ]  # fmt: skip
    assert manifest["sources"]["crawl"]["00001"].endswith("00001.warc.gz")


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
    for entry in [*world.store.entries(prefix + "parts/"), *world.store.entries(prefix + "manifest.json")]:
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


def test_a_rerun_of_an_older_version_does_not_move_latest_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe()
    first = publish(world, recipe, shards)
    key = f"datasets/small/{first}/manifest.json"
    earlier = json.loads(world.store.read_bytes(key)) | {"created_at": "2026-01-01T00:00:00+00:00"}
    world.store.write_bytes(key, json.dumps(earlier).encode())
    second = publish(world, world.recipe({"gates.too_small.at_least": 10})[0], shards)
    publish(world, recipe, shards)
    assert json.loads(world.store.read_bytes("datasets/small/latest.json")) == {"version": second}


def test_outputs_that_are_off_are_not_written(world: World) -> None:
    recipe, shards = world.recipe({"publish.webdataset": False})
    version = publish(world, recipe, shards)
    assert not list(world.store.entries(f"datasets/small/{version}/webdataset/"))
    only_tar, _ = world.recipe({"publish.parquet": False})
    version = publish(world, only_tar, shards)
    assert not list(world.store.entries(f"datasets/small/{version}/metadata/"))
    assert verify(world.store, "small", version) == []
    with pytest.raises(ConfigError, match="nothing would be published"):
        world.recipe({"publish": {"parquet": False, "webdataset": False}})


WRITES = 1 + 2 * 3 + 3 + 1 + 2  # the plan; tar, table and note of two shards; reports; manifest; release and latest


class Killed(BaseException):
    """What kill -9 is to everything that comes after."""


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
def test_a_publish_killed_at_any_write_leaves_the_old_version_whole(
    world: World, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    old_recipe, shards = world.recipe()
    old = publish(world, old_recipe, shards)
    recipe, _ = world.recipe({"gates.too_small.at_least": 10})
    for shard in shards:
        world.run(recipe, shard)
    before = {entry.key for entry in world.store.entries("datasets/")}
    latest = world.store.read_bytes("datasets/small/latest.json")
    commit, left = Folder.commit, 0

    def killed_commit(self: Folder, path: Path, key: str, if_absent: bool) -> bool:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            raise Killed
        done = commit(self, path, key, if_absent)
        if left == 0:
            raise Killed
        return done

    monkeypatch.setattr(Folder, "commit", killed_commit)
    killed = 0
    for writes in range(1, 100):
        left = writes
        try:
            export_and_finish(world, recipe, shards)
            break
        except Killed:
            killed += 1
        seen = json.loads(world.store.read_bytes("datasets/small/latest.json"))["version"]
        assert seen == old or (after and writes == WRITES)
        assert verify(world.store, "small", seen) == []
        new = export_and_finish(world, recipe, shards)
        assert json.loads(world.store.read_bytes("datasets/small/latest.json")) == {"version": new}
        assert verify(world.store, "small", new) == []
        for entry in list(world.store.entries("datasets/")):
            if entry.key not in before:
                world.store.delete(entry.key)
        world.store.write_bytes("datasets/small/latest.json", latest)
    assert killed == WRITES


def test_two_publishes_at_once_agree(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    version = plan_version(world.store, recipe, "crawl", shards)
    for shard in shards:
        export_shard(world.store, recipe, version, "crawl", shard)
    render, second = version_module.render_card, iter([True])

    def slow(*arguments: object) -> str:
        if next(second, False):  # while the first publish is at its card, the second goes all the way
            finish_version(world.store, recipe, version, "crawl", shards)
        return render(*arguments).replace("Made", "Made later,")

    monkeypatch.setattr(version_module, "render_card", slow)
    finish_version(world.store, recipe, version, "crawl", shards)
    assert verify(world.store, "small", version) == []


def test_tables_that_changed_since_are_not_published_under_the_same_name(world: World) -> None:
    recipe, shards = world.recipe()
    version = publish(world, recipe, shards)
    key = table_key("crawl", "leakage", fingerprint(recipe, "leakage"), 0)
    note = f"datasets/small/{version}/parts/crawl-00000.json"
    part = json.loads(world.store.read_bytes(note))
    world.store.write_bytes(note, json.dumps(part | {"input": "of another time"}).encode())
    with pytest.raises(BadShardError, match="a published version never changes"):
        export_shard(world.store, recipe, version, "crawl", 0)
    world.store.delete(f"datasets/small/{version}/manifest.json")
    with pytest.raises(BadShardError, match="shard 00000: not exported"):
        finish_version(world.store, recipe, version, "crawl", shards)
    world.store.delete(key)
    with pytest.raises(BadShardError, match="expected the table of leakage"):
        export_shard(world.store, recipe, version, "crawl", 0)


def test_lost_samples_stop_the_publish(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    version = plan_version(world.store, recipe, "crawl", shards)
    for shard in shards:
        export_shard(world.store, recipe, version, "crawl", shard)
    note = f"datasets/small/{version}/parts/crawl-00001.json"
    part = json.loads(world.store.read_bytes(note))
    part["counts"]["http_404"] -= 1
    world.store.write_bytes(note, json.dumps(part).encode())
    with pytest.raises(BadShardError, match="shard 00001: samples are not conserved: 5 extracted, 4 judged"):
        finish_version(world.store, recipe, version, "crawl", shards)
    assert not world.store.exists(f"datasets/small/{version}/manifest.json")


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
    size = len(world.store.read_bytes(f"{prefix}/webdataset/crawl-00000.tar"))
    world.store.write_bytes(f"{prefix}/webdataset/crawl-00000.tar", b"x")
    damaged = bytearray(world.store.read_bytes(f"{prefix}/webdataset/crawl-00001.tar"))
    damaged[1000] ^= 1
    world.store.write_bytes(f"{prefix}/webdataset/crawl-00001.tar", bytes(damaged))
    world.store.delete(f"{prefix}/metadata/crawl-00001.parquet")
    assert verify(world.store, "small", version) == [
        f"{prefix}/webdataset/crawl-00000.tar: expected {size} bytes, found 1",
        f"{prefix}/metadata/crawl-00001.parquet: missing",
        f"{prefix}/webdataset/crawl-00001.tar: the sha256 differs from the manifest's",
    ]
    with pytest.raises(ConfigError, match=f"version 'nope' of small .* there are {version}"):
        verify(world.store, "small", "nope")

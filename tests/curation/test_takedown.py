import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import audit, takedown, tombstones
from curation.errors import BadShardError, ConfigError
from curation.objects.folder import Folder
from curation.publish.collect import collect
from curation.publish.verify import manifest_keys, read_manifest, verify
from curation.publish.version import export_shard, finish_release, latest, plan_release
from curation.takedown import take_down
from curation.tombstones import Matcher, targets_of
from tests.curation.conftest import World
from tests.curation.publish.test_releases import publish, run

CAT = "http://host0.test/cat.jpg"
FORMS = {"publish.pretrain": "jsonl.gz", "publish.instruct": "json", "publish.multi_image": "jsonl"}


def rows(world: World, version: str) -> list[dict]:
    tables = [
        file["key"] for file in read_manifest(world.store, "small", version)["files"] if "/metadata/" in file["key"]
    ]
    return [row for key in tables for row in pq.read_table(Path(world.store.root) / key).to_pylist()]


@pytest.mark.parametrize("kind", ["url", "domain", "sample_id", "sha256", "phash"])
def test_each_kind_of_target_is_taken_out_of_every_version(world: World, kind: str) -> None:
    recipe, _ = world.recipe(FORMS)
    first = publish(world, recipe, {"crawl": [0, 1]})
    second = publish(world, recipe, {"crawl": [0, 1], "later": [0]})
    cat = next(row for row in rows(world, first) if row["url"] == CAT)
    near = f"{int(cat['phash'], 16) ^ 0b101:016x}"
    value = {"domain": "host0.test", "phash": near, "url": CAT.upper().replace("CAT.JPG", "cat.jpg")}.get(kind) or cat[
        kind
    ]
    meant = {
        "domain": lambda row: "host0.test" in row["url"],
        "phash": lambda row: row["phash"] == cat["phash"],
        "sha256": lambda row: row["sha256"] == cat["sha256"],
    }.get(kind, lambda row: row["url"] == CAT)
    expected = [
        {row["key"] + row["dump"] for row in rows(world, version) if not meant(row)} for version in (first, second)
    ]
    targets = targets_of([(kind, value)], radius=2)

    dry = take_down(world.store, targets, dry_run=True)
    assert dry["dry_run"]
    assert list(dry["versions"]) == sorted([f"small/{first}", f"small/{second}"])
    assert tombstones.keys(world.store) == []
    assert latest(world.store, "small") == second

    receipt = take_down(world.store, targets, reason="asked for", requester="a@b.test")
    assert receipt["n_samples"] == dry["n_samples"] == len(receipt["samples"])
    assert len(manifest_keys(world.store, "small")) == 2
    for old, left in zip((first, second), expected, strict=True):
        new = receipt["versions"][f"small/{old}"].partition("/")[2]
        manifest = read_manifest(world.store, "small", new)
        assert {row["key"] + row["dump"] for row in rows(world, new)} == left
        assert manifest["samples"] == len(left)
        assert sum(manifest["counts"].values()) == 5 * len(manifest["parts"])
        assert verify(world.store, "small", new) == []
    assert latest(world.store, "small") == new
    assert all(not world.store.exists(key) for key in receipt["removed"])
    assert audit.verify(world.store, receipt["audit"]) == []
    assert not world.store.exists(f"datasets/small/{first}/manifest.json")
    with pytest.raises(ConfigError, match="there are"):
        read_manifest(world.store, "small", first)


def test_no_form_and_no_later_publish_holds_it_again(world: World) -> None:
    recipe, _ = world.recipe(FORMS)
    first = publish(world, recipe, {"crawl": [0, 1]})
    cat = next(row for row in rows(world, first) if row["url"] == CAT)
    take_down(world.store, targets_of([("url", CAT)]))
    collect(world.store)
    for entry in world.store.entries("datasets/"):
        if entry.key.endswith(".tar"):
            with tarfile.open(Path(world.store.root) / entry.key) as tar:
                members = {name.partition(".")[0] for name in tar.getnames()}
            assert (cat["key"] in members) is False
        if entry.key.endswith((".json", ".jsonl")) and "/parts/" not in entry.key:
            assert cat["sample_id"].encode() not in world.store.read_bytes(entry.key)
    again = publish(world, recipe, {"crawl": [0, 1], "later": [0]})
    assert again != first
    assert CAT not in {row["url"] for row in rows(world, again)}
    manifest = read_manifest(world.store, "small", again)
    assert manifest["counts"]["tombstone"] == 2
    assert manifest["samples"] == 4
    assert latest(world.store, "small") == again


def test_a_version_in_the_making_when_the_request_comes(world: World) -> None:
    recipe, _ = world.recipe()
    run(world, recipe, {"crawl": [0, 1]})
    version = plan_release(world.store, recipe, {"crawl": [0, 1]})
    export_shard(world.store, recipe, version, "crawl", 0)
    take_down(world.store, targets_of([("domain", "host0.test")]))
    export_shard(world.store, recipe, version, "crawl", 1)
    with pytest.raises(BadShardError, match="taken down since it was planned"):
        finish_release(world.store, recipe, version)
    assert not manifest_keys(world.store)
    assert publish(world, recipe, {"crawl": [0, 1]}) != version


def test_shards_without_a_hit_are_shared_and_the_rest_is_removed(world: World) -> None:
    recipe, _ = world.recipe()
    first = publish(world, recipe, {"crawl": [0, 1]})
    before = read_manifest(world.store, "small", first)
    receipt = take_down(world.store, targets_of([("url", CAT)]))
    after = read_manifest(world.store, "small", "latest")
    assert after["parts"][1]["files"] == before["parts"][1]["files"]
    assert sorted(receipt["removed"]) == sorted(before["parts"][0]["files"])
    assert world.store.read_receipt(after["parts"][0]["files"][0]).dropped["tombstone"] == 1
    assert before["domains"]["host0.test"][1] - after["domains"]["host0.test"][1] == 1
    assert json.loads(world.store.read_bytes("datasets/small/latest.json"))["version"] == after["version"]
    now = time.time()
    collect(world.store, now=now)
    assert collect(world.store, now=now + 90_000).removed  # what is left of the withdrawn version
    left = {entry.key for entry in world.store.entries(f"datasets/small/{first}/")}
    assert left == {f"datasets/small/{first}/withdrawn.json", *before["parts"][1]["files"]}
    assert verify(world.store, "small", "latest") == []
    again = take_down(world.store, targets_of([("url", CAT)]))
    assert again["n_samples"] == 0
    assert again["versions"] == {}


def test_of_two_requests_at_once_neither_publishes_what_the_other_took(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = world.recipe()
    first = publish(world, recipe, {"crawl": [0, 1]})
    other = next(row["url"] for row in rows(world, first) if row["url"] != CAT)
    write, again = takedown.write_version, iter([True])

    def slow(*arguments: object) -> None:
        if next(again, False):  # the other request searches now: the cleaned version is not there yet
            tombstones.write(world.store, targets_of([("url", other)]), "", "")
        write(*arguments)

    monkeypatch.setattr(takedown, "write_version", slow)
    receipt = take_down(world.store, targets_of([("url", CAT)]))
    assert receipt["n_samples"] == 1
    left = [key.split("/")[2] for key in manifest_keys(world.store)]
    assert [f"small/{version}" for version in left] == list(receipt["versions"].values())
    assert not {CAT, other} & {row["url"] for version in left for row in rows(world, version)}
    assert verify(world.store, "small", left[0]) == []
    tables = [entry.key for entry in world.store.entries("datasets/") if "/metadata/" in entry.key]
    assert not {CAT, other} & {
        url for key in tables for url in pq.read_table(Path(world.store.root) / key)["url"].to_pylist()
    }


class Killed(BaseException):
    """What kill -9 is to everything that comes after."""


def test_a_takedown_killed_at_any_write_is_finished_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = world.recipe()
    publish(world, recipe, {"crawl": [0, 1]})
    publish(world, recipe, {"crawl": [0, 1], "later": [0]})
    before = {entry.key: world.store.read_bytes(entry.key) for entry in world.store.entries("")}
    commit, delete, left = Folder.commit, Folder.delete, 0

    def counted(change: object, *arguments: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return change(*arguments)  # type: ignore[operator]

    monkeypatch.setattr(Folder, "commit", lambda *arguments: counted(commit, *arguments))
    monkeypatch.setattr(Folder, "delete", lambda *arguments: counted(delete, *arguments))
    killed = 0
    for changes in range(1, 100):
        left = changes
        try:
            take_down(world.store, targets_of([("url", CAT)]))
            break
        except Killed:
            killed += 1
        left = -1
        receipt = take_down(world.store, targets_of([("url", CAT)]))
        assert (receipt["n_samples"], len(receipt["versions"])) == (1, 2)
        assert len(receipt["samples"]) == 1
        assert {version for sample in receipt["samples"] for version in sample["versions"]} == set(receipt["versions"])
        assert len(manifest_keys(world.store)) == 2
        for key in manifest_keys(world.store):
            version = key.split("/")[2]
            assert verify(world.store, "small", version) == []
            assert CAT not in {row["url"] for row in rows(world, version)}
        assert latest(world.store, "small") in {key.split("/")[2] for key in manifest_keys(world.store)}
        assert audit.verify(world.store) == []
        tables = [entry.key for entry in world.store.entries("datasets/") if entry.key.endswith(".parquet")]
        named = {
            file["key"]
            for key in manifest_keys(world.store)
            for file in json.loads(world.store.read_bytes(key))["files"]
        }
        held = [key for key in tables if CAT in pq.read_table(Path(world.store.root) / key)["url"].to_pylist()]
        assert not set(held) & named
        for entry in list(world.store.entries("")):
            if entry.key not in before:
                world.store.delete(entry.key)
        for key, content in before.items():
            if not world.store.exists(key) or world.store.read_bytes(key) != content:
                world.store.write_bytes(key, content)
    assert killed > 10


def test_a_version_without_tables_is_refused(world: World) -> None:
    recipe, _ = world.recipe({"publish.parquet": False})
    publish(world, recipe, {"crawl": [0]})
    with pytest.raises(BadShardError, match="no metadata table to search"):
        take_down(world.store, targets_of([("url", CAT)]), dry_run=True)


@pytest.mark.parametrize(
    ("kind", "value"), [("sha256", "xyz"), ("phash", "123"), ("sample_id", ""), ("domain", "a b"), ("colour", "red")]
)
def test_what_is_no_target_is_refused(kind: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--{kind}"):
        targets_of([(kind, value)])


def test_domains_by_hand() -> None:
    table = pa.table(
        {
            "url": [
                "https://a.test/x",
                "https://www.a.test:8080/",
                "https://nota.test/",
                "https://b.test/?a.test",
                None,
            ],
            "final_url": [None, None, None, None, "https://cdn.A.test/x"],
            "page_url": ["https://c.test/", None, None, None, None],
        }
    )
    assert Matcher(targets_of([("domain", "*.A.test.")])).matches(table).tolist() == [True, True, False, False, True]
    assert Matcher(targets_of([("domain", "c.test")])).matches(table).tolist() == [True, False, False, False, False]
    many = [("domain", f"d{number}.test") for number in range(30)]
    assert Matcher(targets_of([*many, ("domain", "a.test")])).matches(table).tolist() == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert not Matcher([])


def test_looks_by_hand() -> None:
    table = pa.table({"phash": ["0f0f0f0f0f0f0fff", "0f0f0f0f0f0f0ffe", "ffffffffffffffff", None]})
    found = [Matcher(targets_of([("phash", "0f0f0f0f0f0f0fff")], radius)).matches(table) for radius in (0, 1)]
    assert np.array(found).tolist() == [[True, False, False, False], [True, True, False, False]]


def test_a_look_that_unlike_pictures_share_is_taken_down_by_its_own_bits_only() -> None:
    flag = ("phash", "8080000080000080")
    assert targets_of([flag])[0].radius == 0
    with pytest.raises(ConfigError, match="share this look with unlike ones within 4 bits"):
        targets_of([flag], radius=4)


def test_the_log_tells_every_change(world: World) -> None:
    store = world.store
    hashes = [audit.append(store, "takedown", {"n": number}).hash for number in range(3)]
    assert audit.verify(store, hashes[-1]) == []
    middle = store.read_bytes("audit/00000001.json")
    store.write_bytes("audit/00000001.json", middle.replace(b'"n":1', b'"n":7'))
    assert audit.verify(store) == ["audit/00000001.json: its content was changed"]
    forged = audit.Entry.model_validate_json(store.read_bytes("audit/00000001.json"))
    forged = forged.model_copy(update={"hash": forged.computed()})
    store.write_bytes("audit/00000001.json", forged.model_dump_json().encode())
    assert audit.verify(store) == ["audit/00000002.json: does not follow the entry before it"]
    store.delete("audit/00000001.json")
    assert audit.verify(store) == ["audit/00000001.json: missing"]
    store.write_bytes("audit/00000001.json", middle)
    store.delete("audit/00000002.json")
    assert audit.verify(store) == []
    store.write_bytes("takedowns/a-00000002.json", json.dumps({"audit": hashes[2]}).encode())
    assert audit.verify(store) == [
        "takedowns/a-00000002.json: its entry is not in the log: it was cut off or written anew"
    ]
    assert "cut off" in audit.verify(store, hashes[-1])[0]


def test_two_requests_at_once_are_both_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = world.store, audit._read
    audit.append(store, "takedown", {"n": 0})

    def slow(of: object, number: int) -> audit.Entry:
        monkeypatch.setattr(audit, "_read", read)
        audit.append(store, "takedown", {"n": "the other"})
        return read(store, number)

    monkeypatch.setattr(audit, "_read", slow)
    assert audit.append(store, "takedown", {"n": "mine"}).number == 2
    assert audit.verify(store) == []

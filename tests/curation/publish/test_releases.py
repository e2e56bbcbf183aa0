"""Versions over several dumps, what they share, what holds them, and what is removed when nothing names it."""

import json
import time

import pytest

from curation.block import plan
from curation.errors import BadShardError, ConfigError
from curation.publish import condemned, release
from curation.publish.collect import collect
from curation.publish.diff import diff
from curation.publish.parts import File, read_plan
from curation.publish.quality import Quality, merged
from curation.publish.settings import Release
from curation.publish.verify import read_manifest, verify
from curation.publish.version import export_shard, finish_release, latest, move_latest, plan_release
from curation.recipe import Recipe, load_recipe
from curation.runner import run_stage
from curation.store import Store
from tests.curation.conftest import World

ALL = {"crawl": [0, 1], "later": [0]}


def run(world: World, recipe: Recipe, sources: dict[str, list[int]]) -> None:
    loaded = load_recipe(str(world.recipe_file), {"stages.download.connect_to": world.connect_to})
    for dump, shards in sources.items():
        plan(world.store, loaded, dump, str(world.crawl))
        for shard in shards:
            for stage in recipe.stage_names:
                run_stage(world.store, recipe, dump, shard, stage)


def publish(world: World, recipe: Recipe, sources: dict[str, list[int]]) -> str:
    run(world, recipe, sources)
    version = plan_release(world.store, recipe, sources)
    for dump, shards in sources.items():
        for shard in shards:
            export_shard(world.store, recipe, version, dump, shard)
    finish_release(world.store, recipe, version)
    return version


def files_of(world: World, version: str) -> list[File]:
    return [File.model_validate(file) for file in read_manifest(world.store, "small", version)["files"]]


def test_a_version_of_two_dumps_shares_what_its_parent_has(world: World) -> None:
    recipe, _ = world.recipe()
    first = publish(world, recipe, {"crawl": [0, 1]})
    second = publish(world, recipe, ALL)
    manifest = read_manifest(world.store, "small", "latest")
    assert manifest["version"] == second
    assert manifest["parent"] == first
    assert manifest["samples"] == 6
    assert manifest["dumps"] == ALL
    assert set(manifest["sources"]) == {"crawl", "later"}
    keys = [file["key"] for file in manifest["files"]]
    assert sum(key.startswith(f"datasets/small/{first}/") for key in keys) == 4  # two shards' tables and tars
    assert not list(world.store.entries(f"datasets/small/{second}/metadata/crawl"))
    assert verify(world.store, "small", second) == []
    assert "<td>later" in world.store.read_bytes(f"datasets/small/{second}/card.html").decode()


def test_diff_counts_samples_shards_and_settings(world: World) -> None:
    recipe, _ = world.recipe()
    first = publish(world, recipe, {"crawl": [0, 1]})
    second = publish(world, recipe, ALL)
    found = diff(world.store, "small", first, second)
    assert found["samples"] == {"added": 2, "removed": 0, "same": 4, "not_compared": 0}
    assert found["shards"] == {"added": ["later-00000"], "removed": [], "changed": []}
    assert found["settings"] == {}
    assert found["counts"]["kept"] == [4, 6]
    assert found["shared_files"] == 4
    looser, _ = world.recipe({"gates.too_small.at_least": 10})
    third = publish(world, looser, {"crawl": [0, 1]})
    found = diff(world.store, "small", first, third)
    assert found["samples"] == {"added": 2, "removed": 0, "same": 4, "not_compared": 0}
    assert found["shards"]["changed"] == ["crawl-00000", "crawl-00001"]
    assert list(found["settings"]) == ["gates.too_small"]
    assert found["counts"]["too_small"] == [2, 0]
    with pytest.raises(ConfigError, match="'nope'"):
        diff(world.store, "small", "nope", first)


def test_a_damaged_or_missing_export_stops_the_publish(world: World) -> None:
    recipe, _ = world.recipe()
    run(world, recipe, {"crawl": [0]})
    version = plan_release(world.store, recipe, {"crawl": [0]})
    export_shard(world.store, recipe, version, "crawl", 0)
    tar = f"datasets/small/{version}/webdataset/crawl-00000.tar"
    world.store.write_bytes(tar, b"short")
    with pytest.raises(BadShardError, match="found 5 bytes"):
        finish_release(world.store, recipe, version)
    world.store.delete(tar)
    with pytest.raises(BadShardError, match="found nothing"):
        finish_release(world.store, recipe, version)
    export_shard(world.store, recipe, version, "crawl", 0)
    finish_release(world.store, recipe, version)
    assert verify(world.store, "small", version) == []


def test_collection_keeps_what_manifests_and_plans_name(world: World) -> None:
    recipe, _ = world.recipe()
    first = publish(world, recipe, {"crawl": [0, 1]})
    second = publish(world, recipe, ALL)
    looser, _ = world.recipe({"gates.too_small.at_least": 10})
    run(world, looser, {"crawl": [0]})
    making = plan_release(world.store, looser, {"crawl": [0]})
    export_shard(world.store, looser, making, "crawl", 0)
    stray = f"datasets/small/{first}/webdataset/stray.tar"
    world.store.write_bytes(stray, b"x" * 10)
    now = time.time()
    assert collect(world.store, now=now, dry_run=True).condemned == [stray]
    assert condemned.read(world.store) == {}
    assert collect(world.store, now=now).removed == []
    assert collect(world.store, now=now + 23 * 3600).removed == []
    done = collect(world.store, now=now + 25 * 3600)
    assert done.removed == [stray]
    assert done.removed_bytes == 10
    # without its manifest the first version is kept for what the second shares of it
    world.store.delete(f"datasets/small/{first}/manifest.json")
    world.store.delete(f"versions/small/{first[-8:]}.json")
    for hours in (0, 25, 50):
        collect(world.store, now=now + hours * 3600)
    assert verify(world.store, "small", second) == []
    assert not list(world.store.entries(f"datasets/small/{first}/card"))
    finish_release(world.store, looser, making)
    assert verify(world.store, "small", making) == []


def test_collection_keeps_what_people_and_hosts_said_of_a_version(world: World) -> None:
    version = publish(world, world.recipe()[0], {"crawl": [0]})
    folder = f"datasets/small/{version}"
    said = [f"{folder}/{name}" for name in ("approval.json", "consent/2026-01-01.json", "review/first/ratings/a.json")]
    for key in said:
        world.store.write_bytes(key, b"{}")
    for hours in (0, 25, 50):
        assert collect(world.store, now=time.time() + hours * 3600).removed == []
    assert all(world.store.exists(key) for key in said)


def test_what_is_condemned_is_not_built_upon(world: World) -> None:
    recipe, _ = world.recipe()
    run(world, recipe, {"crawl": [0]})
    version = plan_release(world.store, recipe, {"crawl": [0]})
    export_shard(world.store, recipe, version, "crawl", 0)
    collect(world.store, now=time.time() + 40 * 86400)  # planned 40 days before: given up
    with pytest.raises(BadShardError, match="about to be removed"):
        finish_release(world.store, recipe, version)
    collect(world.store)
    finish_release(world.store, recipe, version)
    assert verify(world.store, "small", version) == []
    with pytest.raises(ConfigError, match="grace"):
        collect(world.store, grace_hours=0)


def report(samples: int, similarity: float = 0.3, **flags: object) -> dict:
    quality = Quality()
    quality.add_rows(
        [{"url": "https://a.test/", "text": "four words are here", "similarity": similarity, **flags}] * samples
    )
    return merged([quality.to_json()])


@pytest.mark.parametrize(
    ("name", "quality", "settings", "reason"),
    [
        ("leakage", report(3, leak_kind="phash"), {}, "3 kept samples hit an evaluation set, at most 0 may"),
        ("unsafe_share", report(2, safety_tag="unsafe"), {}, "100.00% of the samples are tagged unsafe"),
        ("opt_out", report(1, page_opt_out=True), {}, "1 kept samples refuse use for AI"),
        ("opt_out", report(1, consent="noai"), {}, "1 kept samples refuse use for AI"),
        ("drift", report(30, similarity=0.6), {"drift_from_samples": 10}, "moved by more than 0.25: similarity"),
    ],
)
def test_each_check_fails_with_its_reason(name: str, quality: dict, settings: dict, reason: str) -> None:
    found = {check.name: check for check in release.checks(Release(**settings), quality, report(30))}
    assert [check.name for check in found.values() if not check.passed] == [name]
    assert reason in found[name].reason
    looser = Release(max_leaks=9, max_unsafe_share=1, max_opt_outs=9, max_drift=99, **settings)
    assert all(check.passed for check in release.checks(looser, quality, report(30)))


def test_checks_of_a_first_version_and_of_few_samples() -> None:
    found = {check.name: check for check in release.checks(Release(), report(2), None)}
    assert "no version before" in found["drift"].reason
    assert "not measured" in found["leakage"].reason
    found = {check.name: check for check in release.checks(Release(), report(2), report(2, similarity=0.7))}
    assert found["drift"].passed
    assert "fewer than 1000" in found["drift"].reason
    assert all(check.passed for check in release.checks(Release(), report(0), report(0)))


def test_drift_by_hand() -> None:
    # one distribution moved whole into another tenth: (1 - 1e-4) ln(1 / 1e-4) twice
    assert release.drift(report(5, 0.1), report(7, 0.5))["similarity"] == pytest.approx(2 * 0.9999 * 9.2103, rel=1e-3)
    assert release.drift(report(5), report(5))["similarity"] == 0


def test_of_two_releases_at_once_the_newer_version_is_latest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (
        publish(world, world.recipe({"publish.release.approval": True, "publish.seed": seed})[0], {"crawl": [0]})
        for seed in (0, 1)
    )
    for version in (old, new):
        release.approve(world.store, "small", version, "ada")
    write, first = Store.write_bytes, iter([True])

    def slow(store: Store, key: str, data: bytes, **options: bool) -> bool:
        if key.endswith("latest.json") and next(first, False):  # the newer one goes all the way before the older writes
            move_latest(store, "small", new)
        return write(store, key, data, **options)

    monkeypatch.setattr(Store, "write_bytes", slow)
    assert move_latest(world.store, "small", old) == []
    assert latest(world.store, "small") == new


def test_a_version_waits_for_approval_and_a_failed_check_for_a_waiver(world: World) -> None:
    free, _ = world.recipe()
    before = publish(world, free, {"crawl": [0]})
    recipe, _ = world.recipe({"publish.release": {"approval": True, "drift_from_samples": 1, "max_drift": 0.01}})
    recipe = recipe.model_copy(update={"gates": world.recipe({"gates.too_small.at_least": 1})[0].gates})
    version = publish(world, recipe, {"crawl": [0, 1]})
    assert latest(world.store, "small") == before
    held = move_latest(world.store, "small", version)
    assert [reason.partition(":")[0] for reason in held] == ["drift", "approval"]
    assert "<strong>Held:</strong>" in world.store.read_bytes(f"datasets/small/{version}/card.html").decode()
    release.approve(world.store, "small", version, "ada")
    assert [reason.partition(":")[0] for reason in move_latest(world.store, "small", version)] == ["drift"]
    with pytest.raises(ConfigError, match="give one of conservation, leakage"):
        release.approve(world.store, "small", version, "ada", {"driftt": "meant"})
    with pytest.raises(ConfigError, match="name who approves"):
        release.approve(world.store, "small", version, " ")
    release.approve(world.store, "small", version, "ada", {"drift": "smaller pictures are wanted"})
    release.approve(world.store, "small", version, "bob", note="seen")  # what ada waived stays waived
    assert release.read_approval(world.store, "small", version).waived == {"drift": "smaller pictures are wanted"}
    assert move_latest(world.store, "small", version) == []
    assert latest(world.store, "small") == version
    assert read_plan(world.store, "small", version).parent == before
    assert json.loads(world.store.read_bytes(f"datasets/small/{version}/approval.json"))["by"] == "bob"

"""What a run on one machine does with shards that fail."""

import json
from typing import Any

import pytest

import curation.local
from curation.block import Block
from curation.errors import ConfigError, OutageError
from curation.local import run_block
from curation.recipe import Recipe
from curation.runner import run_stage
from curation.store import Store
from tests.curation.conftest import World


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.moved: set[str] = set()
        self.finished: set[tuple[str, int]] = set()

    def begin(self, step: str, shards: int) -> None:
        self.begun.append(step)

    def move(self, step: str, shard: int, rows: int, of: int) -> None:
        self.moved.add(step)

    def finish(self, step: str, shard: int) -> None:
        self.finished.add((step, shard))


def failing(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def run_or_fail(store: Store, recipe: Recipe, dump: str, shard: int, stage: str, **more: Any) -> Any:
        if shard == 0 and stage == "download":
            raise problem
        return run_stage(store, recipe, dump, shard, stage, **more)

    monkeypatch.setattr(curation.local, "run_stage", run_or_fail)


def test_a_block_goes_all_the_way_and_is_not_done_twice(world: World) -> None:
    recipe, shards = world.recipe()
    seen = Seen()
    outcome = run_block(world.store, recipe, Block("crawl", shards, ""), seen, workers=2)
    assert outcome.failed == {}
    assert json.loads(world.store.read_bytes(outcome.manifest))["samples"] == 4
    assert seen.begun == ["extract", "download", "safety", "leakage", "export", "publish"]
    assert {(step, shard) for step in seen.begun[:-1] for shard in shards} | {("publish", 0)} == seen.finished
    assert "download" in seen.moved
    fetched = len(world.requests)
    again = Seen()
    assert run_block(world.store, recipe, Block("crawl", shards, ""), again).manifest == outcome.manifest
    assert again.moved == set()
    assert len(world.requests) == fetched


@pytest.mark.parametrize("workers", [1, 2])
def test_an_outage_in_one_shard_leaves_the_others_done(
    world: World, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    recipe, shards = world.recipe()
    failing(monkeypatch, OutageError("the network is away"))
    seen = Seen()
    outcome = run_block(world.store, recipe, Block("crawl", shards, ""), seen, workers=workers)
    assert outcome.failed == {0: "the network is away"}
    assert outcome.manifest == ""
    assert {("leakage", 1), ("extract", 0)} <= seen.finished
    assert "export" not in seen.begun
    monkeypatch.undo()
    assert run_block(world.store, recipe, Block("crawl", shards, ""), Seen()).manifest


def test_wrong_settings_stop_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe()
    failing(monkeypatch, ConfigError("no such model"))
    seen = Seen()
    with pytest.raises(ConfigError, match="no such model"):
        run_block(world.store, recipe, Block("crawl", shards, ""), seen)
    assert ("extract", 1) not in seen.finished


def test_until_stops_there(world: World) -> None:
    recipe, shards = world.recipe()
    seen = Seen()
    outcome = run_block(world.store, recipe, Block("crawl", shards, ""), seen, until="extract")
    assert (seen.begun, outcome.manifest) == (["extract"], "")

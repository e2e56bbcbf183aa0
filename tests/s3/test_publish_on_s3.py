"""Versions, layout, takedown and collection on S3: the same as on a folder."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from curation import audit
from curation.publish.collect import collect
from curation.publish.layout import lay_out
from curation.publish.verify import read_manifest, verify
from curation.store import Store
from curation.takedown import take_down
from curation.tombstones import targets_of
from tests.curation.conftest import World, world
from tests.curation.publish.test_releases import publish
from tests.s3.servers import moto_server, radosgw_server, use

__all__ = ["moto_server", "radosgw_server", "world"]
pytestmark = pytest.mark.s3
CAT = "http://host0.test/cat.jpg"


@pytest.mark.parametrize("name", ["moto", "radosgw"])
def test_publish_lay_out_take_down_and_collect(
    world: World, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = request.getfixturevalue(f"{name}_server")
    use(server.url, monkeypatch)
    world = world._replace(store=Store(server.root()))
    recipe, _ = world.recipe({"publish.pretrain": "jsonl.gz", "publish.instruct": "json"})
    first = publish(world, recipe, {"crawl": [0, 1]})
    second = publish(world, recipe, {"crawl": [0, 1], "later": [0]})
    assert read_manifest(world.store, "small", second)["parent"] == first
    assert verify(world.store, "small", second) == []

    folder = tmp_path / "whole"
    assert lay_out(world.store, "small", "latest", folder, images=True) > 0
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert lay_out(world.store, "small", "latest", folder) == 0

    receipt = take_down(world.store, targets_of([("url", CAT)]))
    assert receipt["n_samples"] == 1
    assert len(receipt["versions"]) == 2
    latest = read_manifest(world.store, "small", "latest")
    assert latest["samples"] == 4
    assert latest["counts"]["tombstone"] == 2
    assert verify(world.store, "small", "latest") == []
    assert audit.verify(world.store, receipt["audit"]) == []
    now = time.time()
    collect(world.store, now=now)
    assert collect(world.store, now=now + 90_000).removed
    assert verify(world.store, "small", "latest") == []
    lay_out(world.store, "small", "latest", tmp_path / "clean")
    records = [json.loads(path.read_text()) for path in (tmp_path / "clean" / "instruct").iterdir()]
    assert sum(map(len, records)) == 4

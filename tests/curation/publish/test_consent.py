import json

import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.publish.consent import last_asked, recheck
from curation.publish.release import held_by
from curation.publish.verify import read_manifest
from curation.publish.version import latest
from tests.curation.conftest import PICTURES, World
from tests.curation.publish.test_releases import publish, run

RECHECK = {"publish.release": {"recheck": {"max_refused_share": 0.2}}}


def test_a_version_waits_for_hosts_that_changed_their_mind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _ = world.recipe(RECHECK)
    first = publish(world, recipe, {"crawl": [0]})
    assert latest(world.store, "small") == first
    assert (asked := last_asked(world.store, "small", first))
    assert (asked.asked, asked.standing, asked.refused) == (2, 2, {})

    run(world, recipe, {"crawl": [0, 1]})
    monkeypatch.setitem(PICTURES, "/robots.txt", b"User-agent: *\nDisallow: /cat.jpg")
    second = publish(world, recipe, {"crawl": [0, 1]})
    assert latest(world.store, "small") == first
    (held,) = held_by(world.store, read_manifest(world.store, "small", second))
    assert held.startswith("recheck: 2 of 4 pictures asked for again are refused, 2 robots_disallowed")

    call = ["recheck", "small", second, "--store", world.store.root, "--json"]
    assert "--sample 0" in str(CliRunner().invoke(app, [*call, "--take-down"]).exception), "1,000 are not all"
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["refusals"][0] == {
        "url": "http://host0.test/cat.jpg", "reason": "robots_disallowed", "evidence": "robots.txt: /cat.jpg",
    }  # fmt: skip
    done = CliRunner().invoke(app, [*call, "--sample", "0", "--take-down"])
    assert done.exit_code == 0, done.output
    cleaned = json.loads(done.stdout)["versions"][f"small/{second}"].partition("/")[2]
    assert latest(world.store, "small") == cleaned
    assert read_manifest(world.store, "small", cleaned)["samples"] == 2


def test_a_host_that_is_away_neither_refuses_nor_consents(world: World) -> None:
    recipe, _ = world.recipe(RECHECK)
    version = publish(world, recipe, {"crawl": [0]})
    world.statuses["/robots.txt"] = 503
    asked = recheck(world.store, manifest := read_manifest(world.store, "small", version), None)
    assert (asked.standing, asked.refused, asked.unanswered) == (0, {}, {"robots_disallowed": 2})
    assert held_by(world.store, manifest) == [f"recheck: {asked.told()}; at most 20.00% may be refused"]


def test_a_sample_is_the_same_for_the_same_version(world: World) -> None:
    recipe, _ = world.recipe()
    manifest = read_manifest(world.store, "small", publish(world, recipe, {"crawl": [0, 1]}))
    world.requests.clear()
    assert recheck(world.store, manifest, 1).asked == 1
    first = [path for path in world.requests if path in PICTURES]
    assert recheck(world.store, manifest, 1).asked == 1
    assert [path for path in world.requests if path in PICTURES] == first * 2

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.publish.converse import read_turns
from curation.publish.export import outputs_digest
from curation.publish.verify import read_manifest
from curation.sources.conversations import MARK
from tests.curation.captions.endpoint_server import EndpointServer, completion
from tests.curation.conftest import World
from tests.curation.publish.test_releases import publish

SAID = [{"question": "What is in the cup?", "answer": "Coffee."}, {"question": "Where is it?", "answer": "On a table."}]


def asking(url: str, **more: object) -> dict:
    converse = {"endpoint": {"url": url, "model": "teacher", "concurrency": 1, "backoff_s": 0.01, **more}, "turns": 2}
    return {"publish.instruct": "json", "publish.converse": converse}


def test_an_endpoint_writes_what_templates_else_ask(world: World) -> None:
    with EndpointServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.behaviours += [completion("I'm sorry, I can't."), completion(f"```json\n{json.dumps(SAID)}\n```")]
        recipe, _ = world.recipe(asking(server.url))
        version = publish(world, recipe, {"crawl": [0]})
        again = publish(world, world.recipe(asking(server.url) | {"publish.seed": 5})[0], {"crawl": [0]})
        server.shutdown()
    assert version != again
    assert server.asked.total() == 2, "an answer was paid for twice"
    asked = server.bodies[1]["messages"][0]["content"][0]["text"]
    assert "A cup of coffee on a wooden table" in asked
    assert "a conversation of 2 questions" in asked
    manifest = read_manifest(world.store, "small", version)
    (key,) = (file["key"] for file in manifest["files"] if "/instruct/" in file["key"])
    template, written = json.loads(world.store.read_bytes(key))
    assert template["conversations"][1]["value"] == "A tabby cat looks at the camera"
    assert [turn["value"] for turn in written["conversations"]] == [
        f"{MARK}\nWhat is in the cup?", "Coffee.", "Where is it?", "On a table.",
    ]  # fmt: skip
    quality = json.loads(world.store.read_bytes(f"datasets/small/{version}/quality.json"))
    assert quality["groups"]["conversation_by"] == {"endpoint": 1, "refused": 1}


def test_where_it_is_asked_does_not_make_another_export(world: World) -> None:
    one, other = (world.recipe(asking(f"http://{host}/v1"))[0] for host in ("a.test", "b.test"))
    assert outputs_digest(one) == outputs_digest(other)
    assert outputs_digest(one) != outputs_digest(world.recipe(asking("http://a.test/v1", seed=3))[0])


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"publish.instruct": ""}, "turn both on"), ({"publish.converse.endpoint.instruction": "{oops}"}, "{caption}")],
)
def test_settings_that_cannot_work_are_refused(world: World, settings: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        world.recipe(asking("http://a.test/v1") | settings)


@given(st.text() | st.recursive(st.text() | st.none(), lambda inner: st.lists(inner)).map(json.dumps))
def test_garbage_is_no_conversation(text: str) -> None:
    assert read_turns(text, 3) is None


def test_more_than_was_asked_for_is_cut() -> None:
    assert len(read_turns(json.dumps(SAID * 3), 2) or ()) == 4

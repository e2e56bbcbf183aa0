"""The loop that the DAG train_captioner runs, task by task, with a teacher behind a real server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocoevalcap", reason="needs the extras: pip install curation[models,train]")

from skimage import data

from curation.captions import registry, teaching
from curation.captions.records import Record, Records, write_records
from curation.captions.teaching import examine, learn, plan, teach
from curation.errors import ConfigError, OutageError
from tests.curation.captions.endpoint_server import EndpointServer, completion
from tests.curation.conftest import World, jpeg
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm

PICTURES = (data.chelsea(), data.coffee(), data.astronaut())


@pytest.fixture
def teacher() -> Iterator[EndpointServer]:
    with EndpointServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def params(world: World, teacher: EndpointServer, tmp_path: Path) -> dict[str, Any]:
    """What the form of the DAG gives, on a crawl of which one shard is scored."""
    recipe, _ = world.recipe({"stages.score": {}})
    world.run(recipe)
    rows = [Record(f"{at:032x}", jpeg(one[:64, :64]), ("a red dog", "a ball")) for at, one in enumerate(PICTURES)]
    training = {"student": str(save_tiny_blip(tmp_path / "student")), "max_steps": 4, "batch_size": 2,
                "micro_batch": 2, "learning_rate": 1e-2, "log_every": 1, "device": "cpu"}  # fmt: skip
    return {
        "name": "tiny", "dump": "crawl", "recipe": None, "count": 2, "at_least": ["similarity=-1"],
        "teacher": f"{teacher.url}#teacher", "prompt": "en", "batch": False, "max_money": 1.0,
        "max_total_tokens": 100_000, "price_prompt": 1.0, "price_completion": 1.0,
        "held_out": write_records(world.store, rows).key, "training": training, "processes": 1,
        "protocol": {"matcher": str(save_tiny_itm(tmp_path / "itm")), "num_beams": 1, "min_length": 1},
        "metric": "itm_auc", "margin": 0.0,
    }  # fmt: skip


def test_from_a_seed_set_to_a_promotion(world: World, teacher: EndpointServer, params: dict[str, Any]) -> None:
    store = world.store
    teacher.usual = completion("a red dog runs")
    planned = plan(store, params)
    assert store.exists(planned["seed_set"])
    # the endpoint goes down after one answer: the task is tried again, and asks for what is missing
    planned["endpoint"] |= {"concurrency": 1, "attempts": 1, "give_up_after": 1, "backoff_s": 0.01}
    teacher.behaviours.extend([completion("a red ball"), 500])
    with pytest.raises(OutageError):
        teach(store, planned)
    lesson = teach(store, planned)
    assert lesson["outcomes"] == {"captioned": 2}
    assert sorted(teacher.asked.values()) == [1, 2]
    assert lesson["money"] == pytest.approx(2 * 100 / 1e6)  # what was paid before the outage is counted too
    taught = list(Records(store, lesson["records"]["key"]))
    assert sorted(record.captions for record in taught) == [("a red ball",), ("a red dog runs",)]
    assert all(record.alt for record in taught)
    assert teach(store, planned) == lesson | {"cached": 2}
    assert teacher.asked.total() == 3

    version = learn(store, planned, lesson)
    assert learn(store, planned, lesson) == version
    manifest = registry.read(store, "tiny", version)
    assert [(one.kind, one.version) for one in manifest.data] == [
        ("records", lesson["records"]["digest"]), ("seed_set", lesson["seed_version"])]  # fmt: skip
    measured = examine(store, planned, version)
    assert set(measured["beside"]) == {"untrained"}
    found = teaching.promote(store, planned | {"margin": -1.0}, version, by="a test")
    assert found["promoted"]
    assert "itm_auc" in found["reason"]
    assert registry.promoted(store, "tiny") == version

    # a second round goes on from what is promoted, and is left where it is no better
    again = plan(store, params | {"training": params["training"] | {"student": "registry:tiny", "max_steps": 1}})
    assert again["training"]["student"] == f"registry:tiny@{version}"
    second = learn(store, again, lesson)
    assert (registry.read(store, "tiny", second).parent, registry.read(store, "tiny", second).rounds) == (version, 2)
    examine(store, again, second)
    left = teaching.promote(store, again | {"margin": 2.0}, second, by="a test")
    assert not left["promoted"]
    assert "at least 2 is asked for" in left["reason"]
    assert registry.promoted(store, "tiny") == version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "teacher: name one"),
        ({"price_prompt": 0, "price_completion": 0}, "max_money: without price_prompt"),
        ({"teacher": "ftp://x#m"}, r"teacher\.url"),
        ({"held_out": "captions/records/absent.arrow"}, "not in"),
        ({"training": {"epochs": 0}}, r"training\.epochs"),
        ({"training": {"student": "registry:absent"}}, r"training\.student: no model 'absent'"),
        ({"protocol": {"beams": 3}}, r"protocol\.beams"),
        ({"at_least": ["similarity"]}, "COLUMN=NUMBER"),
    ],
)
def test_wrong_settings_stop_before_any_work(
    world: World, changes: dict[str, Any], message: str, teacher: EndpointServer
) -> None:
    world.recipe()
    held_out = write_records(world.store, [Record("0" * 32, b"x", ("snow",))]).key
    given = {
        "name": "tiny", "dump": "crawl", "recipe": None, "count": 2, "at_least": ["similarity=-1"],
        "teacher": f"{teacher.url}#teacher", "prompt": "en", "batch": False, "max_money": 1.0, "max_total_tokens": 9,
        "price_prompt": 1.0, "price_completion": 1.0, "held_out": held_out, "training": {}, "processes": 1,
        "protocol": {}, "metric": "cider", "margin": 0.0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        plan(world.store, given | changes)
    assert teacher.asked.total() == 0

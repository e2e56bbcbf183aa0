"""The leakage report on a crawl that is really fetched and compared."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from curation import tombstones
from curation.errors import ConfigError
from curation.evalsets import index_evalset
from curation.reports.leakage import leakage_report, render_leakage
from curation.tombstones import targets_of
from tests.curation.conftest import PICTURES, World


def evaluation_set(world: World, folder: Path) -> None:
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "cat.jpg").write_bytes(PICTURES["/cat.jpg"])
    records = [
        {"id": "q0", "image": "cat.jpg", "question": "<b>Whose eyes</b> are green?"},
        {"id": "q1", "question": "a cup of coffee on a wooden table"},
        {"id": "q2", "question": "How many moons has Jupiter?"},
    ]
    (folder / "questions.json").write_text(json.dumps(records))
    index_evalset(world.store, "quiz", folder / "questions.json", images=folder / "pictures")


def size_of(data_url: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))).size


def test_items_hit_and_examples_side_by_side(world: World, tmp_path: Path) -> None:
    evaluation_set(world, tmp_path / "quiz")
    gates = {
        "gates.leak_sha256": {"column": "leak_kind", "none_of": ["sha256"]},
        "gates.leak_text": {"column": "leak_kind", "none_of": ["text"]},
    }
    recipe, shards = world.recipe({"stages.leakage.evalsets": ["quiz"]} | gates)
    with pytest.raises(ConfigError, match="run the recipe first"):
        leakage_report(world.store, recipe, "crawl", shards)
    for shard in shards:
        world.run(recipe, shard)
    data = leakage_report(world.store, recipe, "crawl", shards)
    json.dumps(data)
    (found,) = data["sets"]
    assert (data["shards"], found["name"], found["items"], found["items_hit"], found["samples"]) == (2, "quiz", 3, 2, 4)
    assert found["kinds"] == {kind: {"samples": 2, "kept": 0, "items_hit": 1} for kind in ("sha256", "text")}
    by_bytes, _, by_text, _ = found["examples"]
    assert (by_bytes["item"], by_bytes["distance"], by_bytes["reason"]) == ("0-q0", 0.0, "leak_sha256")
    assert (max(size_of(by_bytes["picture"])), max(size_of(by_bytes["item_picture"]))) == (160, 96)
    assert (by_text["item"], by_text["item_picture"]) == ("1-q1", None)
    assert by_text["item_text"] == "a cup of coffee on a wooden table"
    page = render_leakage(data)
    assert by_bytes["picture"] in page
    assert by_bytes["item_picture"] in page
    assert "&lt;b&gt;Whose eyes" in page
    tombstones.write(world.store, targets_of([("url", "http://host0.test/cat.jpg")]), "", "")
    (after,) = leakage_report(world.store, recipe, "crawl", shards)["sets"]
    assert after["kinds"] == found["kinds"]
    assert [one["url"] for one in after["examples"]] == [
        one["url"] for one in found["examples"] if one["url"] != "http://host0.test/cat.jpg"
    ]
    assert len(after["examples"]) == 3


def test_what_is_flagged_only_is_told_as_kept_and_few_examples_are_shown(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.reports.leakage._EXAMPLES", 1)
    evaluation_set(world, tmp_path / "quiz")
    (tmp_path / "moons.json").write_text('[{"question": "How many moons has Jupiter?"}]')
    index_evalset(world.store, "moons", tmp_path / "moons.json")
    recipe, shards = world.recipe({"stages.leakage.evalsets": ["quiz", "moons"]})
    world.run(recipe, shards[0])
    assert leakage_report(world.store, recipe, "crawl", shards)["shards"] == 1  # the other is not done yet
    world.run(recipe, shards[1])
    found, nothing = leakage_report(world.store, recipe, "crawl", shards)["sets"]
    assert (nothing["items"], nothing["items_hit"], nothing["samples"], nothing["examples"]) == (1, 0, 0, [])
    assert (found["samples"], found["kept"], len(found["examples"])) == (4, 4, 2)
    assert 'class="kept"' in render_leakage(leakage_report(world.store, recipe, "crawl", shards))


def test_a_recipe_without_evaluation_sets_says_so(world: World) -> None:
    recipe, shards = world.recipe()
    with pytest.raises(ConfigError, match=r"name them in stages\.leakage\.evalsets"):
        leakage_report(world.store, recipe, "crawl", shards)

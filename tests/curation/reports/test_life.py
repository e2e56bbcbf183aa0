import pytest

from curation.gates import Gate
from curation.publish.version import export_shard, finish_version, plan_version
from curation.reports.life import Life, lives, why_missed
from curation.runner import run_stage
from tests.curation.conftest import World


def told(world: World, query: str, overrides: dict | None = None) -> list[Life]:
    recipe, shards = world.recipe(overrides)
    return list(lives(world.store, recipe, "crawl", shards, query))


@pytest.fixture
def done(world: World) -> World:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    return world


def test_by_url_in_any_spelling_of_it(done: World) -> None:
    (life,) = told(done, "HTTP://host1.TEST:80/x/../tiny.jpg#top")
    assert (life.shard, life.outcome, life.stage) == (1, "too_small", "download")
    assert life.because == "min_side 20 < at_least 64"
    assert life.measured["extract"]["text"] == "A tiny piece of a cat"
    assert "image" not in life.measured["download"]
    assert list(life.measured) == ["extract", "download"]
    assert life.versions == []


def test_by_text_in_any_case_and_by_sample_id(done: World) -> None:
    cats = told(done, "TABBY cat")
    assert [(life.shard, life.outcome) for life in cats] == [(0, "kept"), (1, "kept")]
    assert told(done, cats[1].sample_id) == [cats[1]]
    assert told(done, cats[1].sample_id.upper()) == [cats[1]]
    assert told(done, "0" * 32) == []
    assert told(done, "no such caption") == []


def test_a_fault_says_what_the_server_said(done: World) -> None:
    life = told(done, "http://host0.test/absent.jpg")[0]
    assert (life.outcome, life.stage, life.because) == ("http_404", "download", "http status 404")


def test_a_sample_that_is_not_through_yet(world: World) -> None:
    recipe, _ = world.recipe()
    run_stage(world.store, recipe, "crawl", 0, "extract")
    cat, short = told(world, "http://host0.test/cat.jpg")
    assert (cat.outcome, cat.because) == ("unfinished", "stage download is not done")
    assert (short.outcome, short.because) == ("text_too_short", "n_chars 3 < at_least 5")


def test_versions_that_hold_it_are_named_even_when_the_recipe_drops_it_now(done: World) -> None:
    looser, shards = done.recipe({"gates.too_small.at_least": 10})
    for shard in shards:
        done.run(looser, shard)
    version = plan_version(done.store, looser, "crawl", shards)
    for shard in shards:
        export_shard(done.store, looser, version, "crawl", shard)
    finish_version(done.store, looser, version, "crawl", shards)
    (kept,) = told(done, "http://host1.test/tiny.jpg", {"gates.too_small.at_least": 10})
    assert (kept.outcome, kept.versions) == ("kept", [f"small/{version}"])
    (dropped,) = told(done, "http://host1.test/tiny.jpg")
    assert (dropped.outcome, dropped.versions) == ("too_small", [f"small/{version}"])
    (absent,) = told(done, "http://host1.test/absent.jpg")
    assert absent.versions == []


@pytest.mark.parametrize(
    ("gate", "values", "words"),
    [
        ({"column": "similarity", "at_least": 0.28}, {"similarity": 0.2134}, "similarity 0.2134 < at_least 0.28"),
        ({"column": "aspect", "at_most": 3.0}, {"aspect": 4.5}, "aspect 4.5 > at_most 3"),
        (
            {"column": "similarity", "by": "partition", "at_least": {"en": 0.28, "multi": 0.26}},
            {"similarity": 0.25, "partition": "multi"},
            "similarity 0.25 < at_least 0.26 (partition multi)",
        ),
        (
            {"column": "similarity", "by": "partition", "at_least": {"en": 0.28}},
            {"similarity": 0.25, "partition": "multi"},
            "similarity 0.25: the gate has no at_least for partition multi",
        ),
        (
            {"column": "duplicate_kind", "none_of": ["sha256"]},
            {"duplicate_kind": "sha256", "duplicate_of": "abc"},
            "duplicate_kind sha256 is refused (none_of sha256), of abc",
        ),
        (
            {"column": "leak_kind", "none_of": ["phash"]},
            {"leak_kind": "phash", "leak_set": "coco", "leak_item": "1.jpg"},
            "leak_kind phash is refused (none_of phash), with coco/1.jpg",
        ),
        ({"column": "known_hash", "one_of": []}, {"known_hash": "ab"}, "known_hash ab: no value is allowed"),
        ({"column": "url_class", "one_of": ["ok"]}, {"url_class": "scheme"}, "url_class scheme is not one_of ok"),
        ({"column": "page_opt_out", "equals": False}, {"page_opt_out": True}, "page_opt_out true, must be false"),
        ({"column": "min_side", "at_least": 64}, {}, "min_side has no value, which the gate drops"),
        ({"column": "n_chars", "at_least": 5, "at_most": 9}, {"n_chars": 12}, "n_chars 12 > at_most 9"),
    ],
)  # fmt: skip
def test_the_rule_held_against_the_sample(gate: dict, values: dict, words: str) -> None:
    assert why_missed(Gate.model_validate(gate), values) == words

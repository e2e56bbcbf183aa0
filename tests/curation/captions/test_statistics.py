import json

import pytest
from typer.testing import CliRunner

from curation.captions.statistics import RULES, Statistics, names_something, of_texts, table
from curation.cli import app
from curation.errors import ConfigError
from tests.curation.conftest import World

KINDS = {
    "place": ["A dog lies in front of the house.", "一只狗躺在房子前面。"],
    "attributes": ["A wooden chair stands there.", "一个人穿着红色的衣服。"],
    "writing": ['A board that reads "hello".', "墙上写着文字。"],
    None: ["A dog runs and plays.", "一只狗在奔跑。"],
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_rule_finds_its_own_kind(kind: str | None, language: str) -> None:
    rule = RULES[language]
    caption = KINDS[kind][language == "zh"].lower()
    found = {name for name in ("place", "attributes", "writing") if getattr(rule, name).search(caption)}
    assert found == ({kind} if kind else set())


@pytest.mark.parametrize(
    ("caption", "known"),
    [
        ("The bridge crosses the Seine at night.", True),
        ("a poster of 1984", True),
        ("A dog runs. The cat sleeps.", False),
        ("Best Summer Dresses For Women", False),
        ("", False),
        ("I think it is a dog", False),
    ],
)
def test_a_name_within_a_sentence_is_knowledge(caption: str, known: bool) -> None:
    assert names_something(caption) is known


def test_lengths_shares_and_what_is_not_judged() -> None:
    english = "A brown dog lies in front of the old house near Paris."
    german = "Ein brauner Hund liegt vor dem alten Haus in der Sonne."
    figures = of_texts(
        {"alt text": ["123"], "synthetic": [english, english, german, "一只棕色的狗躺在房子前面的草地上。"]}
    )
    made = figures["synthetic"]
    assert made["captions"] == 4
    assert made["words"] == {"mean": round((12 + 12 + 11) / 3, 2), "median": 12, "p95": 12}
    assert made["chars"]["median"] == len(english)
    assert made["judged"]["en"] == {"captions": 2, "place": 1, "attributes": 1, "writing": 0, "knowledge": 1}
    assert "knowledge" not in made["judged"]["zh"]
    assert made["not_judged"] == {"de": 1}
    assert made["opening"] == {"words": "a brown dog", "share": round(2 / 3, 4)}
    assert figures["alt text"]["not_judged"] == {"": 1}
    rows = {row[0]: row[1:] for row in table(figures)}
    assert rows["en: place"] == ["-", "100.0%"]
    assert rows["not judged"] == ["1", "1"]


def test_no_caption_at_all() -> None:
    assert Statistics().figures()["captions"] == 0
    assert len(table(of_texts({"none": []}))) > 5


def test_variety_tells_a_captioner_that_repeats_itself() -> None:
    same = ["a man in a red shirt is standing on a street"] * 40
    many = [" ".join(a + b + c for c in "aeiou") for a in "bcdfgh" for b in "aeiou"]
    figures = of_texts({"same": same, "many": many})
    assert figures["same"]["variety"]["mattr"] < 0.3 < figures["many"]["variety"]["mattr"]


def test_of_a_dump_and_of_a_version(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    store = ["--store", world.store.root]
    told = CliRunner().invoke(app, ["captions", "statistics", "--dump", "crawl", "--json", *store])
    of_dump = json.loads(told.stdout)
    assert of_dump["alt text"]["captions"] > 0
    CliRunner().invoke(app, ["publish", "small", "--dump", "crawl", *store], catch_exceptions=False)
    told = CliRunner().invoke(app, ["captions", "statistics", "small", *store], catch_exceptions=False)
    assert "alt text" in told.stdout
    assert str(of_dump["alt text"]["captions"]) in told.stdout
    with pytest.raises(ConfigError, match="either"):
        CliRunner().invoke(app, ["captions", "statistics", *store], catch_exceptions=False)

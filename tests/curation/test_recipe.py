import json
from pathlib import Path

import pytest

from curation.errors import ConfigError
from curation.recipe import dump_recipe, load_recipe, parse_recipe, recipe_names
from curation.schema import COLUMNS


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_valid_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = parse_recipe(json.loads(dump_recipe(recipe)))
    assert again == recipe
    assert list(again.gates) == list(recipe.gates)


@pytest.mark.parametrize("column", ["duplicate_kind", "leak_kind"])
@pytest.mark.parametrize("name", recipe_names())
def test_every_kind_that_a_recipe_finds_has_a_gate(name: str, column: str) -> None:
    recipe = load_recipe(name)
    if recipe.stage(COLUMNS[column].producer) is None:
        return
    gates = [gate for each in recipe.gates.values() for gate in each if gate.column == column]
    assert {value for gate in gates for value in gate.none_of or ()} == set(COLUMNS[column].values)


def test_overrides_nested_and_dotted() -> None:
    nested = load_recipe("demo", {"gates": {"too_small": {"at_least": 100}}})
    assert nested == load_recipe("demo", {"gates.too_small.at_least": 100})
    assert nested.gates["too_small"][0].at_least == 100  # type: ignore[index]
    assert nested != load_recipe("demo")
    assert load_recipe("demo", {"gates.too_small": []}).gates["too_small"] == ()  # type: ignore[index]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stages.dedup.phash_radus": 3}, "stages.dedup.phash_radus: unknown field; did you mean 'phash_radius'"),
        ({"stages.dedup.phash_radius": 99}, "stages.dedup.phash_radius: Input should be less than or equal to 8"),
        ({"gates.too_smal": {"column": "min_side", "at_least": 1}}, "'too_smal' is no verdict"),
        ({"gates.too_small.at_lest": 1}, "at_lest: unknown field; did you mean 'at_least'"),
        ({"gates.too_small.column": "min_sid"}, "unknown column 'min_sid'"),
        ({"stages.leakage": None}, "leaves that stage out: add stages.leakage or drop the gate"),
        (
            {"stages.score": None, "gates.similarity_low": []},
            "recipe demo: stages.dedup reads similarity, which stage 'score' measures",
        ),
        (
            {"stages.leakage.embedding_cosine": 0.9, "stages.leakage.embedding_space": "ViT-L-14/openai"},
            "stages.score.english gives 'embedded': cosines of different models mean nothing",
        ),
        ({"stages.caption.policy": "prefer_synthetic"}, "add gates.caption_low: {column: caption_source"),
        ({"stage": {}}, "unknown field; did you mean 'stages'"),
        ({"name": "Not a name"}, "name"),
        ({"name.x": 1}, "'name' is no section"),
        ({"target.bars.x": {"off": "similarity"}}, "target.bars.x.off: unknown field; did you mean 'of'?"),
        ({"target.bars.x": {"of": "similarity"}}, "target.bars.x: give at_least, at_most or both"),
        ({"publish.release.max_leak": 1}, "publish.release.max_leak: unknown field; did you mean 'max_leaks'?"),
        ({"stages.score.english.modell": "x"}, "stages.score.english.modell: unknown field; did you mean 'model'?"),
        ({"stages.score.heads.aesthetic": {"fil": "x"}}, "heads.aesthetic.fil: unknown field; did you mean 'file'?"),
    ],
)
def test_wrong_settings_name_the_field(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", overrides)
    assert message in str(caught.value)


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="capfilt, demo, instruct"):
        load_recipe("demmo")


def test_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstages: {extract: {archive: wat}}\n")
    assert load_recipe(str(path)).stage_names == ("extract", "download")
    path.write_text("name: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match="can't be read"):
        load_recipe(str(tmp_path / "absent.yaml"))

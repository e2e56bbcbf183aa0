from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from curation.errors import ConfigError
from curation.recipe import parse_recipe, recipe_names
from curation.recipe_schema import recipe_schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def data(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((resources.files("curation") / "recipes" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_meets_the_schema(validator: jsonschema.Draft202012Validator, name: str) -> None:
    assert list(validator.iter_errors(data(name))) == []
    assert parse_recipe(data(name)).name == name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage", {}),
        ("stages.dedup.phash_radus", 3),
        ("stages.dedup.phash_radius", 99),
        ("stages.score.heads.beauty", {"file": "x.pth", "space": "embedded"}),
        ("gates.too_smal", {"column": "min_side", "at_least": 1}),
        ("gates.too_small", {"column": "min_sid", "at_least": 1}),
        ("gates.too_small", {"column": "min_side"}),
        ("gates.too_small", {"column": "min_side", "at_lest": 1}),
        ("gates.too_small", 64),
        ("publish.pretrain", "xml"),
        ("publish.release.max_leaks", -1),
        ("target.samples", 0),
        ("target.bars.x", {"of": "similarity", "statistic": "median", "at_least": 0.3}),
    ],
)
def test_what_is_wrong_is_refused_by_schema_and_package(
    validator: jsonschema.Draft202012Validator, path: str, value: object
) -> None:
    wrong = data("demo")
    section: dict[str, Any] = wrong
    *parents, last = path.split(".")
    for key in parents:
        section = section.setdefault(key, {})
    section[last] = value
    assert list(validator.iter_errors(wrong))
    with pytest.raises(ConfigError):
        parse_recipe(wrong)


def test_forms_that_the_package_takes_are_in_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    recipe = data("demo")
    recipe["stages"]["extract"]["blocklist"] = "one.txt"
    recipe["gates"]["watermark"] = [{"column": "pwatermark", "at_most": 0.8}, {"column": "head_mine", "at_least": 0}]
    assert list(validator.iter_errors(recipe)) == []


def test_fields_carry_what_they_mean() -> None:
    schema = recipe_schema()
    assert "requests for a URL" in schema["$defs"]["Download"]["properties"]["attempts"]["description"]
    assert "too_small" in schema["properties"]["gates"]["properties"]

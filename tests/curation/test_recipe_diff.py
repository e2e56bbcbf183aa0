from curation.recipe import load_recipe, parse_recipe
from curation.recipe_diff import recipe_diff


def test_what_differs_by_dotted_name() -> None:
    found = recipe_diff(load_recipe("laion-400m"), load_recipe("laion-5b-en"))
    assert found["settings"].keys() == {"name", "description", "gates.similarity_low.at_least"}
    assert found["settings"]["gates.similarity_low.at_least"] == [0.3, 0.28]
    assert found["gate_order"] is None


def test_a_gate_that_one_lacks_and_a_section() -> None:
    small, target = (
        load_recipe("demo"),
        {"target.samples": 5, "gates.body_too_small": {"column": "body_bytes", "at_least": 1}},
    )
    found = recipe_diff(small, load_recipe("demo", target))["settings"]
    assert found["gates.body_too_small"] == [None, {"column": "body_bytes", "at_least": 1.0}]
    assert found["target"] == [None, {"samples": 5, "bars": {}}]


def test_the_order_of_gates_is_told() -> None:
    demo = load_recipe("demo").model_dump(mode="json")
    names = list(demo["gates"])
    turned = demo | {"gates": {name: demo["gates"][name] for name in reversed(names)}}
    found = recipe_diff(load_recipe("demo"), parse_recipe(turned))
    assert found == {"settings": {}, "gate_order": [names, names[::-1]]}
    assert recipe_diff(load_recipe("demo"), load_recipe("demo")) == {"settings": {}, "gate_order": None}

"""JSON schema of recipes, for editors: the fields with their meaning, unknown keys refused."""

from __future__ import annotations

from typing import Any

from curation.gates import Gate
from curation.recipe import Recipe
from curation.schema import COLUMNS, OWN_HEAD
from curation.verdicts import Verdict

_RULES = ("at_least", "at_most", "one_of", "none_of", "equals")


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file.

    What it lets through may still be wrong by rules over several fields (a gate over a stage that is left out):
    `curation recipes validate` tells. Numbers and switches must be written as such: "0.3" in quotes is none here.
    """
    schema = Recipe.model_json_schema()
    kinds = schema["$defs"]
    gate = {"$ref": "#/$defs/Gate"}
    schema["properties"]["gates"] |= {
        "description": "rules by verdict, in the order in which they judge; a verdict may have several",
        "properties": {str(verdict): {"anyOf": [gate, {"type": "array", "items": gate}]} for verdict in Verdict},
        "additionalProperties": False,
    }
    schema["properties"]["gates"].pop("propertyNames", None)
    kinds.pop("Verdict", None)
    column = {"anyOf": [{"enum": list(COLUMNS)}, {"type": "string", "pattern": f"^{OWN_HEAD}$"}]}
    fields = kinds[Gate.__name__]["properties"]
    fields["column"] |= column | {"description": "column of docs/columns.md, or head_NAME for a head of your own"}
    fields["by"]["anyOf"] = [column, {"type": "null"}]
    kinds[Gate.__name__]["anyOf"] = [{"required": [rule]} for rule in _RULES]
    blocklist = kinds["Extract"]["properties"]["blocklist"]
    listed = {name: blocklist.pop(name) for name in ("type", "items")}
    blocklist["anyOf"] = [{"type": "string"}, listed]
    for model in (schema, *kinds.values()):
        for field in model.get("properties", {}).values():
            field.pop("title", None)  # the field's name again, in capitals
            field.pop("runtime", None)
            if "patternProperties" in field:
                field["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

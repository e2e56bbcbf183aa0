"""What differs between two recipes."""

from __future__ import annotations

from typing import Any

from curation.recipe import Recipe


def recipe_diff(old: Recipe, new: Recipe) -> dict[str, Any]:
    """Settings that differ, defaults spelt out, and the order of the gates.

    returns  plain data: settings ({dotted name: [old, new]}, None where one has none), in the recipe's order;
             gate_order: [old, new] of the verdicts that both have where these stand in another order (it decides which
             verdict a sample gets that misses several), else None
    """
    before, after = (recipe.model_dump(mode="json") for recipe in (old, new))
    both = (before, after), (after, before)
    orders = [[name for name in one["gates"] if name in other["gates"]] for one, other in both]
    return {"settings": _changed(before, after), "gate_order": orders if orders[0] != orders[1] else None}


def _changed(old: Any, new: Any, name: str = "") -> dict[str, list[Any]]:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) == 1:  # the one gate of a verdict
        old, new = old[0], new[0]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {name: [_spelt(old), _spelt(new)]}
    found: dict[str, list[Any]] = {}
    for key in {**old, **new}:
        found |= _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return found


def _spelt(value: Any) -> Any:
    """Without what is not set, for reading."""
    if isinstance(value, dict):
        return {key: _spelt(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        spelt = [_spelt(inner) for inner in value]
        return spelt[0] if len(spelt) == 1 and isinstance(spelt[0], dict) else spelt
    return value

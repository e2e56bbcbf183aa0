"""The stage graph: what each stage's result depends on, and where it stands in the store."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel

from curation.captions import registry
from curation.errors import ConfigError
from curation.receipt import digest
from curation.recipe import Recipe, dump_recipe, parse_recipe
from curation.stages.base import Pin, Stage
from curation.store import Store
from curation.text.concepts import WORDNET, wordnet_nouns

BLOCKLISTS = "blocklists/"
"""What a list's name begins with that the store keeps, see curation/blocklists.py."""

_MAX_FILE_BYTES = 1 << 30  # of a list or a head that is named by its URL


def upstream(recipe: Recipe, stage: str) -> str | None:
    """The stage before this one, None for the first."""
    names = recipe.stage_names
    if stage not in names:
        raise ConfigError(f"recipe {recipe.name} has no stage {stage!r}; it runs {', '.join(names)}")
    at = names.index(stage)
    return names[at - 1] if at else None


def fingerprint(recipe: Recipe, stage: str) -> str:
    """Digest of all settings that a stage's result depends on: its own, the gates before it and everything upstream.

    Settings declared with `runtime()` change speed, not results, and stay out. Two recipes that agree up to a stage
    have the same fingerprint there, whatever their names, and share its tables.
    """
    settings = recipe.stage(stage)
    before = upstream(recipe, stage)
    if settings is None:
        raise ConfigError(f"recipe {recipe.name} has no stage {stage!r}")
    if before is None:
        earlier, gates = "", ""
    else:
        earlier = fingerprint(recipe, before)
        gates = _gates(recipe, before)
    own = json.dumps(_result_settings(settings), sort_keys=True)
    return digest(stage, str(settings.version), own, gates, earlier)


def judged_fingerprint(recipe: Recipe) -> str:
    """Digest of all that decides which samples are kept: the last stage, its gates and everything upstream."""
    last = recipe.stage_names[-1]
    return digest(fingerprint(recipe, last), _gates(recipe, last))


def pin(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with every reference to outside data replaced by a key in the store that names its content.

    A list (blocklist, known hashes) is copied to lists/; an evaluation set is pinned to its current version, a model of
    the registry to the promoted one. What comes out is pure data: run today or in a year, it means the same.
    """
    data = recipe.model_dump(mode="json")
    for stage, path, kind, value in _pins(recipe):
        place = ".".join(["stages", stage, *path])
        if isinstance(value, str):
            _put(data["stages"][stage], path, _pinned(store, kind, value, place))
        else:
            _put(data["stages"][stage], path, [_pinned(store, kind, entry, place) for entry in value])
    for name, files in recipe.publish.balance.concepts.items() if recipe.publish.balance else ():
        place = f"publish.balance.concepts.{name}"
        data["publish"]["balance"]["concepts"][name] = [_pinned_concepts(store, value, place) for value in files]
    return parse_recipe(data, recipe.name)


def localise(recipe: Recipe, stage: str, store: Store, *, models: bool = True) -> Stage:
    """The stage's settings with pinned keys replaced by local paths, ready to run.

    models   False leaves models of the registry where they are: to check the settings takes none of their gigabytes
    """
    settings = recipe.stage(stage)
    if settings is None:
        raise ConfigError(f"recipe {recipe.name} has no stage {stage!r}")
    data = settings.model_dump()
    for name, path, kind, value in _pins(recipe):
        if name == stage and kind in get_args(registry.Role):
            if models and isinstance(value, str) and value.startswith(registry.PREFIX):
                _put(data, path, str(registry.local_folder(store, value)))
        elif name == stage:
            local = [str(store.local_copy(entry)) for entry in ([value] if isinstance(value, str) else value) if entry]
            _put(data, path, (local[0] if local else "") if isinstance(value, str) else tuple(local))
    return type(settings).model_validate(data)


def save_recipe(recipe: Recipe, store: Store) -> str:
    """Keep a pinned recipe in the store and return its key, for tasks on other machines to load."""
    text = dump_recipe(recipe)
    key = f"recipes/{recipe.name}-{digest(text)[:12]}.json"
    store.write_bytes(key, text.encode(), if_absent=True)
    return key


def saved_recipe(store: Store, key: str) -> Recipe:
    """Load what save_recipe kept."""
    return parse_recipe(json.loads(store.read_bytes(key)), key)


def _gates(recipe: Recipe, stage: str) -> str:
    # a list, in order: the first gate that is missed names the verdict
    return json.dumps([(str(verdict), gate.model_dump(mode="json")) for verdict, gate in recipe.gates_after(stage)])


def _result_settings(settings: Stage) -> dict[str, Any]:
    runtime = {
        name
        for name, field in type(settings).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime")
    }
    return settings.model_dump(mode="json", exclude=runtime)


def _pins(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], str, str | tuple[str, ...]]]:
    for stage in recipe.stage_names:
        settings = recipe.stage(stage)
        assert settings is not None
        for path, kind, value in _pins_within(settings):
            yield stage, path, kind, value


def _pins_within(settings: BaseModel) -> Iterator[tuple[tuple[str, ...], str, str | tuple[str, ...]]]:
    for field, info in type(settings).model_fields.items():
        value = getattr(settings, field)
        for mark in info.metadata:
            if isinstance(mark, Pin):
                yield (field,), mark.kind, value
        for name, inner in value.items() if isinstance(value, Mapping) else ():
            if isinstance(inner, BaseModel):
                for path, kind, pinned in _pins_within(inner):
                    yield (field, name, *path), kind, pinned


def _put(data: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        data = data[name]
    data[path[-1]] = value


def _pinned(store: Store, kind: str, value: str, place: str) -> str:
    if kind in get_args(registry.Role):
        return (
            registry.resolve(store, value, cast(registry.Role, kind), place)
            if value.startswith(registry.PREFIX)
            else value
        )
    if not value or value.startswith(("lists/", "evalsets/")):
        return value
    if kind == "file":
        content = _listed(store, value, place) if value.startswith(BLOCKLISTS) else _content(value, place)
        suffixes = Path(urlsplit(value).path if "://" in value else value).suffixes[-2:]
        key = f"lists/{hashlib.sha256(content).hexdigest()}{''.join(suffixes)}"
        store.write_bytes(key, content, if_absent=True)
        return key
    versions = [entry.key for entry in store.entries(f"evalsets/{value}/") if entry.key.endswith(".parquet")]
    if not versions:
        raise ConfigError(
            f"{place}: no evaluation set {value!r} in {store.root}; add it: curation index-evalset {value} ..."
        )
    current = (
        store.read_bytes(f"evalsets/{value}/current").decode() if store.exists(f"evalsets/{value}/current") else ""
    )
    return current or versions[-1]


def _pinned_concepts(store: Store, value: str, place: str) -> str:
    if value != WORDNET:
        return _pinned(store, "file", value, place)
    content = wordnet_nouns()
    key = f"lists/{hashlib.sha256(content).hexdigest()}.txt"
    store.write_bytes(key, content, if_absent=True)
    return key


def _listed(store: Store, value: str, place: str) -> bytes:
    try:
        return store.read_bytes(value)
    except FileNotFoundError:
        raise ConfigError(f"{place}: no {value} in {store.root}; add it: curation refresh-blocklist") from None


def _content(value: str, place: str) -> bytes:
    try:
        if not value.startswith(("http://", "https://")):
            return Path(value).read_bytes()
        with urllib.request.urlopen(value, timeout=60) as response:  # the operator's own choice of address
            content: bytes = response.read(_MAX_FILE_BYTES + 1)
    except (OSError, HTTPException) as err:
        raise ConfigError(f"{place}: {value} can't be read: {getattr(err, 'strerror', None) or err}") from err
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{place}: {value} has more than {_MAX_FILE_BYTES >> 20} MiB; download it and give its path")
    return content

"""Check that the files of a published version are those that its manifest names."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from curation.errors import ConfigError
from curation.publish.export import version_folder
from curation.store import Store


def verify(store: Store, recipe_name: str, version: str) -> list[str]:
    """Problems of a version: files that are missing or differ from the manifest. Empty: it is whole.

    version  its name, or latest
    raises   ConfigError when there is no such version
    """
    manifest = read_manifest(store, recipe_name, version)
    standing = {
        entry.key: entry.size for entry in store.entries(f"{version_folder(recipe_name, manifest['version'])}/")
    }
    problems = []
    for file in manifest["files"]:
        key, size = file["key"], file["size"]
        if key not in standing:
            problems.append(f"{key}: missing")
        elif standing[key] != size:
            problems.append(f"{key}: expected {size} bytes, found {standing[key]}")
        elif hashlib.sha256(store.read_bytes(key)).hexdigest() != file["sha256"]:
            problems.append(f"{key}: the sha256 differs from the manifest's")
    return problems


def read_manifest(store: Store, recipe_name: str, version: str) -> dict[str, Any]:
    """Manifest of a version, by its name or `latest`. Raises ConfigError naming those that there are."""
    try:
        if version == "latest":
            version = json.loads(store.read_bytes(f"datasets/{recipe_name}/latest.json"))["version"]
        found: dict[str, Any] = json.loads(store.read_bytes(f"{version_folder(recipe_name, version)}/manifest.json"))
    except FileNotFoundError:
        names = [key.split("/")[2] for key in manifest_keys(store, recipe_name)]
        there = f"there are {', '.join(names)}" if names else "none is published"
        raise ConfigError(f"version {version!r} of {recipe_name} is not in {store.root}: {there}") from None
    return found


def manifest_keys(store: Store, recipe_name: str = "") -> list[str]:
    """Keys of the manifests of one recipe, or of all."""
    prefix = f"datasets/{recipe_name}/" if recipe_name else "datasets/"
    return [entry.key for entry in store.entries(prefix) if entry.key.endswith("/manifest.json")]

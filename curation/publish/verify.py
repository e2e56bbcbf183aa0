"""Check that the files of a published version are those that its manifest names."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curation.errors import ConfigError
from curation.publish.parts import manifest_key, plans
from curation.store import Store

_CHUNK = 1 << 20
_READERS = 4


def verify(store: Store, recipe_name: str, version: str) -> list[str]:
    """Problems of a version: files that are missing or differ from the manifest. Empty: it is whole.

    Files are read in pieces: memory does not grow with them.

    version  its name, or latest
    raises   ConfigError when there is no such version
    """
    manifest = read_manifest(store, recipe_name, version)
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda file: file_problem(store, file["key"], file["size"], file["sha256"]), manifest["files"])
        return [problem for problem in found if problem]


def file_problem(store: Store, key: str, size: int, sha256: str) -> str:
    """What is wrong with a file, "" when nothing is."""
    try:
        with store.open_stream(key) as stream:
            if (stands := stream.size()) != size:
                return f"{key}: expected {size} bytes, found {stands}"
            digest = hashlib.sha256()
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        return f"{key}: missing"
    return "" if digest.hexdigest() == sha256 else f"{key}: the sha256 differs from the manifest's"


def read_manifest(store: Store, recipe_name: str, version: str) -> dict[str, Any]:
    """Manifest of a version, by its name or `latest`. Raises ConfigError naming those that there are."""
    try:
        if version == "latest":
            version = json.loads(store.read_bytes(f"datasets/{recipe_name}/latest.json"))["version"]
        found: dict[str, Any] = json.loads(store.read_bytes(manifest_key(recipe_name, version)))
    except FileNotFoundError:
        names = [key.split("/")[2] for key in manifest_keys(store, recipe_name)]
        there = f"there are {', '.join(names)}" if names else "none is published"
        raise ConfigError(f"version {version!r} of {recipe_name} is not in {store.root}: {there}") from None
    return found


def newest(store: Store, recipe_name: str) -> str:
    """The version published last, released or held. Raises ConfigError when there is none."""
    made = [(plan.created_at, plan.version) for name, plan in plans(store, recipe_name)]
    standing = [version for _, version in sorted(made) if store.exists(manifest_key(recipe_name, version))]
    if not standing:
        raise ConfigError(f"no version of {recipe_name} is published in {store.root}")
    return standing[-1]


def manifest_keys(store: Store, recipe_name: str = "") -> list[str]:
    """Keys of the manifests of one recipe, or of all; from the plans: no folder of files is listed."""
    keys = [manifest_key(name, plan.version) for name, plan in plans(store, recipe_name)]
    return sorted(key for key in keys if store.exists(key))

"""What changed between two versions of a dataset."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from curation.publish.export import kind_of
from curation.publish.parts import version_folder
from curation.publish.release import drift
from curation.publish.verify import read_manifest
from curation.store import Store


def diff(store: Store, recipe_name: str, old: str, new: str) -> dict[str, Any]:
    """Settings, shards, counts, samples and distributions of `new` against `old`.

    Samples are compared shard by shard where the files differ, by the metadata tables: memory is bounded by a shard.
    A sample that moved from one shard to another counts as removed and added.

    returns  plain data: versions, settings ({name: [old, new]}), shards and samples (added, removed, ...), counts,
             files and bytes that are shared, drift (population stability index by column)
    raises   ConfigError when there is no such version
    """
    before, after = read_manifest(store, recipe_name, old), read_manifest(store, recipe_name, new)
    parts = [{(part["dump"], part["shard"]): part for part in manifest["parts"]} for manifest in (before, after)]
    shards: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
    samples = {"added": 0, "removed": 0, "same": 0, "not_compared": 0}
    for place in sorted(parts[0].keys() | parts[1].keys()):
        first, second = parts[0].get(place), parts[1].get(place)
        name = f"{place[0]}-{place[1]:05d}"
        if first is None or second is None:
            shards["added" if first is None else "removed"].append(name)
            samples["added" if first is None else "removed"] += (second or first)["samples"]  # type: ignore[index]
        elif first["files"] == second["files"]:
            samples["same"] += first["samples"]
        else:
            shards["changed"].append(name)
            ids = [_ids(store, part["files"]) for part in (first, second)]
            if ids[0] is None or ids[1] is None:
                samples["not_compared"] += second["samples"]
                continue
            samples["removed"] += len(ids[0] - ids[1])
            samples["added"] += len(ids[1] - ids[0])
            samples["same"] += len(ids[0] & ids[1])
    shared = {file["key"]: file["size"] for file in before["files"]}
    common = [file["size"] for file in after["files"] if file["key"] in shared]
    quality = [
        json.loads(store.read_bytes(f"{version_folder(recipe_name, manifest['version'])}/quality.json"))
        for manifest in (before, after)
    ]
    return {
        "old": before["version"],
        "new": after["version"],
        "settings": _changed(before["recipe"], after["recipe"]),
        "models": _changed(before["models"], after["models"]),
        "shards": shards,
        "samples": samples,
        "counts": {
            reason: [before["counts"].get(reason, 0), after["counts"].get(reason, 0)]
            for reason in sorted(before["counts"].keys() | after["counts"].keys())
        },
        "shared_files": len(common),
        "shared_bytes": sum(common),
        "drift": {name: round(index, 4) for name, index in drift(quality[1], quality[0]).items()},
    }


def _ids(store: Store, files: list[str]) -> set[str] | None:
    metadata = next((key for key in files if kind_of(key) == "metadata"), None)
    if metadata is None:
        return None
    found: set[str] = set()
    with store.open_parquet(metadata) as table:
        for batch in table.iter_batches(columns=["sample_id"]):
            column: pa.Array = batch.column(0)
            found.update(column.to_pylist())
    return found


def _changed(old: Any, new: Any, name: str = "") -> dict[str, list[Any]]:
    """Values that differ by dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, list[Any]] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return {} if old == new else {name: [old, new]}

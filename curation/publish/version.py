"""Dataset versions: planned by what they are made of, exported shard by shard, visible when the manifest stands."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from curation import __version__, dumps, generations
from curation.errors import BadShardError
from curation.pipeline import fingerprint, judged_fingerprint
from curation.publish.card import render_card
from curation.publish.export import File, Part, export_shard, read_part, version_folder
from curation.publish.quality import merged
from curation.receipt import Receipt, digest
from curation.recipe import STAGE_ORDER, Recipe
from curation.reports.funnel import Funnel, funnel, receipts_by_shard
from curation.runner import receipt_of
from curation.store import Store

__all__ = ["export_shard", "finish_version", "plan_version"]


def plan_version(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> str:
    """Name of the version that these shards make: the day it was first planned and a digest of all it depends on.

    The same tables under the same recipe give the same name, today or in a year. It can be planned once the block is
    matched: what follows is decided by then. Raises BadShardError naming the shards that are not measured.
    """
    measuring = STAGE_ORDER[: STAGE_ORDER.index("dedup")]
    last = [name for name in recipe.stage_names if name in measuring][-1]
    receipts = {shard: receipt_of(store, recipe, dump, shard, last) for shard in sorted(shards)}
    missing = [f"{shard:05d}" for shard, receipt in receipts.items() if receipt is None]
    if missing:
        raise BadShardError(f"{dump}: {last} is not done for shards {_spelt(missing)}: run them first")
    parts = [f"{shard}={receipt.object_id}" for shard, receipt in receipts.items() if receipt is not None]
    if "dedup" in recipe.stage_names:
        parts += sorted({generations.of_shard(store, recipe, dump, shard) for shard in shards})
    identity = digest(judged_fingerprint(recipe), recipe.publish.model_dump_json(), dump, *parts)[:8]
    note = f"datasets/{recipe.name}/versions/{identity}"
    store.write_bytes(note, f"{datetime.now(UTC):%Y.%m.%d}-{identity}".encode(), if_absent=True)
    return store.read_bytes(note).decode()


def finish_version(store: Store, recipe: Recipe, version: str, dump: str, shards: Sequence[int]) -> str:
    """Check that no sample is lost, write quality report and card, and last the manifest: then the version exists.

    returns  key of the manifest
    raises   BadShardError when counts do not add up, or a shard is not exported from the tables that stand there
    """
    folder = version_folder(recipe.name, version)
    key = f"{folder}/manifest.json"
    if not store.exists(key):
        receipts = receipts_by_shard(store, recipe, dump, shards)
        parts = _conserved(store, recipe, version, dump, receipts)
        quality = merged([part.quality for part in parts])
        found = funnel(store, recipe, dump, shards)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        reports = [
            _report(store, f"{folder}/quality.json", json.dumps(quality, indent=1, ensure_ascii=False)),
            _report(store, f"{folder}/card.html", render_card(recipe, version, created, found, quality)),
        ]
        manifest = _manifest(store, recipe, version, dump, created, receipts, parts, reports, found)
        store.write_bytes(key, json.dumps(manifest, indent=1, ensure_ascii=False).encode(), if_absent=True)
    _move_latest(store, recipe.name, version)
    return key


def _conserved(store: Store, recipe: Recipe, version: str, dump: str, receipts: dict[int, list[Receipt]]) -> list[Part]:
    """What was exported of each shard, when every sample that extract found is in it or has its reason."""
    parts, missing = [], []
    for shard, done in receipts.items():
        part = read_part(store, recipe, version, dump, shard)
        if part is None or len(done) < len(recipe.stage_names) or part.input != done[-1].object_id:
            missing.append(f"{shard:05d}")
            continue
        judged = sum(part.counts.values())
        if judged != done[0].rows or part.samples != part.quality["samples"]:
            raise BadShardError(
                f"{dump} shard {shard:05d}: samples are not conserved: {done[0].rows} extracted, {judged} judged, "
                f"{part.samples} kept, {part.quality['samples']} exported"
            )
        parts.append(part)
    if missing:
        raise BadShardError(f"{dump} shard {_spelt(missing)}: not exported for version {version}: export them first")
    return parts


def _report(store: Store, key: str, text: str) -> File:
    # of two publishes at once the first to write wins, and both name what stands there
    if not store.write_bytes(key, content := text.encode(errors="replace"), if_absent=True):
        content = store.read_bytes(key)
    return File(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _manifest(
    store: Store,
    recipe: Recipe,
    version: str,
    dump: str,
    created: str,
    receipts: dict[int, list[Receipt]],
    parts: list[Part],
    reports: list[File],
    found: Funnel,
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    archives = dumps.archives_of(store, dump, recipe.stages.extract.archive)
    files = [file for part in parts for file in part.files] + reports
    return {
        "format": 1,
        "version": version,
        "created_at": created,
        "curation_version": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "judged_fingerprint": judged_fingerprint(recipe),
        "fingerprints": {stage: fingerprint(recipe, stage) for stage in recipe.stage_names},
        "dumps": {dump: list(receipts)},
        "sources": {dump: {f"{shard:05d}": archives[shard] for shard in receipts}},
        "models": _models(receipts),
        "samples": counts["kept"],
        "counts": dict(counts),
        "stages": found.to_json()["stages"],
        "files": [file.model_dump() for file in files],
    }


def _models(receipts: dict[int, list[Receipt]]) -> dict[str, dict[str, list[str]]]:
    """Identities of the models by stage and role; more than one where shards were measured by different files."""
    seen: dict[str, dict[str, set[str]]] = {}
    for done in receipts.values():
        for receipt in done:
            for role, identity in receipt.models.items():
                seen.setdefault(receipt.stage, {}).setdefault(role, set()).add(identity)
    return {stage: {role: sorted(ids) for role, ids in roles.items()} for stage, roles in seen.items()}


def _move_latest(store: Store, recipe_name: str, version: str) -> None:
    """Point `latest` to the version, unless it points to one that was made after it."""
    pointer = f"datasets/{recipe_name}/latest.json"
    if store.exists(pointer):
        current = json.loads(store.read_bytes(pointer))["version"]
        if current == version or _created(store, recipe_name, current) > _created(store, recipe_name, version):
            return
    store.write_bytes(pointer, json.dumps({"version": version}).encode())


def _created(store: Store, recipe_name: str, version: str) -> str:
    try:
        found: str = json.loads(store.read_bytes(f"{version_folder(recipe_name, version)}/manifest.json"))["created_at"]
    except FileNotFoundError:
        return ""  # taken away since: anything is newer
    return found


def _spelt(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

"""Dataset versions: planned by what they are made of, exported shard by shard, visible when the manifest stands."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from curation import __version__, dumps, generations, tombstones
from curation.errors import BadShardError
from curation.pipeline import fingerprint, judged_fingerprint
from curation.publish import condemned, release
from curation.publish.card import render_card
from curation.publish.consent import last_asked, recheck
from curation.publish.croissant import croissant
from curation.publish.export import export_shard, outputs_digest, standing_part
from curation.publish.parts import File, Part, Plan, manifest_key, read_plan, version_folder, withdrawn_key, write_plan
from curation.publish.quality import merged
from curation.publish.selection import long_tail_key, select_version, selection_identity, summary, weigh_shard
from curation.publish.target import distances
from curation.publish.verify import read_manifest
from curation.receipt import Receipt, digest
from curation.recipe import STAGE_ORDER, Recipe
from curation.reports.funnel import Funnel, StageCounts, funnel, receipts_by_shard
from curation.runner import receipt_of
from curation.store import Store

__all__ = [
    "export_shard",
    "finish_release",
    "finish_version",
    "plan_release",
    "plan_version",
    "select_version",
    "weigh_shard",
]

Sources = Mapping[str, Sequence[int]]
"""Shards by dump."""


def plan_version(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> str:
    """Name of the version that these shards of one dump make: plan_release."""
    return plan_release(store, recipe, {dump: shards})


def plan_release(store: Store, recipe: Recipe, sources: Sources) -> str:
    """Name of the version that these shards make: the day it was first planned and a digest of all it depends on.

    The same tables under the same recipe and tombstones give the same name, today or in a year. It can be planned once
    the blocks are matched: what follows is decided by then. Its parent is `latest` of that moment: where a shard's
    samples are the same there, their files are shared. Raises BadShardError naming the shards that are not measured.
    """
    ordered = {dump: sorted(set(shards)) for dump, shards in sorted(sources.items())}
    stones = tombstones.keys(store)
    parts = [part for dump, shards in ordered.items() for part in _tables_of(store, recipe, dump, shards)]
    identity = digest(outputs_digest(recipe), recipe.publish.release.model_dump_json(), *stones, *parts)[:8]
    now = datetime.now(UTC)
    plan = Plan(
        version=f"{now:%Y.%m.%d}-{identity}",
        sources=ordered,
        parent=latest(store, recipe.name),
        tombstones=stones,
        created_at=now.isoformat(timespec="seconds"),
    )
    return write_plan(store, recipe.name, plan).version


def finish_version(store: Store, recipe: Recipe, version: str, dump: str, shards: Sequence[int]) -> str:
    """Finish a version of one dump: finish_release. Raises BadShardError when it was planned for other shards."""
    planned = read_plan(store, recipe.name, version).sources
    if planned != {dump: sorted(set(shards))}:
        raise BadShardError(f"version {version} was planned for {_named(planned)}, not for {dump} {list(shards)[:20]}")
    return finish_release(store, recipe, version)


def finish_release(store: Store, recipe: Recipe, version: str) -> str:
    """Check that no sample is lost, write reports and card, and last the manifest: then the version exists.

    The hosts of its pictures are asked again where the recipe wants it. `latest` moves to the version when every gate
    of the release lets it; else it is held, and the card says why.

    returns  key of the manifest
    raises   BadShardError when counts do not add up, a shard is not exported from the tables that stand there, or a
             sample of it was taken down since it was planned
    """
    plan = read_plan(store, recipe.name, version)
    key = manifest_key(recipe.name, version)
    if store.exists(withdrawn_key(recipe.name, version)):
        raise BadShardError(f"version {version} of {recipe.name} was withdrawn: plan a new one: run again")
    if not store.exists(key):
        found = {dump: receipts_by_shard(store, recipe, dump, shards) for dump, shards in plan.sources.items()}
        parts = {
            (dump, shard): part
            for dump, receipts in found.items()
            for shard, part in _conserved(store, recipe, version, dump, receipts).items()
        }
        release.recheck(store, plan, parts.values())
        _expect_files(store, version, parts.values())
        funnels = [funnel(store, recipe, dump, shards) for dump, shards in plan.sources.items()]
        manifest = {
            **_identity(recipe, plan),
            "recipe": recipe.model_dump(mode="json"),
            "judged_fingerprint": judged_fingerprint(recipe),
            "fingerprints": {stage: fingerprint(recipe, stage) for stage in recipe.stage_names},
            "sources": {dump: _archives(store, recipe, dump, shards) for dump, shards in plan.sources.items()},
            "models": _models([done for receipts in found.values() for done in receipts.values()]),
            "selection": summary(store, recipe, version),
            "stages": _summed(funnels).to_json()["stages"],
            "funnels": {one.dump: _yield_of(one) for one in funnels},
        }
        write_version(store, recipe, plan, manifest, parts, _summed(funnels))
        try:  # of a takedown at this very moment either this sees the tombstone, or it sees the manifest
            release.recheck(store, plan, parts.values())
        except BadShardError:
            store.delete(key)
            raise
    if recipe.publish.release.recheck and last_asked(store, recipe.name, version) is None:
        recheck(store, read_manifest(store, recipe.name, version), recipe.publish.release.recheck.sample)
    move_latest(store, recipe.name, version)
    return key


def write_version(
    store: Store,
    recipe: Recipe,
    plan: Plan,
    manifest: dict[str, Any],
    parts: Mapping[tuple[str, int], Part],
    found: Funnel,
) -> None:
    """Write the reports of a version and last its manifest, with files, counts and checks."""
    folder = version_folder(recipe.name, plan.version)
    quality = merged([part.quality for part in parts.values()])
    before = _quality_of(store, recipe.name, plan.parent)
    checks = release.checks(recipe.publish.release, quality, before)
    counts: Counter[str] = Counter()
    for part in parts.values():
        counts.update(part.counts)
    manifest = manifest | {
        "samples": counts["kept"],
        "counts": dict(counts),
        "domains": _domains(parts.values()),
        "checks": [check.model_dump() for check in checks],
        "target": [one.model_dump() for one in distances(recipe.target, quality)] if recipe.target else [],
        "parts": [
            {
                "dump": dump,
                "shard": shard,
                "input": part.input,
                "samples": part.samples,
                "files": [file.key for file in part.files],
            }
            for (dump, shard), part in parts.items()
        ],
    }
    files = [file for part in parts.values() for file in part.files]
    card = render_card(recipe, manifest, found, quality, release.drift(quality, before) if before else {})
    reports = [
        _report(store, f"{folder}/quality.json", json.dumps(quality, indent=1, ensure_ascii=False)),
        _report(store, f"{folder}/card.html", card),
    ]
    if recipe.publish.balance:
        reports.append(_long_tail(store, recipe, plan))
    described = croissant(store, manifest | {"files": [file.model_dump() for file in files]})
    reports.append(_report(store, f"{folder}/croissant.json", json.dumps(described, indent=1, ensure_ascii=False)))
    manifest["files"] = [file.model_dump() for file in [*files, *reports]]
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    store.write_bytes(manifest_key(recipe.name, plan.version), text.encode(errors="replace"), if_absent=True)


def latest(store: Store, recipe_name: str) -> str:
    """Version that `latest` names, "" when there is none."""
    try:
        version: str = json.loads(store.read_bytes(_pointer(recipe_name)))["version"]
    except FileNotFoundError:
        return ""
    return version


def move_latest(store: Store, recipe_name: str, version: str) -> list[str]:
    """Point `latest` to the version, unless a gate holds it or one that was made after it is released.

    Each released version is noted, and who moves `latest` looks at the notes again afterwards: of several that move it
    at once the newest wins, whoever writes last.

    returns  what holds the version; empty: nothing does
    """
    manifest = read_manifest(store, recipe_name, version)
    held = release.held_by(store, manifest)
    if held:
        return held
    note = f"{_notes(recipe_name)}{manifest['created_at'].partition('+')[0].replace(':', '')}_{version}.json"
    store.write_bytes(note, json.dumps({"version": version}).encode(), if_absent=True)
    while (newest := _newest_released(store, recipe_name)) != (current := latest(store, recipe_name)):
        if not newest or (current and _created(store, recipe_name, current) > _created(store, recipe_name, newest)):
            break
        store.write_bytes(_pointer(recipe_name), json.dumps({"version": newest}).encode())  # one object: all or nothing
    return []


def _newest_released(store: Store, recipe_name: str) -> str:
    notes = [entry.key.rpartition("_")[2].removesuffix(".json") for entry in store.entries(_notes(recipe_name))]
    standing = (version for version in reversed(notes) if store.exists(manifest_key(recipe_name, version)))
    return next(standing, "")


def _notes(recipe_name: str) -> str:
    return f"released/{recipe_name}/"


def _pointer(recipe_name: str) -> str:
    return f"datasets/{recipe_name}/latest.json"


def _tables_of(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> list[str]:
    measuring = STAGE_ORDER[: STAGE_ORDER.index("dedup")]
    last = [name for name in recipe.stage_names if name in measuring][-1]
    receipts = {shard: receipt_of(store, recipe, dump, shard, last) for shard in shards}
    missing = [f"{shard:05d}" for shard, receipt in receipts.items() if receipt is None]
    if missing:
        raise BadShardError(f"{dump}: {last} is not done for shards {_spelt(missing)}: run them first")
    parts = [dump, *(f"{shard}={receipt.object_id}" for shard, receipt in receipts.items() if receipt is not None)]
    if "dedup" in recipe.stage_names:
        parts += sorted({generations.of_shard(store, recipe, dump, shard) for shard in shards})
    return parts


def _conserved(
    store: Store, recipe: Recipe, version: str, dump: str, receipts: dict[int, list[Receipt]]
) -> dict[int, Part]:
    """What was exported of each shard, when every sample that extract found is in it or has its reason."""
    parts, missing = {}, []
    chosen = selection_identity(store, recipe, version)
    for shard, done in receipts.items():
        part = standing_part(store, recipe, version, dump, shard)
        stale = part is None or part.selection != chosen
        if part is None or stale or len(done) < len(recipe.stage_names) or part.input != done[-1].object_id:
            missing.append(f"{shard:05d}")
            continue
        judged = sum(part.counts.values())
        if judged != done[0].rows or part.samples != part.quality["samples"]:
            raise BadShardError(
                f"{dump} shard {shard:05d}: samples are not conserved: {done[0].rows} extracted, {judged} judged, "
                f"{part.samples} kept, {part.quality['samples']} exported"
            )
        parts[shard] = part
    if missing:
        raise BadShardError(f"{dump} shard {_spelt(missing)}: not exported for version {version}: export them first")
    return parts


def _expect_files(store: Store, version: str, parts: Iterable[Part]) -> None:
    """The manifest must name what stands, and keeps standing."""
    files = [file for part in parts for file in part.files]
    gone = condemned.among(store, (file.key for file in files))
    if gone:
        raise BadShardError(f"version {version}: {gone[0]} is about to be removed: run curation gc, then this again")
    folders = {file.key.rpartition("/")[0] for file in files}
    standing = {entry.key: entry.size for folder in sorted(folders) for entry in store.entries(f"{folder}/")}
    for file in files:
        if standing.get(file.key) != file.size:
            found = f"{standing[file.key]} bytes" if file.key in standing else "nothing"
            raise BadShardError(f"{file.key}: expected {file.size} bytes, found {found}: export its shard again")


def _long_tail(store: Store, recipe: Recipe, plan: Plan) -> File:
    """The long tail's table; a version that a takedown cleaned has its parent's: counts of before."""
    key = long_tail_key(recipe.name, plan.version)
    if not store.exists(key):
        store.write_bytes(key, store.read_bytes(long_tail_key(recipe.name, plan.parent)), if_absent=True)
    content = store.read_bytes(key)
    return File(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _report(store: Store, key: str, text: str) -> File:
    # of two publishes at once the first to write wins, and both name what stands there
    if not store.write_bytes(key, content := text.encode(errors="replace"), if_absent=True):
        content = store.read_bytes(key)
    return File(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _identity(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    return {
        "format": 2,
        "version": plan.version,
        "parent": plan.parent,
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "curation_version": __version__,
        "dumps": plan.sources,
        "tombstones": plan.tombstones,
    }


def _archives(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> dict[str, str]:
    archives = dumps.archives_of(store, dump, recipe.stages.extract.archive)
    return {f"{shard:05d}": archives[shard] for shard in shards}


def _models(done: list[list[Receipt]]) -> dict[str, dict[str, list[str]]]:
    """Identities of the models by stage and role; more than one where shards were measured by different files."""
    seen: dict[str, dict[str, set[str]]] = {}
    for receipts in done:
        for receipt in receipts:
            for role, identity in receipt.models.items():
                seen.setdefault(receipt.stage, {}).setdefault(role, set()).add(identity)
    return {stage: {role: sorted(ids) for role, ids in roles.items()} for stage, roles in seen.items()}


def _summed(funnels: list[Funnel]) -> Funnel:
    """The funnels of several dumps as one."""
    if len(funnels) == 1:
        return funnels[0]
    stages = {stage.stage: StageCounts(stage.stage) for stage in funnels[0].stages}
    for one in funnels:
        for stage in one.stages:
            into = stages[stage.stage]
            into.shards_done += stage.shards_done
            into.rows_in += stage.rows_in
            into.reasons.update(stage.reasons)
            into.seconds += stage.seconds
            into.peak_memory_bytes = max(into.peak_memory_bytes, stage.peak_memory_bytes)
            into.bytes += stage.bytes
            into.tally.update(stage.tally)
    shards = {f"{one.dump} {shard}": state for one in funnels for shard, state in one.shards.items()}
    return Funnel(funnels[0].recipe, ", ".join(one.dump for one in funnels), [*stages.values()], shards)  # type: ignore[arg-type]


def _yield_of(found: Funnel) -> dict[str, float]:
    """Candidates, samples that every gate let through, and what they took: seconds of tasks, bytes of tables."""
    return {
        "samples": found.samples,
        "kept": found.kept,
        "seconds": round(sum(stage.seconds for stage in found.stages), 3),
        "bytes": sum(stage.bytes for stage in found.stages),
    }


def _domains(parts: Iterable[Part]) -> dict[str, list[int]]:
    """Candidates and kept samples of the largest hosts."""
    candidates: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for part in parts:
        for host, (n, k) in part.domains.items():
            candidates[host] += n
            kept[host] += k
    largest = sorted(candidates.items(), key=lambda item: (-item[1], item[0]))[:20]
    return {host: [n, kept[host]] for host, n in largest}


def _quality_of(store: Store, recipe_name: str, version: str) -> dict[str, Any] | None:
    if not version:
        return None
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(f"{version_folder(recipe_name, version)}/quality.json"))
    except FileNotFoundError:
        return None
    return found


def _created(store: Store, recipe_name: str, version: str) -> str:
    try:
        found: str = json.loads(store.read_bytes(manifest_key(recipe_name, version)))["created_at"]
    except FileNotFoundError:
        return ""  # taken away since: anything is newer
    return found


def _named(sources: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{dump} {list(shards)[:20]}" for dump, shards in sources.items())


def _spelt(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

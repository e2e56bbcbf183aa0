"""Takedown: find what is meant in every published version, bury it, publish versions without it, prove it.

Order is what makes it safe to be killed at any moment: the tombstone stands first, so that nothing new is published
with the samples; then each version gets a cleaned successor; only then is it withdrawn and are the files that hold the
samples removed. The same request run again goes on where it stopped.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from curation import audit, tombstones
from curation.errors import BadShardError
from curation.publish import release
from curation.publish.consent import inherit
from curation.publish.export import kind_of, output_keys
from curation.publish.parts import (
    Part,
    Plan,
    manifest_key,
    part_key,
    plans,
    read_part,
    version_folder,
    withdrawn_key,
    write_plan,
)
from curation.publish.quality import Quality
from curation.publish.settings import Publish
from curation.publish.verify import read_manifest
from curation.publish.version import latest, move_latest, write_version
from curation.publish.writers import JsonWriter, TarWriter, file_of, read_lines, sample_key
from curation.receipt import RECEIPT_KEY, digest
from curation.recipe import Recipe, parse_recipe
from curation.reports.funnel import Funnel, StageCounts
from curation.store import Store, TableWriter
from curation.tombstones import Matcher, Target, Tombstone
from curation.verdicts import Verdict
from curation.web.urls import hostname

_READERS = 8
_LISTED = 1000  # samples that a receipt names one by one; the rest is counted


def take_down(
    store: Store, targets: Sequence[Target], *, reason: str = "", requester: str = "", dry_run: bool = False
) -> dict[str, Any]:
    """Take samples out of every published version, for good; returns the receipt for the requester.

    A version that holds none of them is left alone. With dry_run nothing is written: the receipt says what would be.

    returns  plain data: id, targets, samples (sample_id, url, dump, shard, versions), versions ({old: new}), files
             removed, and `audit`, the hash of the entry in the log
    raises   BadShardError when a version is published without metadata tables: nothing tells who is in it
    """
    stone_key, stone = ("", None) if dry_run else tombstones.write(store, targets, reason, requester)
    if stone:
        _finish_withdrawals(store)
    found = [hit for version in _versions(store) for hit in _hits(store, *version, Matcher(targets))]
    receipt: dict[str, Any] = {
        "targets": [target.model_dump() for target in targets],
        "reason": reason,
        "requester": requester,
        "dry_run": dry_run,
        "n_samples": len({hit["sample_id"] for hit in found}),
        "samples": _listed(found),
        "versions": {},
        "removed": [],
    }
    if stone is None:
        receipt["versions"] = dict.fromkeys(sorted({hit["version"] for hit in found}), "")
        return receipt
    begun = _begun(store, stone)
    for recipe, version in _versions(store):
        mine = [hit for hit in found if hit["version"] == f"{recipe}/{version}"]
        if mine:
            cleaned, hits = _clean(store, recipe, version)
            begun[f"{recipe}/{version}"] = {
                "successor": f"{recipe}/{cleaned}",
                "n_samples": len({hit["sample_id"] for hit in mine}),
                "samples": _listed(mine),
            }
            store.write_bytes(_begun_key(stone), json.dumps(begun).encode())
            receipt["removed"] += _withdraw(store, recipe, version, cleaned, hits, stone)
    _add_versions(store, receipt, begun)
    receipt |= {"id": stone.id, "tombstone": stone_key, "done_at": datetime.now(UTC).isoformat(timespec="seconds")}
    entry = audit.append(store, "takedown", receipt)
    receipt |= {"audit": entry.hash, "audit_number": entry.number}
    store.write_bytes(f"takedowns/{stone.id}-{entry.number:08d}.json", json.dumps(receipt, indent=1).encode())
    store.delete(_begun_key(stone))
    return receipt


def _versions(store: Store) -> list[tuple[str, str]]:
    """Recipe and version of all that is published, parents before those that share their files."""
    named = sorted(((plan.created_at, recipe, plan.version) for recipe, plan in plans(store)))
    return [(recipe, version) for _, recipe, version in named if store.exists(manifest_key(recipe, version))]


def _hits(store: Store, recipe: str, version: str, matcher: Matcher) -> Iterator[dict[str, Any]]:
    """The samples of a version that are meant; reads the columns that matching takes."""
    manifest = read_manifest(store, recipe, version)
    work = []
    for part in manifest["parts"]:
        table = next((key for key in part["files"] if kind_of(key) == "metadata"), "")
        if part["samples"] and not table:
            raise BadShardError(
                f"{recipe}/{version}: {part['dump']} shard {part['shard']:05d} has no metadata table to search: "
                "withdraw the whole version"
            )
        if part["samples"]:
            work.append((part, table))
    with ThreadPoolExecutor(_READERS) as pool:
        for (part, _), rows in zip(work, pool.map(lambda one: _rows(store, one[1], matcher), work), strict=True):
            for row in rows:
                yield row | {"version": f"{recipe}/{version}", "dump": part["dump"], "shard": part["shard"]}


def _rows(store: Store, table_key: str, matcher: Matcher) -> list[dict[str, Any]]:
    with store.open_parquet(table_key) as table:
        names = [name for name in matcher.columns if name in table.schema_arrow.names]
        found: list[dict[str, Any]] = []
        for group in range(table.metadata.num_row_groups):
            hit = matcher.matches(table.read_row_group(group, columns=names))
            if hit.any():
                rows = table.read_row_group(group, columns=["sample_id", "key", "url"])
                found += rows.filter(pa.array(hit)).to_pylist()
    return found


def _listed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_id: dict[str, dict[str, Any]] = {}
    for hit in found:
        known = by_id.setdefault(hit["sample_id"], {name: hit[name] for name in ("sample_id", "url", "dump", "shard")})
        known.setdefault("versions", []).append(hit["version"])
    return list(by_id.values())[:_LISTED]


def _clean(store: Store, recipe_name: str, version: str) -> tuple[str, list[dict[str, Any]]]:
    """Publish the version again without what any tombstone means, from its own files; shards without any are shared.

    A request that comes meanwhile has its samples taken out too: its own search may have been before this manifest.

    returns  name of the new version, and the samples that it lacks
    """
    while True:
        stones = tombstones.keys(store)
        hits = list(_hits(store, recipe_name, version, tombstones.read(store, stones)))
        plan, parts = _publish_without(store, recipe_name, version, stones, hits)
        try:
            release.recheck(store, plan, parts)
        except BadShardError:
            store.delete(manifest_key(recipe_name, plan.version))
            own = f"{version_folder(recipe_name, plan.version)}/"
            for key in (file.key for part in parts for file in part.files if file.key.startswith(own)):
                store.delete(key)
        else:
            return plan.version, hits


def _publish_without(
    store: Store, recipe_name: str, version: str, stones: list[str], hits: list[dict[str, Any]]
) -> tuple[Plan, list[Part]]:
    manifest = read_manifest(store, recipe_name, version)
    recipe = parse_recipe(manifest["recipe"])
    now = datetime.now(UTC)
    plan = write_plan(
        store,
        recipe_name,
        Plan(
            version=f"{now:%Y.%m.%d}-{digest('takedown', version, *stones)[:8]}",
            sources=manifest["dumps"],
            parent=version,
            tombstones=stones,
            created_at=now.isoformat(timespec="seconds"),
        ),
    )
    places = [(note["dump"], note["shard"]) for note in manifest["parts"]]
    if store.exists(manifest_key(recipe_name, plan.version)):
        return plan, [part for place in places if (part := read_part(store, recipe_name, plan.version, *place))]
    gone: dict[tuple[str, int], dict[str, str]] = {}
    for hit in hits:
        gone.setdefault((hit["dump"], hit["shard"]), {})[hit["key"]] = hit["url"]
    parts: dict[tuple[str, int], Part] = {}
    for place in places:
        part = read_part(store, recipe_name, version, *place)
        if part is None:
            raise BadShardError(f"{recipe_name}/{version}: the note of {place[0]} shard {place[1]:05d} is missing")
        if place in gone:
            part = _rewrite(store, recipe, plan.version, place, part, gone[place])
        store.write_bytes(part_key(recipe_name, plan.version, *place), part.model_dump_json().encode())
        parts[place] = part
    kept = {"created_at": now.isoformat(timespec="microseconds"), "parent": version, "version": plan.version}
    unchanged = {name: value for name, value in manifest.items() if name not in ("files", "parts", "checks")}
    inherit(store, recipe_name, version, plan.version)
    write_version(store, recipe, plan, unchanged | kept | {"tombstones": stones}, parts, _funnel_of(manifest, plan))
    return plan, list(parts.values())


def _funnel_of(manifest: dict[str, Any], plan: Plan) -> Funnel:
    """The funnel as the manifest tells it: the dump's tables may be gone by now."""
    stages = []
    for stage in manifest["stages"]:
        plain = ("stage", "shards_done", "rows_in", "seconds", "peak_memory_bytes", "bytes")
        counts = StageCounts(**{name: stage[name] for name in plain})
        counts.reasons, counts.tally = Counter(stage["reasons"]), Counter(stage["tally"])
        stages.append(counts)
    shards = {f"{dump} {shard}": "" for dump, shards in plan.sources.items() for shard in shards}
    return Funnel(manifest["recipe"]["name"], ", ".join(plan.sources), stages, shards)  # type: ignore[arg-type]


def _rewrite(
    store: Store, recipe: Recipe, version: str, place: tuple[str, int], part: Part, urls: Mapping[str, str]
) -> Part:
    """A shard's files without the samples of these keys (and URLs); the others keep their keys and their bytes."""
    gone = set(urls)
    keys = output_keys(recipe.name, recipe.publish, version, *place)
    before = {kind_of(file.key): file.key for file in part.files}
    quality = Quality(recipe.publish.perplexity_model)
    with ExitStack() as spools:
        paths = {kind: spools.enter_context(store.spool(keys[kind])) for kind in before}
        for kind, path in paths.items():
            if kind == "metadata":
                _filter_table(store, before[kind], path, gone, quality)
            elif kind == "webdataset":
                _filter_tar(store, before[kind], path, gone)
            else:
                _filter_records(store, before[kind], path, kind, recipe.publish, gone)
        files = [file_of(keys[kind], path) for kind, path in paths.items()]
    counts = Counter(part.counts)
    counts["kept"] -= len(gone)
    counts[Verdict.TOMBSTONE] += len(gone)
    of_host = Counter(hostname(url) for url in urls.values())
    domains = {host: [candidates, kept - of_host[host]] for host, (candidates, kept) in part.domains.items()}
    update = {"counts": dict(counts), "files": files, "quality": quality.to_json(), "domains": domains}
    return part.model_copy(update=update)


def _filter_table(store: Store, key: str, path: Path, gone: set[str], quality: Quality) -> None:
    with store.open_parquet(key) as table:
        metadata = table.schema_arrow.metadata or {}
        receipt = store.read_receipt(key)
        schema = table.schema_arrow.with_metadata({k: v for k, v in metadata.items() if k != RECEIPT_KEY} or None)
        writer = TableWriter(path, schema)
        try:
            for batch in table.iter_batches(batch_size=4096):
                stays = ~np.isin(batch.column("key").to_numpy(zero_copy_only=False), list(gone))
                kept = batch.filter(pa.array(stays))
                plain = [name for name in kept.schema.names if name not in ("img_emb", "txt_emb")]
                quality.add_rows(kept.select(plain).to_pylist())
                writer.write(pa.RecordBatch.from_arrays(kept.columns, schema=schema))
            if receipt is not None:
                dropped = Counter(receipt.dropped) + Counter({str(Verdict.TOMBSTONE): len(gone)})
                update = {"measured": receipt.measured - len(gone), "dropped": dict(dropped)}
                writer.set_receipt(receipt.model_copy(update=update))
        except BaseException:  # an interrupt too: what is half written is not closed, which would show it
            writer.discard()
            raise
        writer.close()


def _filter_tar(store: Store, key: str, path: Path, gone: set[str]) -> None:
    with store.open_stream(key) as stream, TarWriter(path) as out, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if sample_key(member.name) not in gone:
                content = tar.extractfile(member)
                assert content is not None
                out.add(member.name, content.read())
            tar.members = []  # type: ignore[attr-defined]  # else it remembers every header


def _filter_records(store: Store, key: str, path: Path, kind: str, settings: Publish, gone: set[str]) -> None:
    form: str = getattr(settings, kind)
    with store.open_stream(key) as stream, JsonWriter(path, form) as out:
        for line in read_lines(stream, form):
            record = msgspec.json.decode(line)
            images = record.get("images") or [record["image"]]
            if not any(sample_key(Path(image).name) in gone for image in images):
                out.add_line(line)


def _withdraw(
    store: Store, recipe: str, version: str, successor: str, hits: list[dict[str, Any]], stone: Tombstone
) -> list[str]:
    """Take a version out of sight and remove the files that hold the samples; no other version names them by now."""
    follows = move_latest(store, recipe, successor) if latest(store, recipe) == version else []
    if latest(store, recipe) == version:  # the successor is held: nothing may point to the samples all the same
        store.delete(f"datasets/{recipe}/latest.json")
    manifest = read_manifest(store, recipe, version)
    places = {(hit["dump"], hit["shard"]) for hit in hits}
    holding = [key for part in manifest["parts"] if (part["dump"], part["shard"]) in places for key in part["files"]]
    note = {"version": version, "successor": successor, "takedown": stone.id, "held": follows, "files": holding}
    store.write_bytes(withdrawn_key(recipe, version), json.dumps(note, indent=1).encode())
    return _finish_withdrawal(store, recipe, version)


def _finish_withdrawals(store: Store) -> None:
    """Go on where an earlier takedown was killed."""
    for recipe, plan in plans(store):
        if store.exists(withdrawn_key(recipe, plan.version)):
            _finish_withdrawal(store, recipe, plan.version)


def _begun(store: Store, stone: Tombstone) -> dict[str, dict[str, Any]]:
    """What a request that was killed before its receipt found in the versions that it withdrew."""
    try:
        noted: dict[str, dict[str, Any]] = json.loads(store.read_bytes(_begun_key(stone)))
    except FileNotFoundError:
        return {}
    return {name: note for name, note in noted.items() if store.exists(withdrawn_key(*name.split("/")))}


def _begun_key(stone: Tombstone) -> str:
    return f"takedowns_begun/{stone.id}.json"


def _add_versions(store: Store, receipt: dict[str, Any], begun: Mapping[str, Mapping[str, Any]]) -> None:
    """Put into a receipt all that was withdrawn for it, before a kill too."""
    by_id: dict[str, dict[str, Any]] = {}
    for name, note in begun.items():
        receipt["versions"][name] = note["successor"]
        withdrawn = json.loads(store.read_bytes(withdrawn_key(*name.split("/"))))
        gone = (key for key in withdrawn["files"] if not store.exists(key))
        receipt["removed"] = list(dict.fromkeys([*receipt["removed"], *gone]))
        for sample in note["samples"]:
            known = by_id.setdefault(sample["sample_id"], sample | {"versions": []})
            known["versions"] = [*known["versions"], *sample["versions"]]
    least = [receipt["n_samples"], len(by_id), *(note["n_samples"] for note in begun.values())]
    receipt |= {"samples": list(by_id.values())[:_LISTED], "n_samples": max(least)}


def _finish_withdrawal(store: Store, recipe: str, version: str) -> list[str]:
    note = json.loads(store.read_bytes(withdrawn_key(recipe, version)))
    store.delete(manifest_key(recipe, version))
    left = [key for key in note["files"] if store.exists(key)]
    if not left:
        return []
    # a later version may share them: its own turn comes, and removes them
    named = {file["key"] for other in _versions(store) for file in read_manifest(store, *other)["files"]}
    removed = [key for key in left if key not in named]
    for key in removed:
        store.delete(key)
    return removed

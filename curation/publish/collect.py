"""Garbage collection of dataset files: in two steps, so that it can't remove what a manifest names.

First a file that nothing names is condemned: written to a list that every finishing version reads before its manifest
is written, and that no export builds on. Only after the grace time, and after all manifests are read again, is it
removed. A version that named it in between has either been refused (its finish saw the list) or stands in a manifest
that the second reading sees.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime

from curation.errors import ConfigError
from curation.publish import condemned
from curation.publish.parts import Part, manifest_key, plans, version_folder, withdrawn_key
from curation.publish.verify import read_manifest
from curation.store import Store

GRACE_HOURS = 24.0
_LEAST_GRACE_HOURS = 1.0  # far longer than a finish takes from reading the list to writing the manifest
_ABANDONED_DAYS = 30.0


@dataclass
class Collected:
    """What a collection did: files removed with their bytes, and those condemned to go next time."""

    removed: list[str] = field(default_factory=list)
    removed_bytes: int = 0
    condemned: list[str] = field(default_factory=list)


def collect(
    store: Store,
    *,
    grace_hours: float = GRACE_HOURS,
    abandoned_days: float = _ABANDONED_DAYS,
    dry_run: bool = False,
    now: float | None = None,
) -> Collected:
    """Condemn dataset files that no version names, and remove those condemned `grace_hours` ago or earlier.

    What belongs to a version that is being made is named by its plan, for `abandoned_days` after it was planned.

    now     seconds since 1970; None: the clock
    raises  ConfigError for a grace time under an hour
    """
    if grace_hours < _LEAST_GRACE_HOURS:
        raise ConfigError(
            f"--grace-hours {grace_hours:g}: at least {_LEAST_GRACE_HOURS:g}, the time a publish may take"
        )
    now = time.time() if now is None else now
    before = condemned.read(store)
    named = _Named(store, now - abandoned_days * 86400)
    sizes = {entry.key: entry.size for entry in store.entries("datasets/") if not named.holds(entry.key)}
    since = {key: before.get(key, now) for key in sizes}
    outcome = Collected()
    due = [key for key, condemned_at in since.items() if condemned_at <= now - grace_hours * 3600]
    if not dry_run:
        condemned.write(store, since)
        named = _Named(store, now - abandoned_days * 86400)  # again: a version may have been finished meanwhile
    for key in due:
        if not named.holds(key):
            if not dry_run:
                store.delete(key)
            outcome.removed.append(key)
            outcome.removed_bytes += sizes[key]
    gone = set(outcome.removed)
    outcome.condemned = [key for key in since if key not in gone]
    if not dry_run:
        condemned.write(store, {key: since[key] for key in outcome.condemned if not named.holds(key)})
    return outcome


class _Named:
    """The files that manifests and plans in the making name."""

    def __init__(self, store: Store, planned_since: float) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        for recipe, plan in plans(store):
            if store.exists(manifest_key(recipe, plan.version)):
                self._files.update(file["key"] for file in read_manifest(store, recipe, plan.version)["files"])
                self._notes(recipe, plan.version)
            elif store.exists(withdrawn_key(recipe, plan.version)):
                continue
            elif _seconds(plan.created_at) >= planned_since:
                folder = f"{version_folder(recipe, plan.version)}/"
                self._folders.add(folder)
                for entry in store.entries(f"{folder}parts/"):
                    part = Part.model_validate_json(store.read_bytes(entry.key))
                    self._files.update(file.key for file in part.files)

    def _notes(self, recipe: str, version: str) -> None:
        folder = version_folder(recipe, version)
        self._files.update(f"{folder}/{name}" for name in ("manifest.json", "approval.json"))
        self._folders.update(f"{folder}/{name}/" for name in ("parts", "review", "selection", "consent"))

    def holds(self, key: str) -> bool:
        """Whether the file must stay. What is no file of a version (latest, receipts of takedowns) always does."""
        names = key.split("/")
        if len(names) < 4 or names[3] == "withdrawn.json":
            return True
        folder = "/".join(names[:3]) + "/"
        return key in self._files or folder in self._folders or f"{folder}{names[3]}/" in self._folders


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0

"""What a version is made of, as it stands in the store: its plan, and a part for each shard."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from curation.errors import ConfigError
from curation.store import Store


class File(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True)

    key: str
    size: int
    sha256: str


class Part(BaseModel):
    """What one shard gives to a version; written last, so that a part stands for files that stand.

    Its files may lie in the folder of an earlier version: what has not changed is shared.
    """

    model_config = ConfigDict(frozen=True)

    input: str  # object_id of the shard's last table: what was exported
    outputs: str = ""  # digest of gates and output settings: equal input and outputs mean equal files
    selection: str = ""  # digest of what was decided over all shards: see selection.py
    counts: dict[str, int]  # every sample of the shard by reason, "kept" for those in the files
    files: list[File]
    quality: dict[str, Any]
    domains: dict[str, list[int]] = {}  # host of the picture: candidates, kept; the largest of the shard

    @property
    def samples(self) -> int:
        """Samples in the files."""
        return self.counts.get("kept", 0)


class Plan(BaseModel):
    """What a version shall hold, fixed when it is first planned."""

    model_config = ConfigDict(frozen=True)

    version: str
    sources: dict[str, list[int]]  # shards by dump
    parent: str = ""  # the version whose files are taken over where nothing changed
    tombstones: list[str] = []  # keys of those that stood when it was planned
    created_at: str = ""


def version_folder(recipe_name: str, version: str) -> str:
    """Where the files of a version stand."""
    return f"datasets/{recipe_name}/{version}"


def manifest_key(recipe_name: str, version: str) -> str:
    """Key of the object that makes a version visible."""
    return f"{version_folder(recipe_name, version)}/manifest.json"


def part_key(recipe_name: str, version: str, dump: str, shard: int) -> str:
    """Key of the note of what a shard gives to a version."""
    return f"{version_folder(recipe_name, version)}/parts/{dump}-{shard:05d}.json"


def withdrawn_key(recipe_name: str, version: str) -> str:
    """Key of the note that says that a version was taken back, and what follows it."""
    return f"{version_folder(recipe_name, version)}/withdrawn.json"


def read_part(store: Store, recipe_name: str, version: str, dump: str, shard: int) -> Part | None:
    """What was exported of a shard, None when it was not."""
    try:
        return Part.model_validate_json(store.read_bytes(part_key(recipe_name, version, dump, shard)))
    except FileNotFoundError:
        return None


def write_plan(store: Store, recipe_name: str, plan: Plan) -> Plan:
    """Keep the plan, unless one of the same identity stands; returns the one that stands.

    Of one that was never finished the date is renewed: garbage collection spares what is in the making.
    """
    key = f"versions/{recipe_name}/{_identity(plan.version)}.json"
    if store.write_bytes(key, plan.model_dump_json().encode(), if_absent=True):
        return plan
    standing = Plan.model_validate_json(store.read_bytes(key))
    if standing.created_at[:10] != plan.created_at[:10] and not store.exists(
        manifest_key(recipe_name, standing.version)
    ):
        standing = standing.model_copy(update={"created_at": plan.created_at})
        store.write_bytes(key, standing.model_dump_json().encode())
    return standing


def read_plan(store: Store, recipe_name: str, version: str) -> Plan:
    """What a version was planned to hold. Raises ConfigError for one that never was."""
    try:
        return Plan.model_validate_json(store.read_bytes(f"versions/{recipe_name}/{_identity(version)}.json"))
    except FileNotFoundError:
        raise ConfigError(f"version {version!r} of {recipe_name} was never planned in {store.root}") from None


def plans(store: Store, recipe_name: str = "") -> list[tuple[str, Plan]]:
    """Recipe and plan of every version of one recipe, or of all, finished or not."""
    entries = store.entries(f"versions/{recipe_name}/" if recipe_name else "versions/")
    return [(entry.key.split("/")[1], Plan.model_validate_json(store.read_bytes(entry.key))) for entry in entries]


def _identity(version: str) -> str:
    return version.rpartition("-")[2]

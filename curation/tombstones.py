"""Tombstones: what was taken down and must never be published again; every export asks them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curation.errors import ConfigError
from curation.images.phash import plain
from curation.receipt import digest
from curation.recipe import Recipe
from curation.runner import read_kept
from curation.schema import COLUMNS
from curation.store import Store
from curation.web.urls import canonical, hostname

Kind = Literal["url", "domain", "sample_id", "sha256", "phash"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLUMNS_READ = ("sample_id", "url", "final_url", "page_url", "sha256", "phash")
_PREFIX = "tombstones/"
_FORMS = {"sample_id": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}", "phash": "[0-9a-f]{16}", "domain": r"[^\s/:@]+"}
_HOST = r"^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"
_FEW = 16


class Target(BaseModel):
    """What is to go: a picture's URL, a domain with all below it, a sample, the bytes or the look of a picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    value: str
    radius: int = Field(0, ge=0, le=16, description="bits by which a phash may differ")

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("value"), str):
            return data
        kind, value = data.get("kind"), data["value"].strip()
        if kind == "url":
            value = canonical(value)
        elif kind in _FORMS:
            value = value.lower().removeprefix("*.").rstrip(".")
            if kind == "domain":
                value = hostname(f"http://{value}/") or value
            if not re.fullmatch(_FORMS[kind], value):
                raise ValueError(f"{value[:80]!r} is no {kind}")
        return data | {"value": value}


class Tombstone(BaseModel):
    """One request: its targets, why, by whom, when."""

    model_config = ConfigDict(frozen=True)

    id: str
    targets: tuple[Target, ...]
    reason: str = ""
    requester: str = ""
    created_at: str = ""


def targets_of(values: Iterable[tuple[str, str]], radius: int = 0) -> tuple[Target, ...]:
    """Targets from (kind, value). Raises ConfigError for a bad value, and a look that unlike pictures share."""
    found = []
    for kind, value in values:
        try:
            bits = radius if kind == "phash" else 0
            found.append(Target.model_validate({"kind": kind, "value": value, "radius": bits}))
        except ValidationError as err:
            raise ConfigError(f"--{kind} {value!r}: {err.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        if bits and plain(np.array([int(found[-1].value, 16)], np.uint64))[0]:
            raise ConfigError(
                f"--phash {value}: stripes and the like share this look with unlike ones within {bits} bits; "
                "name them by sha256, url or sample_id, or set the radius to 0"
            )
    return tuple(found)


def write(store: Store, targets: Sequence[Target], reason: str, requester: str) -> tuple[str, Tombstone]:
    """Add a tombstone; returns its key. The same targets give the same one: what stands is kept."""
    ordered = tuple(sorted(set(targets), key=lambda target: (target.kind, target.value, target.radius)))
    identity = digest(*(target.model_dump_json() for target in ordered))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    stone = Tombstone(id=identity, targets=ordered, reason=reason, requester=requester, created_at=created)
    key = f"{_PREFIX}{identity}.json"
    if not store.write_bytes(key, stone.model_dump_json().encode(), if_absent=True):
        stone = Tombstone.model_validate_json(store.read_bytes(key))
    return key, stone


def keys(store: Store) -> list[str]:
    """Keys of all tombstones, in order."""
    return [entry.key for entry in store.entries(_PREFIX)]


def read(store: Store, wanted: Iterable[str]) -> Matcher:
    """What the tombstones of these keys forbid. Raises ConfigError for one that can't be read."""
    targets: list[Target] = []
    for key in wanted:
        try:
            targets += Tombstone.model_validate_json(store.read_bytes(key)).targets
        except (FileNotFoundError, ValidationError, json.JSONDecodeError) as err:
            raise ConfigError(f"{store.root}/{key}: the tombstone can't be read: {err}") from err
    return Matcher(targets)


def read_spared(
    store: Store, recipe: Recipe, dump: str, shard: int, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The samples of a shard that every gate let through and no tombstone means: sample_id and columns asked for."""
    matcher = read(store, keys(store))
    wanted = dict.fromkeys([*columns, *measured_columns(matcher, recipe)])
    for batch in read_kept(store, recipe, dump, shard, list(wanted)):
        spared = batch.filter(pa.array(~matcher.matches(batch)))
        if spared.num_rows:
            yield spared.select(["sample_id", *columns])


def measured_columns(matcher: Matcher, recipe: Recipe) -> list[str]:
    """Columns that matching reads and that stages of the recipe measure; sample_id is in every table."""
    found = (name for name in matcher.columns if name in COLUMNS and name != "sample_id")
    return [name for name in found if recipe.stage(COLUMNS[name].producer)]


class Matcher:
    """Tells which samples are meant by any of the targets."""

    def __init__(self, targets: Iterable[Target]) -> None:
        by_kind: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self._looks: list[tuple[int, int]] = []
        for target in targets:
            by_kind[target.kind].add(target.value)
            if target.kind == "phash":
                self._looks.append((int(target.value, 16), target.radius))
        self._equal = {
            column: pa.array(sorted(by_kind[kind]), pa.string())
            for column, kind in (("sample_id", "sample_id"), ("url", "url"), ("final_url", "url"), ("sha256", "sha256"))
            if by_kind[kind]
        }
        self._domains = by_kind["domain"]

    def __bool__(self) -> bool:
        return bool(self._equal or self._domains or self._looks)

    @property
    def columns(self) -> list[str]:
        """Columns that matching reads."""
        wanted = set(self._equal)
        if self._domains:
            wanted |= {"url", "final_url", "page_url"}
        if self._looks:
            wanted.add("phash")
        return [name for name in COLUMNS_READ if name in wanted]

    def matches(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
        """Which rows are meant: bool (n,). A column that the batch lacks matches nothing."""
        hit = np.zeros(batch.num_rows, bool)
        names = set(batch.schema.names)
        for column, values in self._equal.items():
            if column in names:
                hit |= _flags(pc.is_in(batch.column(column), values))
        if self._domains:
            for column in {"url", "final_url", "page_url"} & names:
                hit |= self._on_domain(batch.column(column))
        if self._looks and "phash" in names:
            hit |= self._looking_like(batch.column("phash"))
        return hit

    def _on_domain(self, urls: pa.Array | pa.ChunkedArray) -> np.ndarray:
        hit = np.zeros(len(urls), bool)
        near = np.arange(len(urls))
        if len(self._domains) <= _FEW:  # most rows name none of them: hosts are parsed of those that do
            rough = np.zeros(len(urls), bool)
            for domain in self._domains:
                rough |= _flags(pc.match_substring(urls, domain, ignore_case=True))
            near = np.flatnonzero(rough)
        for at, url in zip(near.tolist(), urls.take(pa.array(near)).to_pylist(), strict=True):
            found = re.match(_HOST, url or "")
            host = found["host"].lower().rstrip(".") if found else ""
            hit[at] = any(part in self._domains for part in _parents(host))
        return hit

    def _looking_like(self, hashes: pa.Array | pa.ChunkedArray) -> np.ndarray:
        values = np.array([int(h, 16) if h else 0 for h in hashes.to_pylist()], np.uint64)
        hit = np.zeros(len(values), bool)
        for look, radius in self._looks:
            hit |= np.bitwise_count(values ^ np.uint64(look)) <= radius
        near: np.ndarray = hit & _flags(pc.is_valid(hashes))
        return near


def _parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[at:]) for at in range(len(labels))]


def _flags(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)

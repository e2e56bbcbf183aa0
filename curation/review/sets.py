"""Review sets: a stratified sample of a version's samples, the same for the same seed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import BadShardError, ConfigError
from curation.publish.draws import draws
from curation.publish.export import kind_of
from curation.publish.parts import version_folder
from curation.publish.tars import read_sample
from curation.publish.verify import read_manifest
from curation.store import Store

By = Literal["language", "partition", "domain", "similarity"]
"""What strata are made of."""
OTHERS = "(others)"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LARGEST = 10  # languages and domains that are strata of their own
_BATCH_ROWS = 1 << 16
_HOST = r"^[a-z]+://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"
_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


class Sampling(BaseModel):
    """How a review set is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(200, ge=1, le=10_000, description="samples to be looked at")
    by: tuple[By, ...] = Field(
        ("language", "similarity"),
        description="strata: language, partition, domain (the ten largest, then others), similarity (quarters)",
    )
    seed: int = Field(0, ge=0, description="another seed draws other samples")
    raters: int = Field(2, ge=1, le=50, description="people who shall rate each sample")


class Item(BaseModel):
    """One sample of a review set."""

    model_config = ConfigDict(frozen=True)

    number: int
    sample_id: str
    dump: str
    shard: int
    key: str
    stratum: str
    tar: str  # key of the object in the store that holds picture and texts


class ReviewSet(BaseModel):
    """A drawn sample: what was drawn, and how many samples each stratum has in the version."""

    model_config = ConfigDict(frozen=True)

    name: str
    recipe: str
    version: str
    sampling: Sampling
    strata: dict[str, int]  # samples of the version by stratum
    items: tuple[Item, ...]  # in an order that has nothing to do with the strata
    created_at: str


class Shown(NamedTuple):
    """What a rater sees of an item."""

    item: Item
    picture: bytes
    media_type: str  # image/jpeg, image/png, image/webp
    caption: str  # as published
    described: dict[str, Any]  # the sample's metadata: url, page_url, text, synthetic, similarity, ...


def create_set(
    store: Store, recipe: str, version: str, sampling: Sampling | None = None, name: str = "review"
) -> ReviewSet:
    """Draw a review set and keep it; one of the same name drawn the same way is returned as it stands.

    Each stratum gives at least one sample and as many more as its share; within a stratum the draw is by sample and
    seed. Reads three to five columns of the metadata tables, 65,536 rows at a time.

    version  its name, or latest
    raises   ConfigError for an unknown version, one without samples, metadata tables or tars, a name that stands for
             another draw, fewer samples than strata
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"review set {name!r}: a name is lower-case letters, digits, dots, dashes, 64 at most")
    sampling = sampling or Sampling()
    manifest = read_manifest(store, recipe, version)
    version = manifest["version"]
    strata, items = _drawn(store, manifest, sampling)
    made = ReviewSet(
        name=name,
        recipe=recipe,
        version=version,
        sampling=sampling,
        strata=strata,
        items=tuple(items),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if store.write_bytes(
        f"{folder_of(recipe, version, name)}/set.json", made.model_dump_json().encode(), if_absent=True
    ):
        return made
    standing = read_set(store, recipe, version, name)
    if standing.sampling != sampling:
        raise ConfigError(f"review set {name!r} of {recipe}/{version} is drawn another way: choose another name")
    return standing


def list_sets(store: Store, recipe: str, version: str) -> list[str]:
    """Names of a version's review sets. Raises ConfigError for an unknown version."""
    version = read_manifest(store, recipe, version)["version"]
    prefix = f"{version_folder(recipe, version)}/review/"
    return sorted({entry.key.split("/")[4] for entry in store.entries(prefix) if entry.key.endswith("/set.json")})


def read_set(store: Store, recipe: str, version: str, name: str = "review") -> ReviewSet:
    """A review set. Raises ConfigError naming those that there are; also when the version is withdrawn."""
    version = read_manifest(store, recipe, version)["version"]
    if _NAME.fullmatch(name):
        try:
            return ReviewSet.model_validate_json(store.read_bytes(f"{folder_of(recipe, version, name)}/set.json"))
        except FileNotFoundError:
            pass
    there = ", ".join(list_sets(store, recipe, version)) or "none: draw one with curation review sample"
    raise ConfigError(f"review set {name!r} of {recipe}/{version} is not there; there are {there}")


def read_item(store: Store, found: ReviewSet, number: int) -> Shown:
    """Picture and texts of an item, from the version's tar. Raises ConfigError for a number that is not in the set.

    Captions and metadata are strangers' words: escape them.
    """
    if not 0 <= number < len(found.items):
        raise ConfigError(f"item {number}: review set {found.name} has items 0 to {len(found.items) - 1}")
    item = found.items[number]
    try:
        with store.open_stream(item.tar) as stream:
            files = read_sample(stream, item.key)
    except (FileNotFoundError, KeyError):
        raise BadShardError(f"{item.tar}: sample {item.key} is missing: run curation verify") from None
    suffix = next(suffix for suffix in files if suffix in _MEDIA_TYPES)
    described = json.loads(files["json"])
    return Shown(item, files[suffix], _MEDIA_TYPES[suffix], files["txt"].decode(errors="replace"), described)


def folder_of(recipe: str, version: str, name: str) -> str:
    """Where a review set stands."""
    return f"{version_folder(recipe, version)}/review/{name}"


def _drawn(store: Store, manifest: dict[str, Any], sampling: Sampling) -> tuple[dict[str, int], list[Item]]:
    named = _Strata(store, manifest, sampling.by)
    population: dict[str, int] = {}
    smallest: dict[str, list[tuple[int, Item]]] = {}
    for part in manifest["parts"]:
        if not part["samples"]:
            continue
        files = {kind_of(key): key for key in part["files"]}
        if not {"metadata", "webdataset"} <= files.keys():
            raise ConfigError(
                f"{manifest['version']}: a review needs metadata tables and pictures: set publish.parquet and "
                "publish.webdataset"
            )
        with store.open_parquet(files["metadata"]) as table:
            columns = [name for name in ("sample_id", "key", *named.columns) if name in table.schema_arrow.names]
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                ranks, strata = draws(batch["sample_id"], sampling.seed), named.of(batch)
                for stratum in np.unique(strata):
                    rows = np.flatnonzero(strata == stratum)
                    population[stratum] = population.get(stratum, 0) + len(rows)
                    pool = smallest.setdefault(str(stratum), [])
                    for row in rows[np.argsort(ranks[rows])[: sampling.n]].tolist():
                        item = Item(
                            number=0,
                            sample_id=batch["sample_id"][row].as_py(),
                            dump=part["dump"],
                            shard=part["shard"],
                            key=batch["key"][row].as_py(),
                            stratum=str(stratum),
                            tar=files["webdataset"],
                        )
                        pool.append((int(ranks[row]), item))
                    pool.sort(key=lambda one: (one[0], one[1].sample_id))
                    del pool[sampling.n :]
    if not population:
        raise ConfigError(f"{manifest['version']}: there is no sample to look at")
    sizes = dict(sorted((str(name), count) for name, count in population.items()))
    chosen = [one for name, count in _allocated(sizes, sampling.n).items() for one in smallest[name][:count]]
    chosen.sort(key=lambda one: one[0])
    return sizes, [item.model_copy(update={"number": number}) for number, (_, item) in enumerate(chosen)]


def _allocated(sizes: dict[str, int], n: int) -> dict[str, int]:
    """Samples to take of each stratum: one, and of the rest as its share, largest remainder first."""
    if n >= sum(sizes.values()):
        return sizes
    if n < len(sizes):
        raise ConfigError(f"n: {n} samples can't stand for {len(sizes)} strata: take more, or strata of fewer fields")
    total = sum(sizes.values()) - len(sizes)
    wanted = {name: (size - 1) * (n - len(sizes)) / max(total, 1) for name, size in sizes.items()}
    taken = {name: 1 + int(share) for name, share in wanted.items()}
    by_rest = sorted(sizes, key=lambda name: (int(wanted[name]) - wanted[name], name))
    for name in by_rest[: n - sum(taken.values())]:
        taken[name] += 1
    return taken


class _Strata:
    """Names the stratum of each row: `en | similarity 0.28 to 0.31`."""

    def __init__(self, store: Store, manifest: dict[str, Any], fields: Sequence[str]) -> None:
        key = f"{version_folder(manifest['recipe']['name'], manifest['version'])}/quality.json"
        quality = json.loads(store.read_bytes(key))
        self._fields = fields
        self._largest = {
            name: [value for value in counts if value != OTHERS][:_LARGEST]
            for name, counts in quality["groups"].items()
        }
        quantiles = quality["quantiles"].get("similarity")
        if "similarity" in fields and quantiles is None:
            raise ConfigError("by: similarity: the recipe has no score stage: choose other fields")
        self._edges = [quantiles[name] for name in ("p25", "p50", "p75")] if quantiles else []
        missing = [name for name in fields if name != "similarity" and name not in self._largest]
        if missing:
            raise ConfigError(f"by: {missing[0]}: the version does not measure it: choose other fields")
        self.columns = ["url" if name == "domain" else name for name in fields]

    def of(self, batch: pa.RecordBatch) -> np.ndarray:
        """Stratum of each row, str (n,)."""
        names = [self._values(name, batch) for name in self._fields]
        return np.array([" | ".join(row) for row in zip(*names, strict=True)] if names else ["all"] * batch.num_rows)

    def _values(self, name: str, batch: pa.RecordBatch) -> list[str]:
        if name == "similarity":
            measured = pc.fill_null(batch["similarity"], -1.0).to_numpy()
            low, middle, high = (f"{edge:.3f}" for edge in self._edges)
            names = (f"to {low}", f"{low} to {middle}", f"{middle} to {high}", f"from {high}")
            bands = [f"similarity {name}" for name in names]
            return [bands[at] for at in np.searchsorted(self._edges, measured, side="right")]
        is_host = name == "domain"
        values = pc.struct_field(pc.extract_regex(batch["url"], _HOST), "host") if is_host else batch[name]
        known = set(self._largest[name])
        return [value if value in known else OTHERS for value in (one or "none" for one in values.to_pylist())]

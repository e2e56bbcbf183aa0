"""Leakage report: what of a dump hit each evaluation set, sample and item side by side."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import tombstones
from curation.errors import BadShardError, ConfigError
from curation.evalsets import thumbnail
from curation.images.decode import Undecodable
from curation.pipeline import fingerprint
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.runner import read_outcomes
from curation.store import Store
from curation.tombstones import Matcher

KINDS = ("sha256", "phash", "embedding", "text")
_EXAMPLES = 6  # of each set and kind: the farthest, where a threshold that is too loose shows first
_THUMBNAIL_PX = 160
_TEXT_CHARS = 400


@dataclass
class _Hits:
    """Samples that hit one set in one way."""

    samples: int = 0
    kept: int = 0
    items: set[str] = field(default_factory=set)
    examples: list[dict[str, Any]] = field(default_factory=list)


def leakage_report(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> dict[str, Any]:
    """Hits by evaluation set and kind, and examples, the farthest first; of shards that are done.

    returns  plain data for the page and the UI: sets with items, items_hit, samples hit, kept (flagged, no gate dropped
             them), kinds and examples; pictures as data: URLs
    raises   ConfigError where the recipe compares with no evaluation set or no shard is done
    """
    stage = recipe.stages.leakage
    if stage is None or not stage.evalsets:
        raise ConfigError(f"recipe {recipe.name} compares with no evaluation set: name them in stages.leakage.evalsets")
    buried = tombstones.read(store, tombstones.keys(store))
    hits: dict[tuple[str, str], _Hits] = {}
    done, measured = [], 0
    for shard in shards:
        try:
            for row in _hit(store, recipe, dump, shard, buried):
                _count(hits.setdefault((row["set"], row["kind"]), _Hits()), row)
        except BadShardError:  # not done yet
            continue
        receipt = store.read_receipt(table_key(dump, "leakage", fingerprint(recipe, "leakage"), shard))
        measured += receipt.measured if receipt else 0
        done.append(shard)
    if not done:
        raise ConfigError(f"{dump}: no shard of recipe {recipe.name} is done: run the recipe first")
    _add_pictures(store, recipe, dump, [example for of_kind in hits.values() for example in of_kind.examples])
    return {
        "recipe": recipe.name,
        "dump": dump,
        "shards": len(done),
        "samples": measured,
        "phash_radius": stage.phash_radius,
        "embedding_cosine": stage.embedding_cosine,
        "sets": [_set(store, key, hits) for key in stage.evalsets],
    }


def render_leakage(data: dict[str, Any]) -> str:
    """HTML of `leakage_report`, self-contained; all that came from the web is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string((resources.files("curation") / "reports" / "leakage.html").read_text()).render(data)


def _hit(store: Store, recipe: Recipe, dump: str, shard: int, buried: Matcher) -> Iterator[dict[str, Any]]:
    written = {name for stage in recipe.stage_names if (one := recipe.stage(stage)) for name in one.produces.names}
    columns = ["leak_kind", "leak_set", "leak_item", "leak_distance", "url", "text"]
    columns += [name for name in ("safety_tag", *buried.columns) if name in written]
    for batch in read_outcomes(store, recipe, dump, shard, list(dict.fromkeys(columns))):
        found = batch.filter(pc.is_valid(batch.column("leak_kind")))
        taken_down = buried.matches(found).tolist() if buried else [False] * found.num_rows
        for row, hidden in zip(found.to_pylist(), taken_down, strict=True):
            named = {name.removeprefix("leak_"): value for name, value in row.items()}
            yield named | {"shard": shard, "text": (row["text"] or "")[:_TEXT_CHARS], "hidden": hidden}


def _count(hits: _Hits, row: dict[str, Any]) -> None:
    hits.samples += 1
    hits.kept += row["reason"] is None
    hits.items.add(row["item"])
    if not row["hidden"]:  # what was taken down is counted and not shown
        hits.examples.append(row)
    if len(hits.examples) > _EXAMPLES:
        hits.examples.sort(key=lambda one: (-one["distance"], one["sample_id"]))
        hits.examples.pop()


def _add_pictures(store: Store, recipe: Recipe, dump: str, examples: list[dict[str, Any]]) -> None:
    wanted: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for example in examples:
        example["picture"] = None
        wanted.setdefault(example["shard"], {}).setdefault(example["sample_id"], []).append(example)
    for shard, by_sample in wanted.items():
        for batch in read_outcomes(store, recipe, dump, shard, ["image"]):
            here = batch.filter(pc.is_in(batch.column("sample_id"), pa.array(list(by_sample))))
            for row in here.to_pylist():
                for example in by_sample[row["sample_id"]]:
                    example["picture"] = _data_url(row["image"], make_small=True)


def _set(store: Store, key: str, hits: dict[tuple[str, str], _Hits]) -> dict[str, Any]:
    name = key.split("/")[1]
    own = {kind: hits[name, kind] for kind in KINDS if (name, kind) in hits}
    examples = [
        example
        for of_kind in own.values()
        for example in sorted(of_kind.examples, key=lambda one: (-one["distance"], one["sample_id"]))
    ]
    n_items, found = _items(store, key, {example["item"] for example in examples})
    for example in examples:
        example |= found[example["item"]]
    return {
        "name": name,
        "key": key,
        "items": n_items,
        "items_hit": len(set().union(*(of_kind.items for of_kind in own.values()))),
        "samples": sum(of_kind.samples for of_kind in own.values()),
        "kept": sum(of_kind.kept for of_kind in own.values()),
        "kinds": {
            kind: {"samples": of_kind.samples, "kept": of_kind.kept, "items_hit": len(of_kind.items)}
            for kind, of_kind in own.items()
        },
        "examples": examples,
    }


def _items(store: Store, key: str, names: set[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """How many items a set has, and texts and thumbnails of those named; only their row groups are read."""
    found: dict[str, dict[str, Any]] = {}
    with store.open_parquet(key) as file:
        wanted = np.flatnonzero(pc.is_in(file.read(["item"])["item"], pa.array(list(names), pa.string())))
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        groups = np.unique(np.searchsorted(ends, wanted, side="right")).tolist()
        table = file.read_row_groups(groups, ["item", "text", "thumbnail"])
        for row in table.filter(pc.is_in(table["item"], pa.array(list(names), pa.string()))).to_pylist():
            shown = {"item_text": (row["text"] or "")[:_TEXT_CHARS], "item_picture": _data_url(row["thumbnail"])}
            found.setdefault(row["item"], shown)
        return file.metadata.num_rows, found


def _data_url(picture: bytes | None, *, make_small: bool = False) -> str | None:
    if picture is None:
        return None
    try:
        small = thumbnail(picture, _THUMBNAIL_PX) if make_small else picture
    except Undecodable:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(small).decode()

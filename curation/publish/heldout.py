"""The held-out parts of a recipe with publish.splits: datasets of their own, and at once evaluation sets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from curation.evalsets import index_evalset
from curation.publish.layout import lay_out
from curation.publish.splits import PARTS
from curation.publish.version import export_shard, finish_release, plan_release, select_version
from curation.recipe import Recipe, parse_recipe
from curation.store import Store


def part_of(recipe: Recipe, part: str) -> Recipe:
    """The recipe of a held-out part: the same cut, its other side, under the name RECIPE-PART."""
    data = recipe.model_dump(mode="json")
    data["name"] = f"{recipe.name}-{part}"
    data["publish"]["splits"]["take"] = part
    return parse_recipe(data, data["name"])


def publish_held_out(store: Store, recipe: Recipe, sources: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Publish the val and test parts of these shards, and index each as an evaluation set of the same name.

    From then on a recipe that names the set in stages.leakage.evalsets is checked against it: later dumps bring its
    pictures and captions into no training set. Pictures are compared by pHash, for what is published is re-encoded.

    returns  version of each part by dataset name, parts of share 0 left out; {}: the recipe holds nothing out
    """
    splits = recipe.publish.splits
    published: dict[str, str] = {}
    if splits is None or splits.take != "train":
        return published
    for part in PARTS[1:]:
        if not getattr(splits, part):
            continue
        own = part_of(recipe, part)
        version = plan_release(store, own, sources)
        select_version(store, own, version)
        for dump, shards in sources.items():
            for shard in shards:
                export_shard(store, own, version, dump, shard)
        finish_release(store, own, version)
        with tempfile.TemporaryDirectory() as folder:
            lay_out(store, own.name, version, Path(folder), kinds=("webdataset",))
            index_evalset(store, own.name, Path(folder) / "webdataset")
        published[own.name] = version
    return published

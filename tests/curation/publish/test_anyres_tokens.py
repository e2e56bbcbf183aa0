"""Grid and tokens of each sample in the metadata and the tar, their sum in the report and on the card."""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation.errors import ConfigError
from curation.images.anyres import layout
from curation.publish.export import export_shard
from curation.publish.version import finish_version, plan_version
from tests.curation.conftest import World


def test_each_sample_tells_its_tokens(world: World) -> None:
    recipe, _ = world.recipe({"publish": {"anyres": {"side": 56, "patch": 14}}})
    world.run(recipe)
    version = plan_version(world.store, recipe, "crawl", [0])
    export_shard(world.store, recipe, version, "crawl", 0)
    finish_version(world.store, recipe, version, "crawl", [0])
    folder = Path(world.store.root) / "datasets" / "small" / version
    rows = pq.read_table(folder / "metadata" / "crawl-00000.parquet").to_pylist()
    assert rows
    for row in rows:
        found = layout((row["width"], row["height"]), side=56, patch=14)
        assert row["anyres_grid"] == f"{found.grid[0]}x{found.grid[1]}"
        assert (row["anyres_tokens_flat"], row["anyres_tokens_unpadded"]) == (found.flat, found.unpadded)
    with tarfile.open(folder / "webdataset" / "crawl-00000.tar") as tar:
        described = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith("json")]  # type: ignore[arg-type]
    assert [one["anyres_tokens_flat"] for one in described] == [row["anyres_tokens_flat"] for row in rows]
    quality = json.loads((folder / "quality.json").read_text())
    budget = {way: sum(row[f"anyres_tokens_{way}"] for row in rows) for way in ("flat", "unpadded")}
    assert quality["anyres_tokens"] == budget
    assert f"{budget['unpadded']:,} unpadded" in next(folder.glob("**/*.html")).read_text()


def test_a_patch_larger_than_a_view_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="patch 400 is larger than side 336"):
        world.recipe({"publish": {"anyres": {"patch": 400}}})

"""Exports are read by the tools that people use, whatever strangers wrote into their captions."""

import gc
import io
import json
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from curation.pipeline import fingerprint
from curation.publish.export import export_shard, readable
from curation.publish.parts import read_part
from curation.publish.version import finish_version, plan_version
from curation.receipt import RECEIPT_KEY, table_key
from curation.recipe import Recipe
from tests.curation.conftest import World

NUL = b"a cat\0with NUL \xf0\x9f\x90\x88 '; DROP TABLE--"
SURROGATE = b"a lone \xed\xa0\x80 surrogate <script>alert(1)</script>"


def rewrite(world: World, recipe: Recipe, stage: str, column: str, values: pa.Array) -> None:
    """Put values into a stage's table of shard 0 that our own stages would not let through."""
    path = Path(world.store.root) / table_key("crawl", stage, fingerprint(recipe, stage), 0)
    table, receipt = pq.read_table(path), pq.read_metadata(path).metadata[RECEIPT_KEY]
    changed = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(changed.replace_schema_metadata({RECEIPT_KEY: receipt}), path)


@pytest.fixture
def hostile(world: World) -> tuple[Path, World]:
    recipe, _ = world.recipe()
    world.run(recipe)
    texts = pa.array([NUL, SURROGATE, b"x", b"y", b"z"], pa.binary()).view(pa.string())
    rewrite(world, recipe, "extract", "text", texts)
    version = plan_version(world.store, recipe, "crawl", [0])
    export_shard(world.store, recipe, version, "crawl", 0)
    finish_version(world.store, recipe, version, "crawl", [0])
    return Path(world.store.root) / "datasets" / "small" / version, world


# webdataset 1.0.2 leaves the tar that it read to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tar(hostile: tuple[Path, World]) -> None:
    folder, _ = hostile
    tar = folder / "webdataset" / "crawl-00000.tar"
    dataset = webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil").to_tuple("jpg", "txt", "json")
    samples = list(dataset)
    gc.collect()
    assert [text for _, text, _ in samples] == [NUL.decode(), SURROGATE.decode(errors="replace")]
    for picture, text, described in samples:
        assert isinstance(picture, Image.Image)
        assert described["text"] == text
        assert described["url"].startswith("http://host0.test/")
        assert "image" not in described
        assert "verdict" not in described


def test_pandas_and_pyarrow_read_the_metadata(hostile: tuple[Path, World]) -> None:
    folder, world = hostile
    path = folder / "metadata" / "crawl-00000.parquet"
    frame = pd.read_parquet(path)
    assert frame["text"].tolist() == [NUL.decode(), SURROGATE.decode(errors="replace")]
    assert frame["key"].tolist() == ["000000000000", "000000000001"]
    assert list(frame.columns)[:6] == ["sample_id", "key", "dump", "shard", "url", "text"]
    assert {"width", "height", "original_width", "sha256", "phash", "page_url"} <= set(frame.columns)
    assert not {"similarity", "caption", "image", "verdict"} & set(frame.columns)  # this recipe measures none
    pq.read_table(path).validate(full=True)
    receipt = world.store.read_receipt(path.relative_to(world.store.root).as_posix())
    assert receipt is not None
    assert receipt.rows == 5
    assert receipt.measured == 2
    assert receipt.dropped == {"text_too_short": 1, "http_404": 1, "too_small": 1}


def test_gnu_tar_rules_hold(hostile: tuple[Path, World]) -> None:
    content = (hostile[0] / "webdataset" / "crawl-00000.tar").read_bytes()
    assert len(content) % 512 == 0
    assert content.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    assert len(members) == 6


def test_the_card_shows_what_strangers_wrote_and_runs_none_of_it(hostile: tuple[Path, World]) -> None:
    card = (hostile[0] / "card.html").read_text()
    assert "<script" not in card
    assert "default-src 'none'" in card
    assert "http://" not in card.replace("http://www.w3.org", "")
    quality = json.loads((hostile[0] / "quality.json").read_bytes())
    assert quality["groups"]["domain"] == {"host0.test": 2}


def test_an_export_that_stands_is_not_made_again(world: World) -> None:
    recipe, _ = world.recipe()
    world.run(recipe)
    version = plan_version(world.store, recipe, "crawl", [0])
    first = export_shard(world.store, recipe, version, "crawl", 0)
    part = read_part(world.store, recipe.name, version, "crawl", 0)
    assert part is not None
    assert first == {"samples": 2, "bytes": sum(file.size for file in part.files)}
    tar = part.files[1].key
    world.store.write_bytes(tar, b"mark")
    assert export_shard(world.store, recipe, version, "crawl", 0) == first
    assert world.store.read_bytes(tar) == b"mark"


def test_a_shard_that_keeps_nothing_is_exported_empty(world: World) -> None:
    recipe, _ = world.recipe({"gates.too_small.at_least": 100_000})
    world.run(recipe)
    version = plan_version(world.store, recipe, "crawl", [0])
    assert export_shard(world.store, recipe, version, "crawl", 0)["samples"] == 0
    finish_version(world.store, recipe, version, "crawl", [0])
    folder = Path(world.store.root) / "datasets" / "small" / version
    assert pd.read_parquet(folder / "metadata" / "crawl-00000.parquet").empty
    with tarfile.open(folder / "webdataset" / "crawl-00000.tar") as tar:
        assert tar.getmembers() == []


def test_readable_leaves_good_batches_alone() -> None:
    good = pa.RecordBatch.from_pydict({"text": ["plain", None, "a\0b"]})
    assert readable(good) is good
    bad = pa.RecordBatch.from_arrays([pa.array([SURROGATE, None], pa.binary()).view(pa.string())], ["text"])
    assert pc.is_null(readable(bad)["text"]).to_pylist() == [False, True]
    readable(bad).validate(full=True)

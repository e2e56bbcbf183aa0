"""What is published is read by the tools that people train and query with."""

import gzip
import json
import tarfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import duckdb
import polars as pl
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.publish.version import export_shard, finish_version, plan_version
from tests.curation.conftest import World

TEXTS = ["A tabby cat looks at the camera", "A cup of coffee on a wooden table"]


class Published(NamedTuple):
    folder: Path
    images: Path


@pytest.fixture
def published(world: World, tmp_path: Path) -> Published:
    forms = {"publish.pretrain": "json", "publish.instruct": "json", "publish.multi_image": "jsonl.gz"}
    recipe, shards = world.recipe(forms)
    for shard in shards:
        world.run(recipe, shard)
    version = plan_version(world.store, recipe, "crawl", shards)
    for shard in shards:
        export_shard(world.store, recipe, version, "crawl", shard)
    finish_version(world.store, recipe, version, "crawl", shards)
    folder = Path(world.store.root) / "datasets" / "small" / version
    for path in (folder / "webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.11.2
            tar.extractall(tmp_path / "images" / path.stem, **safely)
    return Published(folder, tmp_path / "images")


def test_polars_duckdb_and_pyarrow_datasets_read_the_tables(published: Published) -> None:
    pattern = f"{published.folder}/metadata/*.parquet"
    assert pl.scan_parquet(pattern).select("text").collect()["text"].to_list() == TEXTS * 2
    rows = duckdb.sql(f"select dump, shard, count(*) from '{pattern}' group by all order by shard").fetchall()
    assert rows == [("crawl", 0, 2), ("crawl", 1, 2)]
    assert pads.dataset(published.folder / "metadata").to_table(columns=["key"])["key"].to_pylist() == [
        "000000000000", "000000000001", "000010000000", "000010000001",
    ]  # fmt: skip
    assert pq.read_schema(next((published.folder / "metadata").iterdir())).field("width").type == "int32"


# datasets and its dependencies leave files and loops to the garbage collector
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_streams_tars_tables_and_records(published: Published, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tars = sorted(str(path) for path in (published.folder / "webdataset").iterdir())
    loaded = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train", streaming=True)
    samples = list(loaded)
    assert [sample["txt"] for sample in samples] == TEXTS * 2
    assert min(samples[0]["jpg"].size) == 256
    assert samples[0]["json"]["sha256"]
    cache = str(tmp_path / "cache")
    tables = f"{published.folder}/metadata/*.parquet"
    assert datasets.load_dataset("parquet", data_files=tables, split="train", cache_dir=cache)["text"][:] == TEXTS * 2
    records = f"{published.folder}/pretrain/*.json"
    assert datasets.load_dataset("json", data_files=records, split="train", cache_dir=cache)["caption"][:] == TEXTS * 2


@pytest.mark.filterwarnings("ignore")
def test_open_clip_trains_from_the_tars(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("open_clip_train.data")
    # open_clip wants webdataset <= 0.2.86; newer ones end each tar with a mark that it does not expect
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    arguments = Namespace(
        train_data=f"{published.folder}/webdataset/crawl-{{00000..00001}}.tar",
        train_data_upsampling_factors=None,
        train_num_samples=4,
        dataset_resampled=True,
        batch_size=2,
        workers=1,
        world_size=1,
        seed=0,
    )
    loader = data.get_wds_dataset(
        arguments,
        preprocess_img=lambda picture: picture.convert("RGB").resize((8, 8)).tobytes()[0],
        is_train=True,
        tokenizer=lambda text: [TEXTS.index(text)],
    ).dataloader
    loader.pipeline[0].workers = 0
    found = [text for images, texts in loader for text in texts.tolist() if len(images) == 2]
    assert len(found) == 4
    assert set(found) <= {0, 1}


def test_records_are_read_as_llava_reads_them(published: Published) -> None:
    seen = []
    for path in sorted((published.folder / "instruct").iterdir()):
        for source in json.loads(path.read_text()):
            with Image.open(published.images / source["image"]) as picture:
                assert min(picture.convert("RGB").size) == 256
            human, gpt = source["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            assert human["value"].count("<image>") == 1
            assert "<image>" not in gpt["value"]
            seen.append(gpt["value"])
    assert seen == TEXTS * 2


def test_multi_image_records_have_as_many_marks_as_images(published: Published) -> None:
    with gzip.open(published.folder / "multi_image" / "crawl-00000.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    assert [record["group"] for record in records] == ["page"]
    images = records[0]["images"]
    assert len(images) == 2
    assert all((published.images / image).is_file() for image in images)
    assert records[0]["conversations"][0]["value"].count("<image>") == 2
    assert records[0]["conversations"][1]["value"] == f"1. {TEXTS[0]}\n2. {TEXTS[1]}"


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_validates_and_reads_the_description(published: Published) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(str(published.folder / "croissant.json"))
    assert not dataset.metadata.issues.errors
    texts = [record["samples/text"] for record in dataset.records("samples")]
    assert sorted(texts) == sorted(text.encode() for text in TEXTS * 2)

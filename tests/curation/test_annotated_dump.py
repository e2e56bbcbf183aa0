"""Annotated sets of every form beside a crawl: through all stages, and into one version with it."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data

from curation import dumps
from curation.block import Block, plan
from curation.errors import ConfigError
from curation.evalsets import index_evalset
from curation.local import run_block
from curation.pipeline import saved_recipe
from curation.publish.release import held_back
from curation.publish.version import export_shard, finish_release, plan_release
from curation.recipe import Recipe, parse_recipe
from curation.retry import retry_shards
from curation.runner import read_outcomes
from curation.sources.annotated import AnnotatedSet, AnnotatedShard
from curation.sources.conversations import MAX_CHARS
from curation.stages.extract import Extract
from tests.curation.conftest import PICTURES, World, jpeg

RECIPE = {
    "name": "joint",
    "stages": {
        "extract": {"archive": "warc"},
        "pairs": {"same_url": False},
        "dedup": {"rank": ["pixels"]},
        "safety": {},
        "leakage": {"evalsets": ["held-out"]},
    },
    "gates": {
        "url_rejected": {"column": "url_class", "one_of": ["ok"]},
        "text_too_short": {"column": "n_chars", "at_least": 5},
        "text_placeholder": {"column": "text_class", "one_of": ["ok"]},
        "too_small": {"column": "min_side", "at_least": 64},
        "duplicate_sha256": {"column": "duplicate_kind", "none_of": ["sha256"]},
        "duplicate_phash": {"column": "duplicate_kind", "none_of": ["phash", "url"]},
        "quarantined": {"column": "safety_tag", "one_of": ["safe"]},
        "leak_sha256": {"column": "leak_kind", "none_of": ["sha256"]},
        "leak_phash": {"column": "leak_kind", "none_of": ["phash"]},
    },
    "target": {
        "samples": 10,
        "bars": {"human": {"of": "caption_origin", "statistic": "share", "values": ["human"], "at_least": 0.75}},
    },
}


def build(folder: Path) -> Path:
    """Sets of every form, honest and hostile; returns the file that names them."""
    images = folder / "images"
    images.mkdir(parents=True)
    (folder / "secret.jpg").write_bytes(jpeg(data.astronaut()))
    (images / "link.jpg").symlink_to(folder / "secret.jpg")
    (images / "rocket.jpg").write_bytes(jpeg(data.rocket()))
    (images / "cat.jpg").write_bytes(PICTURES["/cat.jpg"])
    (images / "text.jpg").write_text("<html>no picture</html>")
    coco = {
        "licenses": [{"id": 1, "name": "CC BY 4.0"}],
        "images": [{"id": n, "file_name": f"{name}.jpg", "license": 1} for n, name in enumerate(["rocket", "cat"])],
        "annotations": [
            {"id": 10, "image_id": 0, "caption": "A rocket stands on its launch pad"},
            {"id": 11, "image_id": 1, "caption": "Somebody's cat looks up"},
        ],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    said = [("brick.jpg", "A wall of grey bricks"), ("../secret.jpg", "An astronaut smiles"), ("link.jpg", "The same")]
    said += [("/etc/passwd", "The users of this machine"), ("text.jpg", "A page that poses as a picture")]
    (images / "camera.jpg").write_bytes(jpeg(data.camera()))
    said += [("camera.jpg", "a man with his camera " * 25_000), ("astronaut.jpg", "porn, says the text at least")]
    (images / "astronaut.jpg").write_bytes(jpeg(data.astronaut()))
    records = [
        {"id": str(n), "image": image, "conversations": [{"from": "gpt", "value": text}]}
        for n, (image, text) in enumerate(said)
    ]
    records[5]["conversations"] = [
        {"from": "human", "value": "Who is it?"},
        {"from": "gpt", "value": said[5][1][: MAX_CHARS // 2]},
    ]
    (folder / "llava.json").write_text(json.dumps(records))
    (folder / "table.csv").write_text("image,caption\nhttp://host9.test/moon.jpg,The moon through a telescope\n")
    files = [{"bytes": jpeg(data.immunohistochemistry()), "path": None}, {"bytes": b"", "path": None}]
    table = pa.table({"image": files, "text": ["A stained tissue under the microscope", "Nothing is here"]})
    pq.write_table(table, folder / "inside.parquet")
    with tarfile.open(folder / "00000.tar", "w") as out:
        for name, content in (
            ("0.jpg", jpeg(data.retina())),
            ("0.txt", b"The retina of an eye"),
            ("../1.jpg", jpeg(data.retina())),
            ("../1.txt", b"A name that leads out of the tar"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    sets = [
        {"name": "coco", "path": "coco.json", "images": "images", "origin": "human"},
        {"name": "llava", "path": "llava.json", "images": "images", "origin": "synthetic", "licence": "CC-BY-NC-4.0"},
        {"name": "table", "path": "table.csv", "origin": "human"},
        {"name": "inside", "path": "inside.parquet", "origin": "human"},
        {"name": "tars", "path": "*.tar", "origin": "human", "licence": "CC0-1.0"},
    ]
    path = folder / "sets.yaml"
    path.write_text(json.dumps({"sets": sets}))
    return path


class Unseen:
    def begin(self, step: str, shards: int) -> None:
        pass

    def move(self, step: str, shard: int, rows: int, of: int) -> None:
        pass

    def finish(self, step: str, shard: int) -> None:
        pass


def planned(world: World, dump: str, source: str) -> tuple[Recipe, Block]:
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"]["download"] = {"connect_to": world.connect_to, "decoders": 1}
    block = plan(world.store, parse_recipe(recipe), dump, source)
    return saved_recipe(world.store, block.recipe_key), block


def outcomes(world: World, recipe: Recipe, block: Block) -> dict[str, Any]:
    found = {}
    for shard in block.shards:
        for batch in read_outcomes(world.store, recipe, block.dump, shard, ["annotated_set", "annotated_item"]):
            for row in batch.to_pylist():
                found[f"{row['annotated_set']} {row['annotated_item']}"] = row["reason"]
    return found


def test_annotated_sets_pass_every_stage_and_join_the_crawl(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    moon = jpeg(data.moon())
    monkeypatch.setitem(PICTURES, "/moon.jpg", moon)
    (held_out / "moon.jpg").write_bytes(moon)
    index_evalset(world.store, "held-out", held_out)
    recipe, crawl = planned(world, "crawl", str(world.crawl))
    assert run_block(world.store, recipe, crawl, Unseen(), until="leakage").failed == {}
    recipe, block = planned(world, "sets", str(build(tmp_path / "sets")))
    assert run_block(world.store, recipe, block, Unseen(), until="leakage").failed == {}

    assert outcomes(world, recipe, block) == {
        "coco 10": None,
        "coco 11": "duplicate_sha256",  # of the crawl's cat, in another dump
        "llava 0": "picture_missing",
        "llava 1": "picture_refused",
        "llava 2": "picture_refused",
        "llava 3": "picture_refused",
        "llava 4": "not_an_image",
        "llava 5": None,
        "llava 6": "quarantined",
        "table 0": "leak_sha256",
        "inside 0": None,
        "inside 1": "picture_missing",
        "tars 0": None,
        "tars ../1": "picture_refused",
    }

    sources = {one.dump: one.shards for one in (crawl, block)}
    version = plan_release(world.store, recipe, sources)
    for dump, shards in sources.items():
        for shard in shards:
            export_shard(world.store, recipe, version, dump, shard)
    key = finish_release(world.store, recipe, version)
    assert held_back(world.store, key) == []
    manifest = json.loads(world.store.read_bytes(key))
    assert [goal["told"] for goal in manifest["target"]] == [
        "6 of 10 samples (60.0%): 4 more are needed",
        "0.5: 0.25 below the bar; 6 more samples that count would do",
    ]
    rows = []
    for file in manifest["files"]:
        if "/metadata/sets" in file["key"]:
            with world.store.open_parquet(file["key"]) as table:
                assert "picture_ref" not in table.schema_arrow.names
                rows += table.read().to_pylist()
    asked = {row["url"]: json.loads(row["conversation"])["turns"][0]["value"] for row in rows if row["conversation"]}
    assert asked == {"annotated://llava/camera.jpg": "<image>\nWho is it?"}
    told = {(row["url"], row["licence"], row["text_origin"]) for row in rows}
    assert told == {
        ("annotated://coco/rocket.jpg", "CC BY 4.0", "human"),
        ("annotated://llava/camera.jpg", "CC-BY-NC-4.0", "synthetic"),
        ("annotated://inside/inside.parquet/0", None, "human"),
        ("annotated://tars/00000.tar/0.jpg", "CC0-1.0", "human"),
    }

    # a picture that was missing is there on another day
    (tmp_path / "sets" / "images" / "brick.jpg").write_bytes(jpeg(data.brick()))
    assert sum(retry_shards(world.store, recipe, "sets", block.shards).healed.values()) == 1


def test_a_book_for_a_caption_and_a_broken_line_cost_nothing_else(tmp_path: Path) -> None:
    one = AnnotatedSet(name="long", path="long.jsonl", origin="human")
    lines = json.dumps({"image": "a.jpg", "caption": "a word " * 100_000}) + '\n{"image": \n'
    shard = AnnotatedShard(annotated=one, path="long.jsonl", form="llava")
    tally: Counter[str] = Counter()
    (batch,) = Extract().read(io.BytesIO(lines.encode()), shard.location, tally)
    (row,) = batch.to_pylist()
    assert row["n_chars"] == 2000
    assert len(row["alt"]) == 2000
    assert (row["text_origin"], row["text_kind"], row["url_class"]) == ("human", "annotated", "ok")
    assert tally["records_bad"] == 1


def test_a_dump_is_a_crawl_or_annotated_sets(world: World, tmp_path: Path) -> None:
    planned_sets = str(build(tmp_path / "sets"))
    dumps.register(world.store, "crawl", str(world.crawl), "warc")
    with pytest.raises(ConfigError, match="give the annotated sets a dump of their own"):
        dumps.register(world.store, "crawl", planned_sets, "warc")
    assert dumps.register(world.store, "sets", planned_sets, "warc") == 5
    # the same list under any recipe, and also when the source is left out on another day
    assert dumps.register(world.store, "sets", "sets", "wat") == 5
    assert dumps.archives_of(world.store, "sets", "wat") == dumps.archives_of(world.store, "sets", "url_table")

"""A video, sampled and captioned, in a published version: as a record of several pictures."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from skimage import data, transform

pytest.importorskip("av", reason="needs the extra: pip install curation[video]")

import av

from curation.block import plan
from curation.local import run_block
from curation.pipeline import saved_recipe
from curation.publish.version import export_shard, finish_release, plan_release
from curation.recipe import parse_recipe
from curation.store import Store
from curation.video.records import write_videos
from tests.curation.test_annotated_dump import Unseen

RECIPE = {
    "name": "videos",
    "stages": {"extract": {}, "download": {"decoders": 1}, "dedup": {"rank": ["pixels"]}},
    "gates": {"duplicate_phash": {"column": "duplicate_kind", "none_of": ["sha256", "phash", "url"]}},
    "publish": {"multi_image": "json"},
}


def save_film(path: Path, pictures: Sequence[np.ndarray]) -> Path:
    """A picture a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for picture in pictures:
            small = (transform.resize(picture, (128, 160)) * 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_is_published_as_a_record_of_its_frames(tmp_path: Path) -> None:
    moving = [data.astronaut(), data.coffee(), data.rocket()]
    films = [save_film(tmp_path / "moving.mp4", moving), save_film(tmp_path / "still.mp4", [data.chelsea()] * 3)]
    names = iter(["An astronaut", "Coffee", "A rocket", "A cat", "A cat", "A cat"])
    write_videos(films, tmp_path / "films", count=3, describe=lambda images: [next(names) for _ in images])
    sets = {"sets": [{"name": "films", "path": "films/records.jsonl", "images": "films", "origin": "synthetic"}]}
    (tmp_path / "sets.yaml").write_text(json.dumps(sets))

    store = Store(str(tmp_path / "store"))
    block = plan(store, parse_recipe(RECIPE), "films", str(tmp_path / "sets.yaml"))
    recipe = saved_recipe(store, block.recipe_key)
    assert run_block(store, recipe, block, Unseen(), until="dedup").failed == {}
    version = plan_release(store, recipe, {"films": block.shards})
    for shard in block.shards:
        export_shard(store, recipe, version, "films", shard)
    manifest = json.loads(store.read_bytes(finish_release(store, recipe, version)))

    (key,) = [file["key"] for file in manifest["files"] if "/multi_image/" in file["key"]]
    (record,) = json.loads(store.read_bytes(key))  # the still film's frames are duplicates, so it is no film any more
    assert len(record["images"]) == 3
    assert record["conversations"][0]["value"].count("<image>") == 3
    assert record["conversations"][1]["value"] == "1. An astronaut\n2. Coffee\n3. A rocket"

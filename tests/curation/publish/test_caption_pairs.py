"""A picture of which both texts are kept goes out as two pairs, and is one sample everywhere else."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

from curation.publish.export import export_shard
from curation.publish.parts import read_part
from curation.publish.version import finish_version, latest, plan_version
from curation.takedown import take_down
from curation.tombstones import targets_of
from tests.curation.conftest import World
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm


def test_two_captions_are_two_pairs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = {"captioner": str(save_tiny_blip(tmp_path / "blip")), "matcher": str(save_tiny_itm(tmp_path / "itm"))}
    recipe, _ = world.recipe(
        {
            "stages.caption": {**models, "policy": "both_above_threshold", "threshold": 0},
            "gates.caption_low": {"column": "caption_source", "one_of": ["text", "synthetic"]},
            "publish": {"pretrain": "jsonl", "instruct": "jsonl"},
        }
    )
    receipts = world.run(recipe)
    assert set(receipts["caption"].models) == {"captioner", "matcher", "sampling"}
    version = plan_version(world.store, recipe, "crawl", [0])
    samples = export_shard(world.store, recipe, version, "crawl", 0)["samples"]
    finish_version(world.store, recipe, version, "crawl", [0])
    folder = Path(world.store.root) / "datasets" / "small" / version
    rows = pq.read_table(folder / "metadata" / "crawl-00000.parquet").to_pylist()
    assert len(rows) == samples == 2  # samples are conserved: a row each
    expected = [
        (row["key"] + suffix, text) for row in rows for suffix, text in zip(("", "_2"), row["captions"], strict=True)
    ]
    with tarfile.open(folder / "webdataset" / "crawl-00000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert [
        (name.removesuffix(".txt"), text.decode()) for name, text in files.items() if name.endswith("txt")
    ] == expected
    sources = Counter(json.loads(text)["caption_source"] for name, text in files.items() if name.endswith("json"))
    assert sources == {"text": 2, "synthetic": 2}
    assert files[f"{rows[0]['key']}.jpg"] == files[f"{rows[0]['key']}_2.jpg"]
    pretrain = [json.loads(line) for line in io.StringIO((folder / "pretrain" / "crawl-00000.jsonl").read_text())]
    assert [(record["image"], record["caption"]) for record in pretrain] == [
        (f"crawl-00000/{key}.jpg", text) for key, text in expected
    ]
    instruct = [json.loads(line) for line in io.StringIO((folder / "instruct" / "crawl-00000.jsonl").read_text())]
    assert len({record["id"] for record in instruct}) == 4
    part = read_part(world.store, "small", version, "crawl", 0)
    assert part is not None
    assert part.quality["samples"] == 2
    assert part.quality["pairs"] == 4
    assert "(4 image-text pairs)" in next(folder.glob("**/*.html")).read_text()
    taken = rows[0]
    take_down(world.store, targets_of([("sample_id", taken["sample_id"])]))
    folder = folder.parent / latest(world.store, "small")
    with tarfile.open(folder / "webdataset" / "crawl-00000.tar") as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == {rows[1]["key"], f"{rows[1]['key']}_2"}
    for form in ("pretrain", "instruct"):
        assert taken["key"] not in (folder / form / "crawl-00000.jsonl").read_text()

"""Annotated sets whose records and pictures lie in a bucket."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.sources.annotated import parse_location, place_json, read_records
from curation.sources.annotated_pictures import Unreadable, read_picture
from curation.sources.archives import list_archives, open_archive
from tests.curation.conftest import PICTURES
from tests.s3.servers import Server, moto_server, use

__all__ = ["moto_server"]
pytestmark = pytest.mark.s3
CAT = PICTURES["/cat.jpg"]


def test_records_and_pictures_are_read_from_a_bucket(
    moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(moto_server.url, monkeypatch)
    root = moto_server.root().replace("/store", "/sets")
    table, tar = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": CAT}], "text": ["A cat"]}), table)
    with tarfile.open(fileobj=tar, mode="w") as out:
        for name, content in (("0.jpg", CAT), ("0.txt", b"A cat")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    lines = [{"image": name, "caption": "A cat"} for name in ("x/cat.jpg", "absent.jpg", "../store/secret.jpg")]
    objects = {
        "a.jsonl": "\n".join(map(json.dumps, lines)).encode(),
        "images/x/cat.jpg": CAT,
        "b.parquet": table.getvalue(),
        "c.tar": tar.getvalue(),
    }
    for name, body in objects.items():
        moto_server.client.put_object(Bucket=moto_server.bucket, Key=f"{root.split('/', 3)[3]}/{name}", Body=body)
    sets = [{"name": name[0], "path": f"{root}/{name}", "origin": "human"} for name in objects if "/" not in name]
    sets[0]["images"] = f"{root}/images"
    (tmp_path / "sets.yaml").write_text(json.dumps({"sets": sets}))

    found = {}
    for location in list_archives(str(tmp_path / "sets.yaml"), "annotated"):
        shard = parse_location(location)
        with open_archive(location) as stream:
            for record in read_records(stream, shard, Counter()):
                place = place_json(shard, record)
                assert place
                try:
                    found[shard.annotated.name, record.picture] = read_picture(place, 1 << 20) == CAT
                except Unreadable as err:
                    found[shard.annotated.name, record.picture] = str(err)
    assert found == {
        ("a", "x/cat.jpg"): True,
        ("a", "absent.jpg"): "picture_missing",
        ("a", "../store/secret.jpg"): "picture_refused",
        ("b", "b.parquet/0"): True,
        ("c", "c.tar/0.jpg"): True,
    }

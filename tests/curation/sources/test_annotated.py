import gzip
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import BadShardError, ConfigError
from curation.sources import annotated
from curation.sources.annotated import Record, parse_location, read_records
from curation.sources.annotated_pictures import Unreadable, read_picture
from curation.sources.archives import list_archives, open_archive

COCO = {
    "info": {"year": 2026},
    "licenses": [{"id": 3, "url": "https://creativecommons.org/licenses/by/4.0/"}],
    "images": [
        {"id": 7, "file_name": "a.jpg", "license": 3, "coco_url": "http://images.test/a.jpg"},
        {"id": 8, "file_name": "b.jpg"},
        {"id": 9, "file_name": "../../etc/passwd"},
        {"id": [1], "file_name": "c.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 8, "caption": "B one"},
        {"id": 2, "image_id": 7, "caption": "A one"},
        {"id": 3, "image_id": 8, "caption": "B two"},
        {"id": 4, "image_id": 9, "caption": "out"},
        {"id": 5, "image_id": 8, "caption": 5},
        {"id": 6, "image_id": 999, "caption": "of no picture"},
        "nonsense",
    ],
}


def sets(folder: Path, **one: str) -> str:
    path = folder / "sets.yaml"
    path.write_text(json.dumps({"sets": [{"name": "one", "origin": "human", **one}]}))
    return str(path)


def records(source: str) -> tuple[list[Record], Counter[str]]:
    found: list[Record] = []
    tally: Counter[str] = Counter()
    for location in list_archives(source, "annotated"):
        assert annotated.is_location(location)
        with open_archive(location) as stream:
            found += read_records(stream, parse_location(location), tally)
    return found, tally


def told(source: str) -> list[tuple[str, str]]:
    return [(record.picture, record.text) for record in records(source)[0]]


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as out:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)


def test_coco_captions_of_a_picture_stay_together(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    found, tally = records(sets(tmp_path, path="captions.json", images="."))
    assert [(one.picture, one.text, one.item) for one in found] == [
        ("a.jpg", "A one", "2"),
        ("b.jpg", "B one", "1"),
        ("b.jpg", "B two", "3"),
        ("../../etc/passwd", "out", "4"),
    ]
    assert found[0].licence == "https://creativecommons.org/licenses/by/4.0/"
    assert found[1].licence == ""
    assert tally == {"records": 4, "records_bad": 3}
    # without a folder of pictures a picture's own address is taken
    assert told(sets(tmp_path, path="captions.json"))[0][0] == "http://images.test/a.jpg"


def test_shards_hold_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    lines = "".join(json.dumps({"image": f"{n}.jpg", "caption": f"text {n}"}) + "\n" for n in range(5))
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "table.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,text {n}\n" for n in range(5)))
    whole = [told(sets(tmp_path, path=name, images=".")) for name in ("captions.json", "lines.jsonl", "table.csv")]
    monkeypatch.setattr(annotated, "SHARD_RECORDS", 2)
    assert len(list_archives(sets(tmp_path, path="lines.jsonl"), "annotated")) == 3
    parts = [told(sets(tmp_path, path=name, images=".")) for name in ("captions.json", "lines.jsonl", "table.csv")]
    assert parts == whole


@pytest.mark.parametrize("form", ["array", "array.gz", "lines", "lines.gz"])
def test_llava_records(tmp_path: Path, form: str) -> None:
    data: list[Any] = [
        {
            "id": "a",
            "image": "a.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A cat."},
                {"from": "human", "value": "Its colour?"},
                {"from": "gpt", "value": "It is <image> grey."},
            ],
        },
        {"image": "b.jpg", "caption": "A dog", "license": "CC0"},
        {"id": "text alone", "conversations": [{"from": "gpt", "value": "yes"}]},
        {"image": ["a.jpg", "b.jpg"], "caption": "two pictures"},
        {
            "images": ["e.jpg", "f.jpg"],
            "conversations": [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "One is red."}],
        },
        {"image": "c.jpg", "conversations": "nonsense"},
        {"image": "d.jpg", "conversations": [{"from": "gpt", "value": None}]},
        7,
    ]
    text = json.dumps(data) if form.startswith("array") else "\n".join(map(json.dumps, data)) + "\n\n{broken\n"
    suffix = ".json" if form.startswith("array") else ".jsonl"
    packed = form.endswith(".gz")
    path = tmp_path / f"llava{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found, tally = records(sets(tmp_path, path=path.name))
    assert [(one.picture, one.text, one.item, one.licence) for one in found] == [
        ("a.jpg", "A cat. It is grey.", "a", ""),
        ("b.jpg", "A dog", "1", "CC0"),
        ("e.jpg", "One is red.", "4", ""),
        ("f.jpg", "One is red.", "4", ""),
    ]
    assert [one.conversation and (one.conversation.picture, one.conversation.pictures) for one in found] == [
        (0, 1), None, (0, 2), (1, 2),
    ]  # fmt: skip
    assert tally["records_without_picture"] == 1
    assert tally["records_bad"] == 4 + form.startswith("lines")


def test_tables_of_paths_and_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file_name,caption,license\nx/a.jpg,A cat,CC0\n,no picture,\n")
    found, tally = records(sets(tmp_path, path="a.csv"))
    assert found == [Record(0, "x/a.jpg", "A cat", "0", "CC0", {})]
    assert tally["records_without_picture"] == 1
    images = [{"bytes": b"first", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"third", "path": None}]
    pq.write_table(
        pa.table({"image": images, "text": ["one", "two", "three"]}), tmp_path / "b.parquet", row_group_size=2
    )
    found, _ = records(sets(tmp_path, path="b.parquet"))
    assert [(one.picture, one.text) for one in found][2] == ("b.parquet/2", "three")
    assert read_picture(json.dumps(found[2].place), 10) == b"third"
    with pytest.raises(Unreadable, match="picture_missing"):
        read_picture(json.dumps(found[1].place), 10)
    with pytest.raises(Unreadable, match="too_large"):
        read_picture(json.dumps(found[0].place), 4)


def test_webdataset(tmp_path: Path) -> None:
    tar(
        tmp_path / "00000.tar",
        [
            ("000.jpg", b"picture 0"),
            ("000.txt", b"A cat"),
            ("000.json", b'{"id": "x7", "license": "CC0"}'),
            ("deep/001.0.png", b"not a picture of ours"),
            ("002.png", b"picture 2"),
            ("002.json", b'{"caption": "A dog"}'),
            ("../003.jpg", b"picture 3"),
            ("../003.txt", b"out of the folder"),
            ("004.jpg", b"picture 4"),
            ("004.json", b"{broken"),
        ],
    )
    found, tally = records(sets(tmp_path, path="00000.tar"))
    assert [(one.picture, one.text, one.item, one.licence) for one in found] == [
        ("00000.tar/000.jpg", "A cat", "x7", "CC0"),
        ("00000.tar/002.png", "A dog", "002", ""),
        ("00000.tar/../003.jpg", "out of the folder", "../003", ""),
    ]
    assert read_picture(json.dumps(found[1].place), 100) == b"picture 2"
    with pytest.raises(Unreadable, match="picture_refused"):
        read_picture(json.dumps(found[2].place), 100)
    assert tally["records"] == 5
    assert tally["records_without_picture"] == 1
    assert tally["records_bad"] == 3  # the link, the broken JSON, and its picture without a text


@pytest.mark.parametrize(
    "path", ["../secret", "a/../../secret", "/etc/passwd", "link", "folder/secret", "..\\secret", "C:\\x", "\0", ""]
)
def test_no_reference_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "images"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(Unreadable, match="picture_refused"):
        read_picture(json.dumps({"root": str(root), "path": path}), 100)


def test_what_is_no_plain_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "good.jpg").write_bytes(b"good")
    (tmp_path / "inside.jpg").symlink_to("good.jpg")
    for name in ("pipe.jpg", "folder.jpg", "absent.jpg", "good.jpg/x", "x" * 300, "\ud800"):
        with pytest.raises(Unreadable, match="picture_missing"):
            read_picture(json.dumps({"root": str(tmp_path), "path": name}), 100)
    assert read_picture(json.dumps({"root": str(tmp_path), "path": "./inside.jpg"}), 100) == b"good"
    with pytest.raises(Unreadable, match="too_large"):
        read_picture(json.dumps({"root": str(tmp_path), "path": "good.jpg"}), 3)


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_urls_of_pictures_have_no_step_upwards_that_was_let_through(path: str) -> None:
    url = annotated.picture_url("one", path)
    if not path.startswith(("http://", "https://")):
        assert url.startswith("annotated://one/")
        assert url.isascii()
        assert annotated.leads_out(path) or ".." not in url.split("/")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "x.json: expected LLaVA's records"),
        ('{"images": [', "x.json: expected COCO captions"),
        ('{"images": [], "annotations": []}', "found no images or no annotations with a caption"),
        ("[]", "expected records"),
        ("", "expected records"),
        ('[{"a": NaN}]', "x.json: expected LLaVA's records"),
    ],
)
def test_files_that_are_not_what_they_should_be_stop_before_any_work(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        list_archives(sets(tmp_path, path="x.json"), "annotated")


def test_a_file_that_breaks_after_it_was_listed_fails_its_shard(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"image": "a.jpg", "caption": "A cat"}] * 3))
    source = sets(tmp_path, path="x.json")
    (location,) = list_archives(source, "annotated")
    path.write_text(path.read_text()[:60])
    with open_archive(location) as stream, pytest.raises(BadShardError, match=r"x\.json: expected LLaVA's records"):
        list(read_records(stream, parse_location(location), Counter()))
    (tmp_path / "y.tar").write_bytes(b"\x1f\x8b nonsense")
    (location,) = list_archives(sets(tmp_path, path="y.tar"), "annotated")
    with open_archive(location) as stream, pytest.raises(BadShardError, match="a tar that is not compressed"):
        list(read_records(stream, parse_location(location), Counter()))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"path": "absent.json"}, "path: .*absent.json names no file"),
        ({"path": "x.csv", "images": "absent"}, "images: .*absent is no folder"),
        ({"path": "x.csv"}, "expected a column image or image_path"),
        (
            {"path": "x.csv", "image_column": "b", "text_column": "z"},
            "expected a column z, found a, b; name it: text_column",
        ),
        ({"path": "x.csv", "form": "xml"}, r"sets\.0\.form"),
        ({"path": "x.csv", "origin": "martian"}, r"sets\.0\.origin: Input should be 'human' or 'synthetic'"),
        ({"path": "x.csv", "name": "No Name"}, r"sets\.0\.name"),
        ({"path": "x.csv", "licnce": "CC0"}, r"sets\.0\.licnce: Extra inputs are not permitted"),
        ({"path": "x.txt"}, "name the set's form"),
    ],
)
def test_wrong_sets_name_the_field(tmp_path: Path, one: dict[str, str], message: str) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "x.txt").write_text("?")
    with pytest.raises(ConfigError, match=message):
        list_archives(sets(tmp_path, **one), "annotated")

"""Evaluation sets in every form they come in."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from curation.errors import ConfigError
from curation.evalsets import SPACE_KEY, index_evalset
from curation.store import Store
from curation.text.ngrams import ngrams


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


CAT, COFFEE = encoded(data.chelsea()[:200, :200]), encoded(data.coffee()[:200, :200])
QUESTION = "What colour are the eyes of the cat that looks at us?"


def folder(at: Path) -> Path:
    (at / "sub").mkdir(parents=True)
    (at / "a.png").write_bytes(CAT)
    (at / "sub" / "b.png").write_bytes(COFFEE)
    return at


def parquet(at: Path) -> Path:
    at.mkdir()
    pq.write_table(pa.table({"jpg": [CAT, COFFEE], "question": [QUESTION, "short"]}), at / "0.parquet")
    return at


def huggingface_on_disk(at: Path) -> Path:
    (at / "test").mkdir(parents=True)
    (at / "dataset_dict.json").write_text('{"splits": ["test"]}')
    (at / "test" / "state.json").write_text("{}")
    images = [{"bytes": CAT, "path": None}, {"bytes": COFFEE, "path": "b.png"}]
    table = pa.table({"image": images, "question": [QUESTION, ""], "answers": [["green", "of the"], []], "id": [7, 8]})
    with pa.ipc.new_stream(str(at / "test" / "data-00000-of-00001.arrow"), table.schema) as out:
        out.write_table(table)
    return at


def webdataset(at: Path) -> Path:
    at.mkdir()
    with tarfile.open(at / "00.tar", "w") as archive:
        for name, content in [
            ("x/1.png", CAT), ("x/1.json", json.dumps({"question": QUESTION}).encode()), ("x/2.png", COFFEE),
            ("x/2.txt", b"a cup of coffee"),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return at


def llava(at: Path) -> Path:
    folder(at)
    said = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "Green."}]
    rows = [{"id": "1", "image": "a.png", "conversations": said}, {"id": "2", "image": "sub/b.png"}]
    (at / "set.json").write_text(json.dumps(rows))
    return at / "set.json"


def vqa(at: Path) -> Path:
    at.mkdir()
    (at / "COCO_val2014_000000000009.png").write_bytes(CAT)
    (at / "COCO_val2014_000000000010.png").write_bytes(COFFEE)
    questions = [{"image_id": 9, "question": QUESTION, "question_id": 90}, {"image_id": 10, "question_id": 91}]
    answers = [{"question_id": 90, "answers": [{"answer": "green"}]}]
    (at / "q.json").write_text(json.dumps({"questions": questions, "annotations": answers}))
    return at / "q.json"


def json_lines(at: Path) -> Path:
    folder(at)
    rows = [{"image": "a.png", "question": QUESTION}, {"image": "sub/b.png"}]
    (at / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return at / "set.jsonl"


FORMS = [folder, parquet, huggingface_on_disk, webdataset, llava, vqa, json_lines]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_hashes_and_texts(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    store = Store(tmp_path / "store")
    found = index_evalset(store, "mine", form(tmp_path / "set"))
    key = found.key
    assert (found.items, found.pictures, found.texts) == (2, 2, 0 if form is folder else found.texts or -1)
    table = store.open_parquet(key).read()
    assert table["sha256"].to_pylist() == [hashlib.sha256(image).hexdigest() for image in (CAT, COFFEE)]
    assert table["phash_spread"].to_pylist()[0] > 4
    assert len(set(table["item"].to_pylist())) == 2
    assert Image.open(io.BytesIO(table["thumbnail"][0].as_py())).size == (96, 96)
    if form is not folder:
        assert set(ngrams(QUESTION)) <= set(table["ngrams"][0].as_py())
    assert store.read_bytes("evalsets/mine/current").decode() == key
    assert index_evalset(store, "mine", tmp_path / "set" if form in FORMS[:4] else form_file(tmp_path)) == found


def form_file(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "set").iterdir() if path.suffix in (".json", ".jsonl"))


def test_descriptors_and_the_space_they_are_in(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def describe(pictures: object) -> np.ndarray:
        return np.array([picture.mean(axis=(0, 1)) / 255 for picture in pictures])  # type: ignore[attr-defined]

    key = index_evalset(store, "mine", folder(tmp_path / "set"), describe=describe, space="colour", thumbnail_px=0).key
    table = store.open_parquet(key)
    assert table.schema_arrow.metadata[SPACE_KEY] == b"colour"
    assert np.allclose(
        table.read()["embedding"][0].as_py(), data.chelsea()[:200, :200].mean(axis=(0, 1)) / 255, atol=2e-3
    )
    assert table.read()["thumbnail"].null_count == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no picture and no text"),
        ({"a.png": b"no picture"}, "a.png"),
        ({"a.json": b'{"x": 1}'}, "expected a list of records"),
        ({"a.json": b'[{"image": "absent.jpg"}]'}, "absent.jpg of record 0"),
        ({"a.json": b'[{"image_id": 7, "question": "what?"}]', "a_000.PNG": CAT}, "no picture 7 of record 0"),
        ({"a.json": b"[{"}, "a.json: can't be read as an evaluation set: JSONDecodeError"),
        ({"a.json": b"\xff\xfe"}, "a.json: can't be read as an evaluation set: UnicodeDecodeError"),
        ({"a.json": b"[7]"}, "a.json: can't be read"),
        ({"a.parquet": b"no table"}, "a.parquet: can't be read"),
        ({"a.tar": b"no archive"}, "a.tar: can't be read"),
    ],
)
def test_a_set_with_holes_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "set").mkdir()
    for name, content in files.items():
        (tmp_path / "set" / name).write_bytes(content)
    path = next(((tmp_path / "set" / name) for name in files if name.endswith(".json")), tmp_path / "set")
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match=message):
        index_evalset(store, "mine", path)
    assert list(store.entries("evalsets/")) == []

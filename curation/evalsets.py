"""Evaluation sets in the store: what leakage compares against.

An index is one Parquet object evalsets/{name}/{digest}.parquet with a row an item; `current` names the newest. A
recipe's pin names the digest, so a later index of the same set does not change an old result. Of a picture it holds
hashes, if asked for a descriptor, and a thumbnail for the report.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import ConfigError
from curation.images.decode import PICTURE_SUFFIXES, Undecodable, decode_picture, measure_picture
from curation.schema import schema
from curation.store import Store
from curation.text.ngrams import ngrams

EVALSET = pa.schema(
    [
        pa.field("item", pa.string()),
        *schema("sha256", "phash", "phash_spread"),
        pa.field("text", pa.string()),
        pa.field("ngrams", pa.list_(pa.int64())),
        pa.field("embedding", pa.list_(pa.float16())),
        pa.field("thumbnail", pa.binary()),
    ]
)
SPACE_KEY = b"curation.embedding_space"
"""In the footer: which vectors `embedding` can be compared with; see models.clip.embedding_space."""

_BATCH = 256
_IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "img", "picture")
_ID_COLUMNS = ("id", "question_id", "questionId", "image_id", "key", "filename", "file_name")
_NOT_TEXT = frozenset([*_ID_COLUMNS, "image", "image_path", "path", "url", "split", "source", "from", "__key__"])


class Item(NamedTuple):
    """One item of an evaluation set: a picture, texts (questions, answers, captions), or both."""

    name: str
    image: bytes | None
    texts: Sequence[str]


class Indexed(NamedTuple):
    """An index in the store, and how many items of the set have a picture, how many a text."""

    key: str = ""
    items: int = 0
    pictures: int = 0
    texts: int = 0

    def and_also(self, items: Sequence[Item]) -> Indexed:
        """With these items counted too."""
        return Indexed(
            self.key,
            self.items + len(items),
            self.pictures + sum(item.image is not None for item in items),
            self.texts + sum(any(item.texts) for item in items),
        )


Describe = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Descriptors of pictures: uint8 (h, w, 3) each -> float (n, d), rows of norm 1."""


def index_evalset(
    store: Store,
    name: str,
    path: Path,
    *,
    images: Path | None = None,
    describe: Describe | None = None,
    space: str = "",
    thumbnail_px: int = 96,
) -> Indexed:
    """Index an evaluation set under a name; tell the index's key and what is in it.

    path          a folder of pictures, of Parquet files, of WebDataset tars or saved by `datasets` (save_to_disk);
                  one such file; or JSON / JSON lines of LLaVA's or VQA's form
    images        where a JSON's pictures lie; None: beside it
    describe      embeds pictures, in `space`; None: hashes and texts only
    thumbnail_px  longer side of the thumbnails that the report shows; 0: none are kept
    raises        ConfigError when there is nothing to index, a file can't be read, or a picture is missing or does
                  not decode: a set with holes protects nothing
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"evaluation set {name!r}: name it by letters, digits, dots, dashes and underscores")
    found, identity = Indexed(), hashlib.blake2b(f"{space}\0{thumbnail_px}".encode(), digest_size=16)
    items = items_of(path, images)
    schema = EVALSET.with_metadata({SPACE_KEY: space.encode()})
    with tempfile.TemporaryDirectory() as folder:  # a million thumbnails are gigabytes
        spooled = Path(folder) / "index.parquet"
        with pq.ParquetWriter(spooled, schema, compression="zstd") as writer:
            while batch := list(islice(items, _BATCH)):
                table = _measured(name, batch, describe, thumbnail_px)
                identity.update(repr([batch[0].name, len(batch), table["sha256"].to_pylist()]).encode())
                identity.update(repr([item.texts for item in batch]).encode())
                writer.write_table(table)
                found = found.and_also(batch)
        if not found.pictures and not found.texts:
            raise ConfigError(f"evaluation set {name}: no picture and no text in {path}")
        key = f"evalsets/{name}/{identity.hexdigest()[:12]}.parquet"
        if not store.exists(key):
            store.write_file(key, spooled)
    store.write_bytes(f"evalsets/{name}/current", key.encode())
    return found._replace(key=key)


def clip_describer(model: str, pretrained: str = "") -> tuple[Describe, str]:
    """What embeds an evaluation set's pictures with a CLIP model, and the embedding space."""
    from curation.models.clip import embedding_space, load_clip

    return load_clip(model, pretrained or None).embed_images, embedding_space(model, pretrained or None)


def items_of(path: Path, images: Path | None = None) -> Iterator[Item]:
    """Items of an evaluation set on disk, its form told by what lies there. Raises ConfigError for anything else."""
    if path.is_file():
        yield from _file(path, images)
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if any(file.name in ("dataset_dict.json", "state.json") for file in files):
        tables = [file for file in files if file.suffix == ".arrow"]
    else:
        tables = [file for file in files if file.suffix in (".parquet", ".tar")]
    if tables:
        for file in tables:
            for item in _file(file, images):
                yield item._replace(name=f"{file.relative_to(path).as_posix()}/{item.name}")
        return
    for file in files:
        if file.suffix.lower() in PICTURE_SUFFIXES:
            yield Item(file.relative_to(path).as_posix(), file.read_bytes(), ())


def _measured(name: str, items: list[Item], describe: Describe | None, thumbnail_px: int) -> pa.Table:
    columns: dict[str, list[Any]] = {field: [None] * len(items) for field in EVALSET.names}
    pixels: dict[int, np.ndarray] = {}
    for at, item in enumerate(items):
        columns["item"][at] = item.name
        columns["text"][at] = "\n".join(item.texts) or None
        columns["ngrams"][at] = sorted({number for text in item.texts for number in ngrams(text)})
        if item.image is None:
            continue
        columns["sha256"][at] = hashlib.sha256(item.image).hexdigest()
        try:
            columns["phash"][at], columns["phash_spread"][at] = measure_picture(item.image, item.name)
            if describe is not None:
                pixels[at] = pixels_of(item.image)
            if thumbnail_px:
                columns["thumbnail"][at] = thumbnail(item.image, thumbnail_px)
        except Undecodable as err:
            raise ConfigError(f"evaluation set {name}: {err}") from err
    if describe is not None and pixels:
        for at, vector in zip(pixels, describe(list(pixels.values())), strict=True):
            columns["embedding"][at] = vector.astype(np.float16)
    return pa.table(columns, schema=EVALSET)


def pixels_of(data: bytes) -> np.ndarray:
    """What a descriptor is given of a picture, as small as a sample's: uint8 (h, w, 3). Raises Undecodable."""
    return _rgb(decode_picture(data, side_px=256, image_format="png", max_pixels=10**9).image)


def _rgb(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def thumbnail(data: bytes, side_px: int) -> bytes:
    """JPEG of a picture, its longer side at most `side_px`. Raises Undecodable."""
    from PIL import Image

    picture = Image.fromarray(_rgb(decode_picture(data, side_px=side_px, max_pixels=10**9).image))
    picture.thumbnail((side_px, side_px))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def _file(path: Path, images: Path | None) -> Iterator[Item]:
    try:
        yield from _read(path, images)
    except (ValueError, TypeError, AttributeError, KeyError, OSError, pa.ArrowException, tarfile.TarError) as err:
        raise ConfigError(f"{path}: can't be read as an evaluation set: {type(err).__name__}: {err}") from err


def _read(path: Path, images: Path | None) -> Iterator[Item]:
    if path.suffix == ".parquet":
        yield from _rows(batch for batch in pq.ParquetFile(path).iter_batches(_BATCH))
    elif path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            yield from _rows(iter(pa.ipc.open_stream(source)))
    elif path.suffix == ".tar":
        yield from _tar(path)
    elif path.suffix in (".json", ".jsonl"):
        yield from _json(path, images)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        yield Item(path.name, path.read_bytes(), ())
    else:
        raise ConfigError(f"{path}: expected pictures, .parquet, .tar, .arrow, .json or .jsonl")


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[Item]:
    """Rows of a table: the image column is bytes, or bytes and path as `datasets` keeps it; strings are texts."""
    number = 0
    for batch in batches:
        names = {field.name: field.type for field in batch.schema}
        image = next((name for name in _IMAGE_COLUMNS if name in names and not pa.types.is_string(names[name])), None)
        identity = next((name for name in _ID_COLUMNS if name in names), None)
        for row in batch.to_pylist():
            data = row.get(image) if image else None
            if isinstance(data, dict):
                data = data.get("bytes") or (Path(data["path"]).read_bytes() if data.get("path") else None)
            name = str(number) if identity is None else f"{number}-{row[identity]}"
            number += 1
            yield Item(name, data, tuple(_texts({key: value for key, value in row.items() if key != image})))


def _tar(path: Path) -> Iterator[Item]:
    """Samples of a WebDataset: consecutive members of one key."""
    with tarfile.open(path) as archive:
        key, members = "", dict[str, bytes]()
        for member in archive:
            if not member.isfile():
                continue
            stem, _, suffix = member.name.rpartition("/")[2].partition(".")
            this = member.name[: len(member.name) - len(suffix) - 1] if suffix else stem
            if this != key and members:
                yield _sample(key, members)
                members = {}
            content = archive.extractfile(member)
            key, members[suffix.lower()] = this, content.read() if content else b""
        if members:
            yield _sample(key, members)


def _sample(key: str, members: dict[str, bytes]) -> Item:
    image = next((data for suffix, data in members.items() if f".{suffix}" in PICTURE_SUFFIXES), None)
    texts = [members["txt"].decode(errors="replace")] if "txt" in members else []
    if "json" in members:
        texts += _texts(json.loads(members["json"]))
    return Item(key, image, tuple(texts))


def _json(path: Path, pictures: Path | None) -> Iterator[Item]:
    """LLaVA ([{id, image, conversations}]), VQA ({questions: [...]}, with annotations), or any list of records."""
    text, images = path.read_text("utf-8"), pictures or path.parent
    data = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )
    if isinstance(data, dict):
        answers = {row["question_id"]: row for row in data.get("annotations", []) if "question_id" in row}
        rows = next((data[name] for name in ("questions", "data", "annotations", "images") if name in data), None)
        if rows is None:
            raise ConfigError(f"{path}: expected a list of records, or one under questions, data or annotations")
        data = [{**answers.get(row.get("question_id"), {}), **row} for row in rows]
    by_number: dict[int, Path] | None = None
    for number, row in enumerate(data):
        named = row.get("image") or row.get("image_path") or row.get("file_name")
        if named is None and str(row.get("image_id", "")).isdigit():  # COCO's and VQA's pictures are named by number
            if by_number is None:
                by_number = {
                    _number(file): file for file in images.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES
                }
            named = by_number.get(int(row["image_id"]))
            if named is None and (by_number or pictures):
                raise ConfigError(f"{path}: no picture {row['image_id']} of record {number} in {images}: see --images")
        image = None
        if named is not None:
            try:
                image = (images / named).read_bytes()
            except OSError as err:
                raise ConfigError(f"{path}: picture {named} of record {number}: {err.strerror}: see --images") from err
        identity = next((row[name] for name in _ID_COLUMNS if name in row), number)
        yield Item(f"{number}-{identity}", image, tuple(_texts(row)))


def _number(file: Path) -> int:
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _texts(value: Any) -> Iterator[str]:
    """All strings of a record that can be texts: questions, answers, choices, what is said in conversations."""
    if isinstance(value, str):
        yield value.replace("<image>", " ").strip()  # LLaVA's mark of where the picture goes
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NOT_TEXT:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)

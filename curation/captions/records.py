"""Captioned pictures to learn from and to measure on: one Arrow file in the store, named by its content."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from curation.errors import BadShardError, ConfigError
from curation.store import Store

SCHEMA = pa.schema(
    {"sample_id": pa.string(), "image": pa.large_binary(), "captions": pa.list_(pa.string()), "alt": pa.string()}
)
_BATCH_BYTES = 64 << 20


class Record(NamedTuple):
    """A picture as encoded bytes, its captions, and the alt text that the web had for it, where there was one."""

    sample_id: str
    image: bytes
    captions: tuple[str, ...]
    alt: str | None = None


class RecordSet(NamedTuple):
    """Where a set of records stands; digest: of its content."""

    key: str
    digest: str
    rows: int


class Records:
    """Records of the store by number, mapped from the local file: memory holds what is looked at."""

    def __init__(self, store: Store, key: str) -> None:
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(store.local_copy(key)))).read_all()
        except FileNotFoundError:
            raise ConfigError(f"records {key}: not in {store.root}") from None
        except pa.ArrowInvalid as err:
            raise BadShardError(f"{store.root}/{key}: expected an Arrow file of records, found: {err}") from err
        self.key, self.digest = key, Path(key).stem

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, number: int) -> Record:
        row = self._table.slice(number, 1).to_pylist()[0]
        return Record(row["sample_id"], row["image"], tuple(row["captions"]), row["alt"])

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def captions(self) -> list[list[str]]:
        """Captions of every record."""
        found: list[list[str]] = self._table["captions"].to_pylist()
        return found


def write_records(store: Store, records: Iterable[Record]) -> RecordSet:
    """Keep records in the store; the same ones again are the same object. Raises ConfigError where there is none."""
    digest, rows = hashlib.sha256(), 0
    part: list[Record] = []
    size = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for record in records:
                digest.update(hashlib.sha256(repr(record).encode("utf-8", "backslashreplace")).digest())
                part.append(record)
                size += len(record.image)
                rows += 1
                if size >= _BATCH_BYTES:
                    writer.write(_batch(part))
                    part, size = [], 0
            if part:
                writer.write(_batch(part))
        if not rows:
            raise ConfigError("records: there is no captioned picture")
        made = RecordSet(f"captions/records/{digest.hexdigest()[:16]}.arrow", digest.hexdigest()[:16], rows)
        store.write_file(made.key, path)
    return made


def read_folder(folder: Path, *, split: str = "", language: str = "en", most: int | None = None) -> Iterator[Record]:
    """Records of a folder: captions.jsonl and images/.

    A line holds `image`, the file's name; `captions`, or a list under the language's code; `alt` and `split` where
    there are such. Pictures are taken as they are: whether they decode is seen when they are looked at.

    raises   ConfigError for a line of another form or a picture that is not there
    """
    taken = 0
    for number, line in enumerate((folder / "captions.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if split and row.get("split") != split:
                continue
            captions = row.get("captions") or row[language]
            record = Record(str(row["image"]), b"", tuple(map(str, captions)), row.get("alt"))
            place = (folder / "images" / record.sample_id).resolve()
            if not place.is_relative_to((folder / "images").resolve()):
                raise ValueError("the picture lies outside")
            yield record._replace(image=place.read_bytes())
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as err:
            raise ConfigError(f"{folder}/captions.jsonl, line {number}: {type(err).__name__}: {err}") from err
        taken += 1
        if taken == most:
            return


def _batch(records: list[Record]) -> pa.RecordBatch:
    # a lone surrogate is no UTF-8
    rows = [
        record._replace(captions=tuple(text.encode("utf-8", "ignore").decode() for text in record.captions))._asdict()
        for record in records
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)

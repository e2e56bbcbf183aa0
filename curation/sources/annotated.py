"""Annotated sets beside the crawl: COCO captions, LLaVA's JSON, tables and WebDataset tars, with their provenance.

A YAML file names the sets that make a dump:

    sets:
      - {name: coco, path: annotations/captions_train2017.json, images: train2017, licence: CC-BY-4.0, origin: human}

Paths are relative to that file. A record's picture is a path below `images`, bytes within a tar or a table, or a URL.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import BadShardError, ConfigError
from curation.sources.conversations import Conversation

Form = Literal["coco", "llava", "table", "webdataset"]
SCHEME = "annotated://"
"""Of the URL of a picture that is no web address: annotated://set/path."""
SHARD_RECORDS = 50_000
"""Records of a shard at most, pictures of a COCO file; a tar is one shard."""
_SUFFIXES: dict[str, Form | None] = {  # None: look into it
    **dict.fromkeys((".tar",), "webdataset"),
    **dict.fromkeys((".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz"), "table"),
    **dict.fromkeys((".jsonl", ".jsonl.gz"), "llava"),
    **dict.fromkeys((".json", ".json.gz"), None),
}
_MAX_SETS_BYTES = 1 << 20
_SEPARATOR = re.compile(r"[/\\]")


class AnnotatedSet(BaseModel):
    """One set: where its records and pictures lie, who wrote its texts, under which licence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="goes into annotated_set and the URLs")
    path: str = Field(
        min_length=1, description="file, folder or glob of the records; one file may be s3:// or https://"
    )
    form: Form | None = Field(None, description="coco, llava, table, webdataset; left out: by the file's name and look")
    images: str = Field("", description="folder below which the pictures lie, also s3://; empty: the records' own")
    licence: str = Field("", description="of the texts and pictures, where a record names none of its own")
    origin: Literal["human", "synthetic"] = Field(description="who wrote the texts: people, or a model")
    image_column: str = Field("", description="table: of the pictures; empty: found by name")
    text_column: str = Field("", description="table: of the texts; empty: found by name")


class Sets(BaseModel):
    """A file of sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: tuple[AnnotatedSet, ...] = Field(min_length=1)


class AnnotatedShard(BaseModel):
    """Some records of one file of a set; its JSON is the shard's location."""

    model_config = ConfigDict(frozen=True)

    annotated: AnnotatedSet
    path: str
    form: Form
    first: int = 0
    end: int = 1 << 62

    @property
    def location(self) -> str:
        """What stands in a dump's list of archives."""
        return self.model_dump_json(exclude_defaults=True)

    @property
    def wanted(self) -> range:
        """Numbers of the records."""
        return range(self.first, self.end)


class Record(NamedTuple):
    """One text of a picture as found. `place` says where the picture's bytes lie; picture is a path or a URL.

    A record of several pictures gives one for each, all with the same text and conversation.
    """

    number: int
    picture: str
    text: str
    item: str
    licence: str
    place: dict[str, Any]
    conversation: Conversation | None = None


Reader = Callable[[BinaryIO, AnnotatedShard, Counter[str]], Iterator[Record]]


def names_sets(source: str) -> bool:
    """Whether a dump's source is a file of annotated sets."""
    return source.endswith((".yaml", ".yml"))


def is_location(location: str) -> bool:
    """Whether a location of a dump's list is a shard of an annotated set."""
    return location.startswith('{"annotated":')


def parse_location(location: str) -> AnnotatedShard:
    """The shard that a location means."""
    return AnnotatedShard.model_validate_json(location)


def picture_url(name: str, picture: str) -> str:
    """URL that identifies a picture: its own, or annotated://set/path."""
    if picture.startswith(("http://", "https://")):
        return picture
    parts = [quote(part, errors="replace") for part in _SEPARATOR.split(picture) if part not in ("", ".")]
    return f"{SCHEME}{name}/{'/'.join(parts)}"


def leads_out(picture: str) -> bool:
    """Whether a relative path is none: absolute, with a drive, a NUL or a step upwards."""
    parts = _SEPARATOR.split(picture)
    return not picture or not parts[0] or ".." in parts or "\0" in picture or ":" in parts[0]


def load_sets(source: str) -> list[AnnotatedSet]:
    """Sets that a YAML file names, paths made absolute. Raises ConfigError with one line for each wrong field."""
    try:
        with Path(source).open(encoding="utf-8") as file:
            data = yaml.safe_load(file.read(_MAX_SETS_BYTES))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"source: {source} can't be read: {' '.join(str(error).split())}") from error
    try:
        found = Sets.model_validate(data).sets
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'])) or 'sets'}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n".join(f"source: {source}: {line}" for line in lines)) from error
    if again := [name for name, count in Counter(one.name for one in found).items() if count > 1]:
        raise ConfigError(f"source: {source}: two sets are called {again[0]}: give each a name of its own")
    base = Path(source).resolve().parent
    return [
        one.model_copy(
            update={"path": _absolute(base, one.path), "images": _absolute(base, one.images) if one.images else ""}
        )
        for one in found
    ]


def files_of(one: AnnotatedSet) -> list[str]:
    """Files of a set's records, sorted. Raises ConfigError when there is none, or a folder of pictures is missing."""
    if _remote(one.path):
        return [one.path]
    if one.images and not _remote(one.images) and not Path(one.images).is_dir():
        raise ConfigError(f"source: set {one.name}: images: {one.images} is no folder")
    if Path(one.path).is_dir():
        below = (os.path.join(folder, name) for folder, _, names in os.walk(one.path) for name in names)
        found = sorted(path for path in below if _suffix(path))
    else:
        found = sorted(path for path in glob.iglob(one.path, recursive=True) if os.path.isfile(path))
    if not found:
        raise ConfigError(f"source: set {one.name}: path: {one.path} names no file of records")
    return found


def shards_of(one: AnnotatedSet, path: str, stream: BinaryIO) -> list[AnnotatedShard]:
    """Shards of one file of a set. Raises BadShardError for a file that is not of its form, naming what to set."""
    from curation.sources.annotated_forms import COUNTS

    form = one.form or _form(path, stream)
    stream.seek(0)
    whole = AnnotatedShard(annotated=one, path=path, form=form)
    if form not in COUNTS:
        return [whole]
    count = COUNTS[form](stream, whole)
    starts = range(0, count, SHARD_RECORDS)
    return [whole.model_copy(update={"first": at, "end": min(at + SHARD_RECORDS, count)}) for at in starts]


def read_records(stream: BinaryIO, shard: AnnotatedShard, tally: Counter[str]) -> Iterator[Record]:
    """Yield the records of a shard that have a picture and a text, in order.

    stream  the file of the records, seekable
    tally   gets records, records_bad (of another form than they should have), records_without_picture
    raises  BadShardError when the file can't be read to its end; what the stream raises
    """
    from curation.sources.annotated_forms import READERS

    return READERS[shard.form](stream, shard, tally)


def place_json(shard: AnnotatedShard, record: Record) -> str | None:
    """Where a picture's bytes lie, for sources/annotated_pictures; None for a picture on the web."""
    if record.place:
        return json.dumps(record.place)
    if record.picture.startswith(("http://", "https://")):
        return None
    root = shard.annotated.images or shard.path.rpartition("/")[0]
    return json.dumps({"root": root, "path": record.picture})


def plain(stream: BinaryIO) -> BinaryIO:
    """The stream from its start, decompressed when it is gzip."""
    stream.seek(0)
    magic = stream.read(2)
    stream.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if magic == b"\x1f\x8b" else stream


def _form(path: str, stream: BinaryIO) -> Form:
    suffix = _suffix(path)
    if suffix is None:
        raise BadShardError(f"{path}: expected {', '.join(_SUFFIXES)}: name the set's form")
    form = _SUFFIXES[suffix]
    if form is None:
        start = plain(stream).read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        form = "coco" if start == b"{" else "llava"
    return form


def _suffix(path: str) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.lower().endswith(suffix)), None)


def _remote(path: str) -> bool:
    return path.startswith(("s3://", "http://", "https://"))


def _absolute(base: Path, path: str) -> str:
    return path if _remote(path) else str(base / path)

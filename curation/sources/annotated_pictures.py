"""The bytes of pictures of annotated sets: below a folder, inside a tar, in a column of a Parquet file.

What a record says is a stranger's: nothing outside the set's own folder is ever opened, and nothing but plain files.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import BadShardError
from curation.sources.annotated import leads_out
from curation.sources.archives import open_archive
from curation.verdicts import Fault

_one_at_a_time = threading.Lock()


class Unreadable(Exception):
    """A picture that can't be read, with its fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def read_picture(place: str, max_bytes: int) -> bytes:
    """Bytes of a picture.

    place   JSON of annotated.place_json
    raises  Unreadable with picture_refused (outside the set's folder), picture_missing, too_large; OutageError
    """
    where: dict[str, Any] = json.loads(place)
    if "parquet" in where:
        return _bounded(_cell(where["parquet"], where["row"], where["column"]), max_bytes)
    if leads_out(where["path"]):
        raise Unreadable(Fault.PICTURE_REFUSED)
    if "tar" in where:
        return _part(where["tar"], where["at"], where["bytes"], max_bytes)
    if where["root"].startswith(("s3://", "http://", "https://")):
        return _part(f"{where['root'].rstrip('/')}/{where['path']}", 0, max_bytes + 1, max_bytes)
    return _file(where["root"], where["path"], max_bytes)


def _file(root: str, path: str, max_bytes: int) -> bytes:
    try:
        real, base = os.path.realpath(os.path.join(root, path)), os.path.realpath(root)
        if os.path.commonpath([real, base]) != base:
            raise Unreadable(Fault.PICTURE_REFUSED)  # a link leads out
        # no link by now; and a pipe that nobody writes to must not hold up the task
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Unreadable(Fault.PICTURE_MISSING) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(Fault.PICTURE_MISSING)
    with os.fdopen(descriptor, "rb") as file:
        return _bounded(file.read(max_bytes + 1), max_bytes)


def _part(location: str, offset: int, size: int, max_bytes: int) -> bytes:
    try:
        with open_archive(location) as stream:
            stream.seek(offset)
            return _bounded(stream.read(min(size, max_bytes + 1)), max_bytes)
    except BadShardError as error:
        raise Unreadable(Fault.PICTURE_MISSING) from error


def _cell(location: str, row: int, column: str) -> bytes:
    try:
        with _one_at_a_time:  # neighbours ask for the same row group
            file = _parquet(location)
            group = 0
            while group < file.num_row_groups and row >= (count := file.metadata.row_group(group).num_rows):
                row, group = row - count, group + 1
            values = _group(location, group, column)
    except (BadShardError, pa.ArrowException, OSError) as error:
        raise Unreadable(Fault.PICTURE_MISSING) from error
    cell = values[row].as_py()
    if not cell:
        raise Unreadable(Fault.PICTURE_MISSING)
    return bytes(cell)


@lru_cache(maxsize=2)
def _parquet(location: str) -> pq.ParquetFile:
    return pq.ParquetFile(open_archive(location) if "://" in location else location)


@lru_cache(maxsize=2)
def _group(location: str, group: int, column: str) -> pa.ChunkedArray:
    values = _parquet(location).read_row_group(group, columns=[column]).column(0)
    for name in column.split(".")[1:]:
        values = pa.chunked_array([chunk.field(name) for chunk in values.chunks])
    return values


def _bounded(content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise Unreadable(Fault.TOO_LARGE)
    return content

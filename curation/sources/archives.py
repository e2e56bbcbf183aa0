"""The archives of a dump: finding them, and opening one as a stream that is whole or an error."""

import glob
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

from curation.errors import BadShardError, ConfigError
from curation.sources import annotated, common_crawl, url_table
from curation.sources.remote import RemoteStream, http_ranges, list_s3, s3_ranges

ArchiveKind = Literal["wat", "warc", "url_table", "annotated"]
_COMPRESSIONS = ("", ".gz", ".zst", ".lz4")


def list_archives(source: str, kind: ArchiveKind) -> list[str]:
    """Locations of a dump's archives, sorted; of tables and annotated sets those of their shards.

    source  a folder (searched to its depths), file or glob, local or s3://bucket/prefix; one http(s):// file; or a
            Common Crawl id such as CC-MAIN-2026-05, whose wat.paths.gz or warc.paths.gz is read
    raises  ConfigError that names `source` when there is nothing of this kind or it cannot be read
    """
    if kind == "annotated":
        return _annotated_shards(source)
    if common_crawl.is_dump(source) and kind != "url_table":
        return common_crawl.list_archives(source, kind)
    try:
        found = sorted(_files(source, kind))
        if kind == "url_table":
            found = [shard for path in found for shard in _table_shards(path)]
    except (OSError, BadShardError) as error:
        raise ConfigError(f"source: {source} cannot be read: {error}") from error
    if not found:
        there = [other for other in ("wat", "warc", "url_table") if other != kind and _any(source, other)]
        if there:
            raise ConfigError(f"source: no {kind} in {source}, but {there[0]}: set stages.extract.archive={there[0]}")
        names = ", ".join(f"*{suffix}" for suffix in _suffixes(kind))
        raise ConfigError(
            f"source: no {kind} in {source}: expected a folder, a glob or an s3:// prefix with files {names},"
            " or a Common Crawl id such as CC-MAIN-2026-05"
        )
    return found


def open_archive(location: str) -> BinaryIO:
    """Open an archive for reading from its start, as stored.

    location  path, http(s):// or s3:// URL; rows that it names (#rows=) are the reader's to find. Remote archives are
              read as they come, never copied; a broken connection is taken up where it broke. Seekable.
    raises    BadShardError when there is no such archive or it may not be read; OutageError, here or from read(), when
              the network or the server fails. A remote stream never ends before its announced length.
    """
    if annotated.is_location(location):
        location = annotated.parse_location(location).path
    location, _ = url_table.split_location(location)
    ranges = _ranges(location)
    if ranges is not None:
        return cast(BinaryIO, io.BufferedReader(RemoteStream(location, ranges), 1 << 20))
    try:
        return Path(location).open("rb")
    except OSError as error:
        raise BadShardError(f"{location}: expected a readable archive, found {error.strerror}") from error


def _ranges(location: str) -> "Callable[[int], tuple[BinaryIO, int | None]] | None":
    scheme = urlsplit(location).scheme
    if scheme == "s3":
        return s3_ranges(location)
    return http_ranges(location) if scheme in ("http", "https") else None


def _files(source: str, kind: ArchiveKind) -> list[str]:
    if source.startswith("s3://"):
        return _in_s3(source, kind)
    return [source] if source.startswith(("http://", "https://")) else _in_folder(source, kind)


def _any(source: str, kind: ArchiveKind) -> bool:
    try:
        return any(_is_archive(path, kind) for path in _files(source, kind))
    except (OSError, BadShardError):
        return False


def _table_shards(path: str) -> list[str]:
    with open_archive(path) as stream:
        return url_table.shard_locations(stream, path)


def _annotated_shards(source: str) -> list[str]:
    found: list[annotated.AnnotatedShard] = []
    for one in annotated.load_sets(source):
        for path in annotated.files_of(one):
            try:
                with open_archive(path) as stream:
                    found += annotated.shards_of(one, path, stream)
            except BadShardError as error:
                raise ConfigError(f"source: set {one.name}: {error}") from error
    return [shard.location for shard in found]


def _in_folder(source: str, kind: ArchiveKind) -> list[str]:
    if Path(source).is_dir():
        paths: list[Path] = [path for path in Path(source).rglob("*") if path.is_file()]
        return [str(path) for path in paths if _is_archive(path.name, kind)]
    if Path(source).is_file():
        return [source]
    return [path for path in glob.iglob(source, recursive=True) if os.path.isfile(path)]


def _in_s3(source: str, kind: ArchiveKind) -> list[str]:
    return [
        location
        for location in list_s3(source)
        if location == source or any(mark in source for mark in "*?[") or _is_archive(location, kind)
    ]


def _is_archive(name: str, kind: ArchiveKind) -> bool:
    """Whether a file name is one of this kind: a WAT is also called x.warc.wat.gz, which is no WARC."""
    return name.lower().endswith(_suffixes(kind))


def _suffixes(kind: ArchiveKind) -> tuple[str, ...]:
    if kind == "url_table":
        return url_table.SUFFIXES
    formats = ("warc", "arc") if kind == "warc" else (kind,)
    return tuple(f".{name}{suffix}" for name in formats for suffix in _COMPRESSIONS)

"""The archives of a dump: finding them, and opening one as a stream that is whole or an error."""

import glob
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

from curation.errors import BadShardError, ConfigError
from curation.sources import common_crawl
from curation.sources.remote import RemoteStream, http_ranges, list_s3, s3_ranges

ArchiveKind = Literal["wat", "warc"]
_COMPRESSIONS = ("", ".gz", ".zst", ".lz4")


def list_archives(source: str, kind: ArchiveKind) -> list[str]:
    """Locations of a dump's archives, sorted.

    source  a folder (searched to its depths), file or glob, local or s3://bucket/prefix; or a Common Crawl id such as
            CC-MAIN-2026-05, whose wat.paths.gz or warc.paths.gz is read
    raises  ConfigError that names `source` when there is nothing of this kind or it cannot be read
    """
    if common_crawl.is_dump(source):
        return common_crawl.list_archives(source, kind)
    try:
        found = _in_s3(source, kind) if source.startswith("s3://") else _in_folder(source, kind)
    except (OSError, BadShardError) as error:
        raise ConfigError(f"source: {source} cannot be read: {error}") from error
    if not found:
        raise ConfigError(
            f"source: no {kind} archives in {source}: expected a folder, a glob or an s3:// prefix with"
            f" *.{kind}, *.{kind}.gz or *.{kind}.zst files, or a Common Crawl id such as CC-MAIN-2026-05"
        )
    return sorted(found)


def open_archive(location: str) -> BinaryIO:
    """Open an archive for reading from its start, as stored.

    location  path, http(s):// or s3:// URL. Remote archives are read as they come, never copied; a broken connection
              is taken up where it broke.
    raises    BadShardError when there is no such archive or it may not be read; OutageError, here or from read(), when
              the network or the server fails. A remote stream never ends before its announced length.
    """
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
    name = name.lower()
    return any(name.endswith(f".{kind}{compression}") for compression in _COMPRESSIONS)

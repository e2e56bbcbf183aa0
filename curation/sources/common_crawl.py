"""Common Crawl: which dumps there are, and the archives of one, from S3 or over https, whichever can be had."""

import json
import os
import re
import zlib
from typing import Literal

from curation.errors import BadShardError, ConfigError, OutageError
from curation.sources.remote import RemoteStream, http_ranges, s3_ranges

BASE_URL = "https://data.commoncrawl.org"
BUCKET_URL = "s3://commoncrawl"
BASE_URL_VARIABLE = "CURATION_COMMONCRAWL_URL"
"""Environment variable with one place of the same layout, a mirror or s3://commoncrawl; then no other is tried."""
LIST_URL = "https://index.commoncrawl.org/collinfo.json"
LIST_URL_VARIABLE = "CURATION_COMMONCRAWL_LIST_URL"

_DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}|CC-NEWS-\d{4}-\d{2}(?:-\d{2})?")
_MAX_LIST_BYTES = 256 << 20  # a dump of 90,000 archives has 13 MB of paths
# collinfo.json, October 2026: year, weeks of the dumps. Those before 2013-20 have another layout.
_WEEKS = {
    2013: "20 48",
    2014: "10 15 23 35 41 42 49 52",
    2015: "06 11 14 18 22 27 32 35 40 48",
    2016: "07 18 22 26 30 36 40 44 50",
    2017: "04 09 13 17 22 26 30 34 39 43 47 51",
    2018: "05 09 13 17 22 26 30 34 39 43 47 51",
    2019: "04 09 13 18 22 26 30 35 39 43 47 51",
    2020: "05 10 16 24 29 34 40 45 50",
    2021: "04 10 17 21 25 31 39 43 49",
    2022: "05 21 27 33 40 49",
    2023: "06 14 23 40 50",
    2024: "10 18 22 26 30 33 38 42 46 51",
    2025: "05 08 13 18 21 26 30 33 38 43 47 51",
    2026: "04 08 12 17 21 25 30 34 39",
}
KNOWN_DUMPS = tuple(f"CC-MAIN-{year}-{week}" for year, weeks in _WEEKS.items() for week in weeks.split())
"""Ids of the dumps that were there when this was written, oldest first."""


def is_dump(source: str) -> bool:
    """Whether the source is the id of a dump: CC-MAIN-year-week, CC-NEWS-year-month or CC-NEWS-year-month-day."""
    return _DUMP.fullmatch(source) is not None


def fetch_dumps() -> list[str]:
    """Ids of the dumps there are now, oldest first, by Common Crawl's collinfo.json.

    raises  OutageError, BadShardError when the list cannot be read
    """
    url = os.environ.get(LIST_URL_VARIABLE, LIST_URL)
    try:
        entries = json.loads(_read(url))
        found = sorted(entry["id"] for entry in entries if is_dump(entry["id"]))
    except (ValueError, TypeError, KeyError) as error:
        raise BadShardError(f"{url}: expected Common Crawl's list of dumps, found {error}") from error
    return found


def list_archives(dump: str, kind: Literal["wat", "warc"]) -> list[str]:
    """Locations of the dump's archives, sorted.

    s3://commoncrawl is asked first when credentials for S3 are there: it is faster inside AWS and takes no anonymous
    reader. Otherwise, and where it does not answer, https.

    raises  ConfigError naming `source`; OutageError
    """
    if dump.startswith("CC-NEWS-"):
        year, month, *rest = dump.removeprefix("CC-NEWS-").split("-")
        if kind == "wat":
            raise ConfigError(f"source: {dump} has no WAT, CC-NEWS is WARC alone: set stages.extract.archive to warc")
        folder, day = f"CC-NEWS/{year}/{month}", f"CC-NEWS-{year}{month}{rest[0]}" if rest else ""
    else:
        folder, day = dump, ""
    base, paths = _paths(dump, kind, f"crawl-data/{folder}/{kind}.paths.gz")
    found = sorted(f"{base}/{path.lstrip('/')}" for path in paths if day in path)
    if not found:
        raise ConfigError(f"source: {dump}: no archives of that day are listed in {folder}/{kind}.paths.gz")
    return found


def _paths(dump: str, kind: str, name: str) -> tuple[str, list[str]]:
    """The place that answered and the paths it lists."""
    bases = _bases()
    for base in bases:
        location = f"{base}/{name}"
        try:
            return base, zlib.decompressobj(31).decompress(_read(location), _MAX_LIST_BYTES).decode().split()
        except (BadShardError, OutageError) as error:
            if base != bases[-1]:
                continue
            if isinstance(error, OutageError):
                raise
            newest = ", ".join(KNOWN_DUMPS[-3:])
            raise ConfigError(
                f"source: {dump} has no {kind} list at {location} ({error}); dumps are, for instance, {newest};"
                f" set {BASE_URL_VARIABLE} for another place"
            ) from error
        except (zlib.error, UnicodeDecodeError) as error:
            raise ConfigError(f"source: expected gzipped paths at {location}, found {error}") from error
    raise AssertionError("unreachable")


def _bases() -> list[str]:
    if chosen := os.environ.get(BASE_URL_VARIABLE):
        return [chosen.rstrip("/")]
    import boto3  # here: 0.4 s that other sources save

    return [BUCKET_URL, BASE_URL] if boto3.Session().get_credentials() else [BASE_URL]


def _read(location: str) -> bytes:
    ranges = s3_ranges if location.startswith("s3://") else http_ranges
    with RemoteStream(location, ranges(location)) as stream:
        return stream.read()

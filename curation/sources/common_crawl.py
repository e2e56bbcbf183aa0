"""Common Crawl's dumps: the archives of CC-MAIN-2026-05 by its wat.paths.gz or warc.paths.gz."""

import gzip
import os
import re
import zlib
from typing import Literal

from curation.errors import BadShardError, ConfigError
from curation.sources.remote import RemoteStream, http_ranges, s3_ranges

BASE_URL = "https://data.commoncrawl.org"
BASE_URL_VARIABLE = "CURATION_COMMONCRAWL_URL"
"""Environment variable with another place of the same layout: s3://commoncrawl (inside AWS) or a mirror."""

_DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}|CC-NEWS-\d{4}-\d{2}")
_MAX_PATHS_BYTES = 256 << 20  # a dump of 90,000 archives has 13 MB of paths


def is_dump(source: str) -> bool:
    """Whether the source is the id of a dump: CC-MAIN-year-week, CC-NEWS-year-month."""
    return _DUMP.fullmatch(source) is not None


def list_archives(dump: str, kind: Literal["wat", "warc"]) -> list[str]:
    """Locations of the dump's archives, sorted. Raises ConfigError naming `source`, OutageError."""
    base = os.environ.get(BASE_URL_VARIABLE, BASE_URL).rstrip("/")
    folder = dump if dump.startswith("CC-MAIN-") else dump.replace("-", "/").replace("CC/NEWS", "CC-NEWS")
    paths_file = f"{base}/crawl-data/{folder}/{kind}.paths.gz"
    ranges = s3_ranges if base.startswith("s3://") else http_ranges
    try:
        with RemoteStream(paths_file, ranges(paths_file)) as stream:
            paths = zlib.decompressobj(31).decompress(stream.read(), _MAX_PATHS_BYTES).decode().split()
    except BadShardError as error:
        raise ConfigError(
            f"source: {dump} has no {kind} list at {paths_file} ({error}); the dumps there are, are listed at"
            f" https://index.commoncrawl.org; set {BASE_URL_VARIABLE} for another place"
        ) from error
    except (zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ConfigError(f"source: expected gzipped paths at {paths_file}, found {error}") from error
    if not paths:
        raise ConfigError(f"source: {paths_file} lists no archives")
    return sorted(f"{base}/{path.lstrip('/')}" for path in paths)

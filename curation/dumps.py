"""Which archive is which shard of a dump: written once, never changed."""

from __future__ import annotations

import gzip
import json
import os
from fnmatch import fnmatch
from functools import lru_cache

from curation.errors import BadShardError, ConfigError
from curation.sources.annotated import is_location, names_sets
from curation.sources.archives import ArchiveKind, list_archives, open_archive
from curation.sources.common_crawl import KNOWN_DUMPS, fetch_dumps, is_dump
from curation.sources.url_table import Columns, check_columns, split_location
from curation.store import Store

_LIST = "dumps.json"
"""Key of the list of Common Crawl's dumps that was fetched last."""


def known_dumps(store: Store) -> list[str]:
    """Ids of Common Crawl's dumps, oldest first: those this release knows and those fetched last. No network."""
    kept: list[str] = json.loads(store.read_bytes(_LIST)) if store.exists(_LIST) else []
    return sorted({*KNOWN_DUMPS, *kept})


def refresh_dumps(store: Store) -> list[str]:
    """Fetch the list of Common Crawl's dumps, keep it in the store and return those that were not known before.

    raises  OutageError, BadShardError when it cannot be read; what is kept stays then
    """
    before, found = set(known_dumps(store)), fetch_dumps()
    store.write_bytes(_LIST, json.dumps(found).encode())
    return [dump for dump in found if dump not in before]


def register(store: Store, dump: str, source: str, kind: ArchiveKind) -> int:
    """List the dump's archives and keep the list in the store; returns their number.

    A source that ends in .yaml names annotated sets (sources/annotated.py), whatever the recipe's archives are. A list
    that stands there already is kept as it is: shard 00007 is the same archive for ever. Raises ConfigError
    when the source has none, or is another than that of the list.
    """
    if not dump or "/" in dump or dump.startswith("."):
        raise ConfigError(f"dump {dump!r}: give a name without slashes, such as CC-MAIN-2026-05")
    if names_sets(source):
        if any(store.exists(_key(dump, other)) for other in ("wat", "warc", "url_table")):
            raise ConfigError(f"dump {dump}: it holds archives of a crawl; give the annotated sets a dump of their own")
        kind = "annotated"
    elif store.exists(_key(dump, "annotated")):
        return len(archives_of(store, dump, kind))
    if not store.exists(_key(dump, kind)):
        archives = list_archives(source, kind)
        content = gzip.compress(json.dumps(archives).encode(), mtime=0)
        store.write_bytes(_key(dump, kind), content, if_absent=True)
    archives = archives_of(store, dump, kind)
    if kind != "annotated" and not is_dump(source) and source != dump and not any(_inside(source, a) for a in archives):
        raise ConfigError(
            f"source: the {kind} archives of dump {dump} were listed before, {archives[0]} the first of them, and none "
            f"is in {source}: give these a dump of their own"
        )
    return len(archives)


def _inside(source: str, archive: str) -> bool:
    """Whether an archive is one that the source, a folder, file, glob or prefix, may have named."""
    archive, _ = split_location(archive)
    if "://" not in source:
        source, archive = os.path.abspath(source), os.path.abspath(archive)
    return archive.startswith(source) or fnmatch(archive, source)


def check_table(store: Store, dump: str, columns: Columns) -> None:
    """Raise ConfigError when the first of the dump's URL tables lacks a column that extract would look for."""
    first = archive(store, dump, 0, "url_table")
    if is_location(first):
        return
    try:
        with open_archive(first) as stream:
            check_columns(stream, first, columns)
    except BadShardError as error:
        raise ConfigError(str(error)) from error


def archives_of(store: Store, dump: str, kind: str) -> list[str]:
    """Locations of the dump's archives by shard number; annotated sets are what they are under any recipe.

    raises  ConfigError for a dump that is not registered
    """
    return list(_archives(store.root, dump, kind))


def archive(store: Store, dump: str, shard: int, kind: str) -> str:
    """Location of one shard's archive. Raises ConfigError for a number the dump does not have."""
    archives = _archives(store.root, dump, kind)
    if not 0 <= shard < len(archives):
        raise ConfigError(f"shard {shard}: {dump} has {len(archives)} {kind} archives, 0 to {len(archives) - 1}")
    return archives[shard]


@lru_cache(maxsize=8)
def _archives(root: str, dump: str, kind: str) -> tuple[str, ...]:
    for each in ("annotated", kind):
        try:
            return tuple(json.loads(gzip.decompress(Store(root).read_bytes(_key(dump, each)))))
        except FileNotFoundError:
            continue
    raise ConfigError(f"dump {dump!r} is not registered in {root}: give its source")


def _key(dump: str, kind: str) -> str:
    return f"dumps/{dump}/{kind}.paths.json.gz"

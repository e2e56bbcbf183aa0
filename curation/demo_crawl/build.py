"""Build the demo crawl: site, WARC and WAT files, truth, evaluation set, blocklist and hash list."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from curation.demo_crawl import faults, formats, galleries, markup
from curation.demo_crawl.crawler import WarcShards, crawl
from curation.demo_crawl.pictures import Take, admitted_takes, read_regions
from curation.demo_crawl.server import DemoServer
from curation.demo_crawl.site import Page, Site
from curation.demo_crawl.wat import write_wat
from curation.errors import ConfigError
from curation.objects import writing

VERSION = 1
"""Rises with every change of what is built: a folder of another version is built anew."""


@dataclass(frozen=True)
class DemoCrawl:
    """Where the parts of a demo crawl lie, and how much it is."""

    folder: Path
    shards: int
    pages: int
    pairs: int
    expected: dict[str, int]

    @property
    def archives(self) -> Path:
        """Folder of 00000.warc.gz, 00000.wat.gz and so on."""
        return self.folder / "crawl"

    @property
    def truth(self) -> Path:
        """One JSON line for each pair; see site.Expected. The pipeline never reads it."""
        return self.folder / "truth.jsonl"

    @property
    def evalset(self) -> Path:
        """Pictures of the evaluation set, with items.jsonl."""
        return self.folder / "evalset"

    @property
    def blocklist(self) -> Path:
        """Domains that are not wanted, one a line."""
        return self.folder / "blocklist.txt"

    @property
    def known_unsafe(self) -> Path:
        """Hashes of sha256 that must not be published, one a line."""
        return self.folder / "known_unsafe.txt"


def build_demo_crawl(folder: Path, *, shards: int = 4, seed: int = 0) -> DemoCrawl:
    """Build the demo crawl into `folder`, or return what stands there complete with the same settings.

    It is built beside the folder and renamed at the end: an interrupted build leaves nothing that looks finished.
    Same seed, same package versions, same bytes. Raises ConfigError when a package with photographs is missing, or
    where `folder` holds something else: what we did not build is not ours to remove.
    """
    made = _standing(folder, shards, seed)
    if made is not None:
        return made
    folder = folder.absolute()
    if folder.exists() and not (folder / "crawl.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and holds no demo crawl: name another folder, or remove it")
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(workplace, shards, seed)
        if folder.exists():
            shutil.rmtree(folder)
        workplace.chmod(0o755)
        os.rename(workplace, folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    made = _standing(folder, shards, seed)
    assert made is not None
    return made


def _standing(folder: Path, shards: int, seed: int) -> DemoCrawl | None:
    try:
        facts = json.loads((folder / "crawl.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if (facts["version"], facts["shards"], facts["seed"]) != (VERSION, shards, seed):
        return None
    return DemoCrawl(folder, shards, facts["pages"], facts["pairs"], facts["expected"])


def _build(folder: Path, shards: int, seed: int) -> None:
    site = _site(folder, random.Random(seed))
    site.write(folder / "site")
    archives = WarcShards(folder / "crawl", shards)
    shard_of: dict[str, int] = {}
    with DemoServer(folder) as server:
        for page in crawl(server.port, [galleries.HOME]):
            shard_of[page.url] = archives.add(page)
    archives.close()
    if missing := site.pages.keys() - shard_of.keys():
        raise AssertionError(f"the crawl did not reach {sorted(missing)}")
    for path in archives.paths:
        write_wat(path, path.with_name(path.name.replace(".warc.", ".wat.")))
    truth = [replace(entry, shard=shard_of[entry.page_url]) for entry in site.expected]
    lines = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in truth)
    (folder / "truth.jsonl").write_text(lines, "utf-8")
    expected = Counter(entry.expect if isinstance(entry.expect, str) else entry.expect[0] for entry in truth)
    facts = {
        "version": VERSION,
        "seed": seed,
        "shards": shards,
        "pages": len(shard_of),
        "pairs": len(truth),
        "expected": dict(sorted(expected.items())),
    }
    (folder / "crawl.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _site(folder: Path, random_: random.Random) -> Site:
    """The whole web; every picture that is not a copy on purpose is of its own take."""
    site = Site()
    takes = admitted_takes(read_regions())
    spare = [take for take in takes if take.kind == "near-mirror"]
    random_.shuffle(spare)
    plain = [take for take in takes if take.kind == "plain" and take.region.role == "page"]
    galleries.build_galleries(site, takes)
    pool: Iterator[Take] = iter(spare)
    pages: list[Page] = [
        *galleries.build_copies(site, takes),
        *galleries.build_evalset(site, takes, folder / "evalset"),
        *galleries.build_unsafe(site, takes, folder / "known_unsafe.txt"),
        *galleries.build_repeats(site, [next(pool) for _ in range(5)]),
        *formats.build_formats(site, pool),
        *formats.build_broken(site, iter(plain), random_),
        *formats.build_sizes(site, plain[10:]),
        *faults.build_answers(site, pool, iter(plain)),
        *faults.build_refusals(site, pool, iter(plain[20:])),
        *markup.build_refused_links(site, iter(plain)),
        *markup.build_hostile(site, pool),
        *galleries.build_wrong(site, list(pool), random_),
    ]
    # pages of one host follow each other on the front page, so that neighbours fall into different shards
    site.pages[galleries.HOME].link(*(page.url for page in pages))
    (folder / "blocklist.txt").write_text("".join(f"{name}\n" for name in markup.BLOCKED_DOMAINS), "utf-8")
    return site

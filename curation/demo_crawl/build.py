"""Build the demo crawl: the site, its crawl as WARC and WAT, the lists of an operator, and the truth."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from curation.demo_crawl.crawler import crawl
from curation.demo_crawl.server import DemoServer
from curation.demo_crawl.site import build_site


class DemoCrawl(NamedTuple):
    """Where the parts lie."""

    folder: Path
    archives: Path
    truth: Path


def build_demo_crawl(folder: Path, *, shards: int = 4) -> DemoCrawl:
    """Build into a folder, or reuse it when it holds the same build already.

    Everything is made beside the folder and moved there whole, so that a build that is killed leaves nothing behind
    that looks complete.
    """
    stamp = folder / "complete"
    wanted = f"{_source_digest()} {shards}"
    if not (stamp.exists() and stamp.read_text() == wanted):
        making = folder.with_name(f"{folder.name}.making-{os.getpid()}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        site = build_site(making)
        with DemoServer(making) as server:
            crawl(site.seeds, server.port, making / "crawl", shards)
        (making / "complete").write_text(wanted)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    return DemoCrawl(folder, folder / "crawl", folder / "truth.jsonl")


def _source_digest() -> str:
    here = Path(__file__).parent
    files = sorted(path for path in here.iterdir() if path.suffix in (".py", ".yaml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]

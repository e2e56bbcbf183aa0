"""extract beside others on the same bytes: cc2dataset's parsing function on a WAT, one-pass parsers on a WARC.

python benchmarks/extract_archives.py /tmp/archives
python3 -m venv /tmp/peer && /tmp/peer/bin/pip install cc2dataset==1.5.0
python benchmarks/extract.py /tmp/archives --peer /tmp/peer/bin/python [--runs 5]

Every run is a process of its own, on one core, the sides in turn. Counted is CPU time from the bytes in memory to the
last pair, without imports; of the runs the fastest, for what else the machine does only adds. A pair is a picture's
absolute URL with its alt text. `stage` is all of extract: besides it decodes, cleans and classes texts and URLs, tells
languages, hashes identities and writes Arrow.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

Pairs = list[tuple[str, str]]
LIMITS = {"max_record_bytes": 64 << 20}


def cc2dataset() -> Callable[[bytes], Pairs]:
    from cc2dataset.main import extract_documents_from_wat
    from loguru import logger

    logger.remove()
    return lambda data: [(each["url"], each["alt"]) for each in extract_documents_from_wat(io.BytesIO(data), "image")]


def wat() -> Callable[[bytes], Pairs]:
    from curation.sources.wat import read_pages

    return lambda data: [
        (picture.url, picture.texts["alt"])
        for page in read_pages(io.BytesIO(data), "x", Counter(), **LIMITS)
        for picture in page.pictures
        if "alt" in picture.texts
    ]


def warc() -> Callable[[bytes], Pairs]:
    from curation.sources.warc import read_pages

    return lambda data: [
        (picture.url, text)
        for page in read_pages(io.BytesIO(data), "x", Counter(), max_page_bytes=16 << 20, **LIMITS)
        for picture in page.pictures
        for text in picture.texts.values()
    ]


def stage(archive: str) -> Callable[[bytes], Pairs]:
    import pandas  # noqa: F401  pyarrow imports it with its first array
    import pyarrow as pa

    from curation.stages.extract import Extract
    from curation.text.language import detect_languages

    detect_languages(["warm"])

    def run(data: bytes) -> Pairs:
        batches = list(Extract(archive=archive).read(io.BytesIO(data), "x", Counter()))
        table = pa.Table.from_batches(batches)
        return list(zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True))

    return run


def _html_bodies(data: bytes) -> Iterator[tuple[str, bytes]]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    for record in ArchiveIterator(io.BytesIO(data), record_types=WarcRecordType.response, parse_http=True):
        if "html" in (record.http_content_type or ""):
            yield record.headers["WARC-Target-URI"].strip("<>"), record.reader.read()


def resiliparse() -> Callable[[bytes], Pairs]:
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    def run(data: bytes) -> Pairs:
        pairs: Pairs = []
        for page, body in _html_bodies(data):
            tree = HTMLTree.parse_from_bytes(body, detect_encoding(body[:8192], from_html_meta=True) or "utf-8")
            for image in tree.body.get_elements_by_tag_name("img") if tree.body else ():
                source, alt = image.getattr("src"), image.getattr("alt")
                if source and alt:
                    pairs.append((_joined(page, source), alt))
        return pairs

    return run


def lxml() -> Callable[[bytes], Pairs]:
    from lxml import etree

    def run(data: bytes) -> Pairs:
        pairs: Pairs = []
        for page, body in _html_bodies(data):
            try:
                tree = etree.fromstring(body, etree.HTMLParser(huge_tree=True))
            except etree.XMLSyntaxError:
                continue
            for image in tree.iter("img") if tree is not None else ():
                source, alt = image.get("src"), image.get("alt")
                if source and alt:
                    pairs.append((_joined(page, source), alt))
        return pairs

    return run


def _joined(page: str, link: str) -> str:
    try:
        return urljoin(page, link)
    except ValueError:
        return link


SIDES: dict[str, Callable[[], Callable[[bytes], Pairs]]] = {
    "cc2dataset": cc2dataset,
    "wat": wat,
    "wat stage": lambda: stage("wat"),
    "warc": warc,
    "warc stage": lambda: stage("warc"),
    "resiliparse": resiliparse,
    "lxml": lxml,
}


def run_side(side: str, archive: Path, out: Path) -> None:
    run = SIDES[side]()
    data = archive.read_bytes()
    started = time.process_time()
    pairs = run(data)
    seconds = time.process_time() - started
    out.write_text(json.dumps({"seconds": seconds, "pairs": pairs}))


def measured(side: str, archive: Path, python: str, runs: int, into: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pairs.json"
        subprocess.run([python, __file__, str(archive), "--side", side, "--out", str(out)], check=True)
        found = json.loads(out.read_text())
    into.setdefault(side, {"seconds": [], "pairs": found["pairs"]})["seconds"].append(found["seconds"])


def compare(ours: Pairs, theirs: Pairs) -> tuple[int, int, Counter[str]]:
    """Distinct pairs of theirs, those among ours, and why the others are not."""
    from curation.text.clean import clean_text
    from curation.web.urls import canonical

    mine = {(url, clean_text(text)) for url, text in ours}
    urls, texts = {url for url, _ in mine}, {text for _, text in mine}
    missing: Counter[str] = Counter()
    pairs = {(url, alt) for url, alt in theirs}
    for url, alt in pairs:
        spelt, text = canonical(url.replace("&amp;", "&")), clean_text(alt)
        if (spelt, text) in mine:
            continue
        if not text:
            missing["nothing readable in the alt"] += 1
        elif not spelt.startswith(("http://", "https://")):
            missing["no http address"] += 1
        elif spelt in urls:
            missing["same picture, another text"] += 1
        elif text in texts or _as_utf8(alt) in texts:
            missing["same text, another address"] += 1
        else:
            missing["neither"] += 1
    return len(pairs), len(pairs) - missing.total(), missing


def _as_utf8(text: str) -> str:
    """A text in UTF-8 that was read as Latin-1, as a browser reads it."""
    from curation.text.clean import clean_text

    return clean_text(text.encode("latin-1", "ignore").decode("utf-8", "ignore"))


def report(archive: Path, ours: tuple[str, ...], peers: dict[str, str], runs: int) -> None:
    found: dict[str, Any] = {}
    for _ in range(runs):
        for side in ours:
            measured(side, archive, sys.executable, runs, found)
        for side, python in peers.items():
            measured(side, archive, python, runs, found)
    size = archive.stat().st_size / 1e6
    print(f"\n{archive.name}, {size:.1f} MB, fastest of {runs} (all runs)")
    for side, result in found.items():
        best = min(result["seconds"])
        spread = ", ".join(f"{seconds:.2f}" for seconds in result["seconds"])
        print(f"  {side:12} {best:6.2f} s  {size / best:6.1f} MB/s  {len(result['pairs']):7} pairs   ({spread})")
    best_peer = min(min(found[peer]["seconds"]) for peer in peers)
    for side in ours:
        print(f"  {side} is {best_peer / min(found[side]['seconds']):.2f} times the fastest peer")
    for peer in peers:
        total, shared, missing = compare(found[ours[0]]["pairs"], found[peer]["pairs"])
        print(f"  of {total} distinct pairs of {peer}, {shared} are among those of {ours[0]}; not: {dict(missing)}")
    print(f"  distinct pairs of {ours[0]}: {len(set(map(tuple, found[ours[0]]['pairs'])))}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("archives", type=Path)
    arguments.add_argument("--peer", help="Python that has cc2dataset")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.side:
        run_side(given.side, given.archives, given.out)
        return
    if given.peer:
        report(given.archives / "pages.warc.wat.gz", ("wat", "wat stage"), {"cc2dataset": given.peer}, given.runs)
    peers = {"resiliparse": sys.executable, "lxml": sys.executable}
    report(given.archives / "pages.warc.gz", ("warc", "warc stage"), peers, given.runs)


if __name__ == "__main__":
    main()

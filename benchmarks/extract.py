"""extract beside others on the same bytes: cc2dataset's parsing function on a WAT, one-pass parsers on a WARC.

python benchmarks/extract_archives.py /tmp/archives
python3 -m venv /tmp/peer && /tmp/peer/bin/pip install cc2dataset==1.5.0
python benchmarks/extract.py /tmp/archives --peer /tmp/peer/bin/python [--runs 5]

Every side is a process of its own; all take one pass after the other in turn, so that each sees the machine as the
others do. Counted is CPU time from the bytes in memory to the last pair, after a first pass that warms up; told are the
fastest pass and the median of a peer's time over ours in the same turn. A pair is a picture's
absolute URL with its alt text. `stage` is all of extract: besides it decodes, cleans and classes texts and URLs, tells
languages, hashes identities and writes Arrow.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
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


def run_side(side: str, archive: Path) -> None:
    """Write the pairs of a first pass as a line, then for each line that is read the seconds of another pass."""
    run = SIDES[side]()
    data = archive.read_bytes()
    print(json.dumps(run(data)), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        run(data)
        print(time.process_time() - started, flush=True)


class Side:
    """A side in its process."""

    def __init__(self, name: str, python: str, archive: Path) -> None:
        command = [python, __file__, str(archive), "--side", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pairs: Pairs = json.loads(self._line())
        self.seconds: list[float] = []

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def go(self) -> None:
        """One more pass."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._line()))

    def end(self) -> None:
        self._process.communicate()


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
    found = {
        name: Side(name, python, archive) for name, python in (dict.fromkeys(ours, sys.executable) | peers).items()
    }
    for _ in range(runs):
        for side in found.values():
            side.go()
    size = archive.stat().st_size / 1e6
    print(f"\n{archive.name}, {size:.1f} MB, fastest of {runs} (all runs)")
    for name, side in found.items():
        side.end()
        best, spread = min(side.seconds), ", ".join(f"{seconds:.2f}" for seconds in side.seconds)
        print(f"  {name:12} {best:6.2f} s  {size / best:6.1f} MB/s  {len(side.pairs):7} pairs   ({spread})")
    for name in ours:
        for peer in peers:
            turns = zip(found[name].seconds, found[peer].seconds, strict=True)
            print(f"  {name} is {statistics.median(theirs / mine for mine, theirs in turns):.2f} times {peer}")
    for peer in peers:
        total, shared, missing = compare(found[ours[0]].pairs, found[peer].pairs)
        print(f"  of {total} distinct pairs of {peer}, {shared} are among those of {ours[0]}; not: {dict(missing)}")
    print(f"  distinct pairs of {ours[0]}: {len(set(map(tuple, found[ours[0]].pairs)))}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("archives", type=Path)
    arguments.add_argument("--peer", help="Python that has cc2dataset")
    arguments.add_argument("--runs", type=int, default=9)
    arguments.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.side:
        run_side(given.side, given.archives)
        return
    if given.peer:
        report(given.archives / "pages.warc.wat.gz", ("wat", "wat stage"), {"cc2dataset": given.peer}, given.runs)
    peers = {"resiliparse": sys.executable, "lxml": sys.executable}
    report(given.archives / "pages.warc.gz", ("warc", "warc stage"), peers, given.runs)


if __name__ == "__main__":
    main()

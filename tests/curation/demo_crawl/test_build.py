import hashlib
import http.client
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from curation.demo_crawl import server as server_module
from curation.demo_crawl.build import DemoCrawl, build_demo_crawl
from curation.demo_crawl.server import DemoServer


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> DemoCrawl:
    return build_demo_crawl(tmp_path_factory.mktemp("demo") / "crawl", shards=2)


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_builds_are_the_same_byte_by_byte(crawl: DemoCrawl, tmp_path: Path) -> None:
    again = build_demo_crawl(tmp_path / "again", shards=2)
    assert content(again.folder) == content(crawl.folder)


def test_a_complete_build_is_reused_and_another_number_of_shards_is_not(tmp_path: Path) -> None:
    first = build_demo_crawl(tmp_path / "crawl", shards=1)
    stamp = (first.folder / "complete").stat().st_mtime_ns
    build_demo_crawl(tmp_path / "crawl", shards=1)
    assert (first.folder / "complete").stat().st_mtime_ns == stamp
    build_demo_crawl(tmp_path / "crawl", shards=3)
    assert len(list(first.archives.glob("*.warc.gz"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["crawl"]


def test_there_is_enough_of_everything(crawl: DemoCrawl) -> None:
    truth = [json.loads(line) for line in crawl.truth.read_text().splitlines()]
    expected = Counter(pair["expect"][0] for pair in truth)
    assert expected["kept"] > 300
    for verdict in (
        "url_blocked", "url_rejected", "text_too_short", "text_placeholder", "http_404", "http_410", "http_5xx",
        "timeout", "too_many_redirects", "address_refused", "truncated_body", "bad_image", "not_an_image", "too_small",
        "aspect_extreme", "robots_disallowed", "opt_out_header", "opt_out_tdm", "opt_out_page", "similarity_low",
        "known_hash", "leak_sha256", "leak_phash",
    ):  # fmt: skip
        assert expected[verdict] >= 1, verdict


def test_archives_are_read_by_others_and_wat_speaks_of_the_same_pages(crawl: DemoCrawl) -> None:
    for warc in sorted(crawl.archives.glob("*.warc.gz")):
        with warc.open("rb") as stream:
            pages = {
                record.headers["WARC-Target-URI"]: record.stream_pos
                for record in ArchiveIterator(stream, record_types=WarcRecordType.response)
            }
        with warc.with_name(warc.name.replace(".warc.", ".wat.")).open("rb") as stream:
            wat = [json.loads(record.reader.read()) for record in ArchiveIterator(stream)]
        spoken_of = {
            entry["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"]: int(entry["Container"]["Offset"])
            for entry in wat
        }
        assert spoken_of == pages
        links = [
            link
            for entry in wat
            for link in entry["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]["Links"]
        ]
        assert len(links) > 100
        assert all(link["path"] == "IMG@/src" for link in links)


def test_the_server_makes_its_trouble(crawl: DemoCrawl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALL_S", 0.5)
    with DemoServer(crawl.folder) as server:

        def get(host: str, path: str) -> tuple[int, http.client.HTTPMessage]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            try:
                connection.request("GET", path, headers={"Host": host})
                with connection.getresponse() as response:
                    response.read()
                    return response.status, response.headers
            finally:
                connection.close()

        assert get("rot.demo.test", "/gone/410-0.jpg")[0] == 410
        assert get("nowhere.test", "/")[0] == 404
        assert get("moved.demo.test", "/loop.jpg")[1]["Location"] == "/loop.jpg"
        assert [get("slow.demo.test", "/heals.jpg")[0] for _ in range(2)] == [503, 200]
        assert get("refusing.demo.test", "/0.jpg")[1]["X-Robots-Tag"] == "noai"
        for path in ("/reset.jpg", "/short.jpg"):
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                get("broken.demo.test", path)
        started = time.monotonic()
        get("slow.demo.test", "/stall.jpg")
        assert time.monotonic() - started > 0.4

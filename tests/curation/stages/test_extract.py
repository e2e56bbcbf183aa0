"""extract: the table it makes of small archives by hand, and of real ones."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import schema
from curation.errors import BadShardError
from curation.sources.archives import open_archive
from curation.stages.extract import Extract, url_class
from curation.web.blocklist import Blocklist
from curation.web.urls import sample_id


def member(kind: str, content: bytes, url: str = "https://a.example/dir/") -> bytes:
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2026-01-01T00:00:00Z"]
    lines += ["WARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>", f"Content-Length: {len(content)}"]
    lines += ["Content-Type: " + ("application/json" if kind == "metadata" else "application/http; msgtype=response")]
    return gzip.compress("\r\n".join([*lines, "", ""]).encode() + content + b"\r\n\r\n")


def page(html: str, **kwargs: str) -> bytes:
    return member(
        "response", f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}".encode(), **kwargs
    )


def wat_page(*links: dict[str, Any], **kwargs: str) -> bytes:
    links = tuple({"path": "IMG@/src", **link} for link in links)
    found = {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}}
    return member("metadata", json.dumps({"Envelope": {"Payload-Metadata": found}}).encode(), **kwargs)


def extract(data: bytes, **settings: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    tally: Counter[str] = Counter()
    stage = Extract(**settings)
    batches = list(stage.read(io.BytesIO(data), "dump/x.warc.gz", tally))
    assert all(batch.schema == stage.produces and 0 < batch.num_rows <= 4096 for batch in batches)
    return pa.Table.from_batches(batches, stage.produces).to_pylist(), tally


def test_declared_columns() -> None:
    stage = Extract()
    assert stage.produces.names == [n for n, column in schema.COLUMNS.items() if column.producer == "extract"]
    assert (stage.name, stage.version, stage.resource, len(stage.consumes)) == ("extract", 8, "cpu", 0)


def test_a_row_from_html() -> None:
    first = page("<p>no picture")
    html = (
        "<html lang=en-GB><meta name=robots content='noimageai'><img src=../dog.jpg alt='A brown dog &amp; a cat in the"
    )
    html += " snow'>"
    rows, tally = extract(first + page(html + "<img src=b.jpg><img src=c.jpg alt=' '>"), archive="warc")
    text = "A brown dog & a cat in the snow"
    confidence = rows[0].pop("language_confidence")
    assert rows == [
        {
            "sample_id": sample_id("https://a.example/dog.jpg", text),
            "url": "https://a.example/dog.jpg",
            "text": text,
            "alt": text,
            "text_kind": "alt",
            "page_url": "https://a.example/dir/",
            "page_language": "en",
            "page_opt_out": True,
            "warc_filename": "dump/x.warc.gz",
            "warc_record_offset": len(first),
            "url_class": "ok",
            "text_class": "ok",
            "n_chars": 31,
            "n_words": 9,
            "language": "en",
            "partition": "en",
            "duplicate_pair": False,
            "expected_sha256": None,
            "expected_phash": None,
            "picture_ref": None,
            "annotated_set": None,
            "annotated_item": None,
            "licence": None,
            "text_origin": "web",
            "conversation": None,
        }
    ]
    assert 0.5 < confidence <= 1
    assert tally["links_seen"] == 3
    assert tally["links_without_text"] == 2
    assert tally["records"] == tally["pages"] == 2


def test_wat_rows_duplicates_and_language() -> None:
    dog = {"url": "a.jpg", "alt": "Ein brauner Hund läuft durch den Schnee"}
    rows, tally = extract(wat_page(dog, {"url": "/b.jpg"}, dog) + wat_page({"url": "//b.example/c", "alt": "xq 1"}))
    assert [row["duplicate_pair"] for row in rows] == [False, True, False]
    assert [row["partition"] for row in rows[:2]] == ["multi", "multi"]
    assert rows[2]["url"] == "https://b.example/c"
    assert rows[0]["page_language"] is None
    assert tally["links_without_text"] == 1


def test_rows_of_a_url_table() -> None:
    out = io.BytesIO()
    columns = {
        "URL": ["HTTP://A.example/1.jpg#x", None, "https://a.example/2.svg", "https://a.example/3.jpg", "dog.jpg"],
        "TEXT": [" A brown\ndog &amp; cat ", "b", "A black dog runs", "", "IMG_1.jpg"],
        "sha256": ["AB" * 32, None, "short", None, None],
        "hash": ["0123456789ABCDEF"] * 5,
    }
    pq.write_table(pa.table(columns), out)
    tally: Counter[str] = Counter()
    stage = Extract(archive="url_table", phash_column="hash")
    batches = stage.read(io.BytesIO(out.getvalue()), "s3://b/t.parquet#rows=0-5", tally)
    rows = pa.Table.from_batches(batches, stage.produces).to_pylist()
    names = ("url", "text", "text_kind", "url_class", "text_class", "expected_sha256", "page_url", "warc_record_offset")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("http://a.example/1.jpg", "A brown dog & cat", "table", "ok", "ok", "ab" * 32, None, 0),
        ("https://a.example/2.svg", "A black dog runs", "table", "extension", "ok", None, None, 2),
        ("dog.jpg", "IMG_1.jpg", "table", "scheme", "filename", None, None, 4),
    ]
    assert {row["warc_filename"] for row in rows} == {"s3://b/t.parquet"}
    assert {row["expected_phash"] for row in rows} == {"0123456789abcdef"}
    assert rows[0]["language"] == "en"
    assert tally["records"] == 5
    assert tally["records_without_url"] == tally["links_without_text"] == 1


def test_same_result_whatever_the_hash_seed_and_batch() -> None:
    links = [{"url": f"{i % 5000}.jpg", "alt": f"picture number {i % 5000} of a long row"} for i in range(9000)]
    rows, _ = extract(wat_page(*links))
    assert len(rows) == 9000
    assert sum(row["duplicate_pair"] for row in rows) == 4000


def test_text_is_chosen_by_kind_and_class() -> None:
    html = (
        "<img src=1.jpg alt=image title='A brown dog'><img src=2.jpg alt='A black dog' title='t'>"
        "<img src=3.jpg alt=DSC_1.jpg>" + "".join(f"<img src=b{i}.jpg alt='Read our story'>" for i in range(6))
    )
    rows, _ = extract(page(html), archive="warc")
    assert [(row["text"], row["text_kind"], row["text_class"]) for row in rows[:4]] == [
        ("A brown dog", "title", "ok"),
        ("A black dog", "alt", "ok"),
        ("DSC_1.jpg", "alt", "filename"),
        ("Read our story", "alt", "boilerplate"),
    ]
    rows, _ = extract(page(html), archive="warc", kinds=("title",))
    assert [row["text"] for row in rows] == ["A brown dog", "t"]


RULES = ["bad.example", "suffix:-ads.example", "token:nsfw", r"regex:/thumbs?/\d+\."]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/dog.jpg", "ok"),
        ("https://a.example/dog.gif", "ok"),
        ("https://a.example/image?id=1", "ok"),
        ("https://a.example/sprite-recipe/dog.jpg", "ok"),
        ("https://a.example/pixel-art-of-a-cat.png", "ok"),
        ("https://127.0.0.1:8000/dog.jpg", "ok"),
        ("data:image/png;base64,AA==", "scheme"),
        ("javascript:void(0)", "scheme"),
        ("ftp://a.example/dog.jpg", "scheme"),
        ("https://a.example/" + "x" * 2000, "length"),
        ("https://intranet/dog.jpg", "host"),
        ("https://me:pw@a.example/dog.jpg", "host"),
        (f"https://{'x' * 60}.example/dog.jpg", "host"),
        ("https://img.bad.example/dog.jpg", "blocked"),
        ("https://a.example/NSFW/dog.jpg", "blocked"),
        ("https://a.example/nsfws/dog.jpg", "ok"),
        ("https://a.example/thumbs/12.jpg", "blocked"),
        ("https://eu-ads.example/dog.jpg", "blocked"),
        ("https://a.example/logo.SVG?v=1", "extension"),
        ("https://a.example/pixel.gif?id=3", "pattern"),
        ("https://a.example/img/1x1.png", "pattern"),
        ("https://a.example/css/sprites_v2.png", "pattern"),
        ("https://www.facebook.com/tr?id=1&ev=PageView", "pattern"),
        ("https://stats.g.doubleclick.net/r/collect", "pattern"),
        ("https://mc.yandex.ru/watch/1", "pattern"),
    ],
)
def test_url_class(url: str, expected: str) -> None:
    assert url_class(url, Extract(), Blocklist(RULES)) == expected


def test_settings_that_judge_urls(tmp_path: Path) -> None:
    blocklist = tmp_path / "list.gz"
    blocklist.write_bytes(gzip.compress(b"bad.example\n"))
    data = wat_page({"url": "http://x.bad.example/a.jpg", "alt": "dog"}, {"url": "a.gif", "alt": "cat"})
    rows, _ = extract(data, blocklist=str(blocklist), refused_extensions=("gif",))
    assert [row["url_class"] for row in rows] == ["blocked", "extension"]
    more = tmp_path / "more"
    more.write_text("regex:gif$\n")
    rows, _ = extract(data, blocklist=(str(blocklist), str(more)))
    assert [row["url_class"] for row in rows] == ["blocked", "blocked"]


def test_long_and_unclean_rows_are_cut_and_sendable() -> None:
    data = wat_page(
        {"url": "a.jpg#x", "alt": "dog \ud800 \x00" + "日" * 5000}, {"url": "data:," + "x" * 9000, "alt": "cat"}
    )
    rows, _ = extract(data)
    assert rows[0]["text"] == "dog " + "日" * 1996
    assert len(rows[1]["url"]) == 2000


def test_empty_archive_of_a_crawl_gives_no_batch() -> None:
    assert extract(member("warcinfo", b"software: x\r\n"))[0] == []
    with pytest.raises(BadShardError, match=r"dump/x\.warc\.gz"):
        extract(b"")


def test_truncated_archive_keeps_what_was_read() -> None:
    data = b"".join(wat_page({"url": f"{i}.jpg", "alt": f"dog {i}"}) for i in range(3))
    rows, tally = extract(data[:-30])
    assert [row["text"] for row in rows][:2] == ["dog 0", "dog 1"]
    assert tally["archive_truncated"] == 1


@pytest.mark.shared
def test_every_real_archive_yields_or_is_refused(shared: Path) -> None:
    rows = refused = 0
    for path in sorted((shared / "data" / "warc" / "files").iterdir()):
        stage = Extract(archive="wat" if ".wat" in path.name else "warc")
        try:
            with open_archive(str(path)) as stream:
                rows += sum(batch.num_rows for batch in stage.read(stream, str(path), Counter()))
        except BadShardError:
            refused += 1
    assert rows > 2500
    assert refused < 35  # what is no archive


@pytest.mark.shared
@pytest.mark.parametrize(
    ("crawl", "expected", "language"),
    [("gimp-en", 6000, "en"), ("gimp-ja", 6000, "ja"), ("gimp-zh-cn", 6000, "zh"), ("openstax-sociology", 650, "en")],
)
def test_real_crawls(shared: Path, crawl: str, expected: int, language: str) -> None:
    tally: Counter[str] = Counter()
    with open_archive(str(shared / "data" / "warc" / "loopback" / f"{crawl}.warc.gz")) as stream:
        rows = [row for batch in Extract(archive="warc").read(stream, crawl, tally) for row in batch.to_pylist()]
    assert len(rows) >= expected
    assert tally["links_seen"] == len(rows) + tally["links_without_text"]
    assert not tally["records_bad"]
    assert not any("\ufffd" in row["text"] for row in rows)
    long = [row for row in rows if row["n_chars"] >= 12 and row["text_class"] == "ok" and row["language"]]
    # most alt texts of the Chinese manual were left in English
    share = sum(row["language"] == language for row in long) / len(long)
    assert share > (0.005 if language == "zh" else 0.6)
    assert {row["page_language"] for row in rows} <= {language, None}

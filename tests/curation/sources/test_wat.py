"""Pages of a WAT: the fast decoding, the lenient one behind it, and what neither can read."""

import gzip
import io
import json
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.sources import wat
from curation.sources.candidates import Page
from curation.sources.wat import read_pages

MiB = 1 << 20
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["path", "url", "alt", "Head", "Links", "Metas", "name", "content", "Base"]), inner
        ),
    ),
    max_leaves=12,
)


def wat_record(content: bytes, url: str = "https://a.example/dir/page.html") -> bytes:
    lines = ["WARC/1.0", "WARC-Type: metadata", f"WARC-Target-URI: {url}", "WARC-Date: 2026-01-01T00:00:00Z"]
    lines += ["WARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>", "Content-Type: application/json"]
    return gzip.compress(
        "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content + b"\r\n\r\n"
    )


def envelope(page: Any) -> dict[str, Any]:
    return {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": page}}}}


def read(*contents: bytes) -> tuple[list[Page], Counter[str]]:
    tally: Counter[str] = Counter()
    data = b"".join(map(wat_record, contents))
    return list(read_pages(io.BytesIO(data), "x.wat.gz", tally, max_record_bytes=1 << 20)), tally


LINKS = [
    {"path": "A@/href", "url": "other.html", "text": "a link"},
    {"path": "IMG@/src", "url": "a.jpg?x=1&amp;y=2&copy=3", "alt": "Tom &amp; Jerry", "title": "t"},
    {"path": "IMG@/longdesc", "url": "about.html"},
    {"path": "IMG@/srcset", "url": "s.jpg 100w, l.jpg 1200w", "alt": "large"},
    {"path": "IMG@/src", "url": "wordless.jpg", "alt": ""},
    {"path": "IMG@/src"},
]


def test_a_page() -> None:
    head = {
        "Base": "/other/",
        "Metas": [
            {"name": "ROBOTS", "content": "noai"},
            {"property": "og:image", "content": "/og.jpg"},
            {"property": "og:description", "content": "about"},
            {"http-equiv": "x"},
            {"name": "HTML@/lang", "content": "pt-BR"},
        ],
    }
    [page], tally = read(json.dumps(envelope({"Head": head, "Links": LINKS})).encode())
    assert page.url == "https://a.example/dir/page.html"
    assert page.robots == {"noai"}
    assert [(picture.url, dict(picture.texts)) for picture in page.pictures] == [
        ("https://a.example/other/a.jpg?x=1&y=2&copy=3", {"alt": "Tom & Jerry", "title": "t"}),
        ("https://a.example/other/l.jpg", {"alt": "large"}),
        ("https://a.example/og.jpg", {"og": "about"}),
    ]
    assert page.wordless == 1
    assert page.language == "pt"
    assert tally["pages"] == tally["records"] == 1


def test_bad_records_are_counted_and_the_rest_goes_on() -> None:
    good = json.dumps(envelope({"Links": LINKS})).encode()
    cases = [
        good,
        b'{"HTML-Metadata": "IMG@/src',
        b'{"x": "\xff\xfe", "Envelope": ' + json.dumps(envelope({"Links": LINKS})["Envelope"]).encode() + b"}",
        json.dumps(envelope({"Links": [{"path": "IMG@/src", "url": 7}, "text", *LINKS]})).encode(),
        b"[" * 100_000 + b'"HTML-Metadata" "IMG@/',
        b'{"Envelope": {}}',
        b"not json",
        good.replace(b"IMG@/", b"IMG/"),
        good,
    ]
    pages, tally = read(*cases)
    assert [len(page.pictures) for page in pages] == [2, 2, 2, 2]
    assert tally["records"] == len(cases)
    assert tally["records_bad"] == tally["records_bad_json"] == 3
    assert tally["pages_without_pictures"] == 1


def test_a_document_of_too_many_links_is_counted_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wat, "_MAX_LINKS", 3)
    monkeypatch.setattr(wat, "_MANY_BYTES", 15)
    image = {"path": "IMG@/src", "url": "/a.jpg", "alt": "large"}
    pages, tally = read(*(compact(envelope({"Links": [image] * count})) for count in (3, 4, 3)))
    assert [len(page.pictures) for page in pages] == [3, 3]
    assert tally["records_bad"] == tally["records_bad_too_large"] == 1


def compact(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


ATTRIBUTE = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            '"}',
            '\\"}',
            '"}]',
            '"},{',
            '{"path":"IMG@/src","url":"x"}',
            '"IMG@/',
            '"Metas":[{',
            '"Base":"',
            "é & <",
            "\\",
        ]
    ),
)
ADDRESS = st.lists(
    st.sampled_from(
        [
            *("https://", "http://", "//", "/", "./", "..", "b.example", "B.example", "a.jpg", "?x=1", "#f", ":8080"),
            *("&amp;", "&", "%20", "data:image/gif;base64,AA==", "data:", "javascript:", " ", "\n", "é", "\\", '"'),
        ]
    ),
    max_size=5,
).map("".join)
LINK = st.fixed_dictionaries(
    {}, optional={"url": ADDRESS | ATTRIBUTE, "alt": ATTRIBUTE, "title": ATTRIBUTE, "text": ATTRIBUTE}
).flatmap(
    lambda rest: st.sampled_from(["IMG@/src", "IMG@/srcset", "IMG@/longdesc", "A@/href", ""]).map(
        lambda path: {"path": path, **rest} if path else {**rest, "path": "IMG@/src"}
    )
)
META = st.dictionaries(st.sampled_from(["name", "property", "content"]), st.one_of(ATTRIBUTE, st.just("og:image")))
HEAD = st.fixed_dictionaries({}, optional={"Base": ADDRESS, "Metas": st.lists(META, max_size=3), "Title": ATTRIBUTE})


@given(HEAD, st.lists(LINK, max_size=4), st.dictionaries(ATTRIBUTE, ATTRIBUTE, max_size=2))
def test_cutting_out_gives_what_parsing_gives(head: Any, links: Any, headers: Any) -> None:
    document = envelope({"Head": head, "Links": links})
    document["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["Headers"] = headers
    spaced = json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    cut, whole = read(compact(document))[0], read(spaced)[0]
    assert [page._replace(offset=0) for page in cut] == [page._replace(offset=0) for page in whole]


def test_the_form_of_common_crawl_is_not_parsed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wat, "_parsed", None)
    head = {"Base": "/other/", "Metas": [{"name": "robots", "content": 'noai "quoted" {}'}], "Title": "a"}
    [page], _ = read(compact(envelope({"Head": head, "Links": LINKS})))
    assert len(page.pictures) == 2
    assert page.robots >= {"noai"}


HEADERS = {"Server": "x"}


@pytest.mark.parametrize(
    "link",
    [
        '"url":"a.jpg","alt":"one","alt":"two"',  # the last counts
        '"url":"a.jpg","url":"","alt":"one"',
        '"url":"a.jpg","alt":"one","path":"A@/href"',
        '"url":"a.jpg","\\u0061lt":"one"',
        '"url":"\\u0061.jpg","alt":"\\ud83d\\ude00 \\"}"',
        '"url":"a.jpg","alt":"\\ud800"',
        '"url":"a.jpg","alt":"bad \\x escape"',
        '"url":"a.jpg","alt":null,"title":"one"',
        '"url":"a.jpg","alt":{"alt":"inner"},"title":"one"',
        '"url":"a.jpg","alt":"a tab\tin it"',
        '"url":"a.jpg","alt":"ends',
    ],
)
def test_an_awkward_link_is_read_as_json_reads_it(link: str) -> None:
    start, end = compact(envelope({"Head": {"Headers": HEADERS}, "Links": [0]})).split(b"0")
    for path in ("IMG@/src", "IMG@/data-src", "IMG@/s\\u0072c"):
        content = start + f'{{"path":"{path}",{link}}}'.encode() + end
        spaced = content.replace(b'{"path":', b'{ "path":')
        cut, whole = read(content), read(spaced)
        assert [page._replace(offset=0) for page in cut[0]] == [page._replace(offset=0) for page in whole[0]]
        assert cut[1]["records_bad"] == whole[1]["records_bad"]


def test_marks_without_an_end_cost_no_square() -> None:
    content = b'{"x":"HTML-Metadata","HTML-Metadata":[' + b'{"path":"IMG@' * 5_000 + b"}"
    tracemalloc.start()
    _, tally = read(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MiB  # each from its mark to the end of the document: 163 MB
    assert tally["records_bad_json"] == 1


@given(JSON)
def test_any_json_in_place_of_a_page(page: Any) -> None:
    content = json.dumps({**envelope(page), "IMG@/": 0}).encode()
    read(content, json.dumps(page).encode())

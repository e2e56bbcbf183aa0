"""What is read from a page: every kind of text, every way to name a picture, every charset."""

import codecs
import time
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from html5lib._inputstream import HTMLBinaryInputStream
from hypothesis import given
from hypothesis import strategies as st

from curation.sources import html
from curation.sources.body import read_head
from curation.sources.candidates import Page
from curation.sources.html import best_of_srcset, may_hold_pictures, too_costly, utf8_html
from curation.sources.html import read_html as read_utf8

# the first and last of each length, and what may not be: too long a form, a surrogate, beyond Unicode
UTF8 = st.sampled_from(
    [
        b"a",
        b"\xc2\x80",
        b"\xe0\xa0\x80",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
    ]
)
PAGE = "https://a.example/dir/page.html"


def read_html(markup: str, url: str, offset: int) -> Page:
    return read_utf8(markup.encode("utf-8", "surrogatepass"), url, offset)


def decode_html(body: bytes, charset: str | None) -> str:
    return utf8_html(body, charset).decode()


def pictures(markup: str) -> dict[str, dict[str, str]]:
    return {each.url: dict(each.texts) for each in read_html(markup, PAGE, 0).pictures}


def test_kinds_of_text() -> None:
    found = pictures("""
        <meta property="og:image" content="/og.jpg"><meta property="og:description" content="the page in a line">
        <img src=a.jpg alt="Tom &amp; Jerry" title="a title" aria-label="a label">
        <figure><img src=b.jpg><figcaption>A <b>bold</b> caption</figcaption></figure>
        <figure><img src=c.jpg><img src=d.jpg><figcaption>of a gallery</figcaption></figure>
        <script type="application/ld+json">{"@graph": [{"@type": "ImageObject", "contentUrl": "/ld.jpg",
            "caption": "from JSON-LD"}, {"@type": "Person", "name": "no picture"}]}</script>
        <img alt="no address"><img src="">
    """)
    base = "https://a.example/"
    assert found == {
        base + "dir/a.jpg": {"alt": "Tom & Jerry", "title": "a title", "aria-label": "a label"},
        base + "dir/b.jpg": {"figcaption": "A bold caption"},
        base + "dir/c.jpg": {},
        base + "dir/d.jpg": {},
        base + "og.jpg": {"og": "the page in a line"},
        base + "ld.jpg": {"json-ld": "from JSON-LD"},
    }


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<img src=s.gif data-src=l.jpg>", "l.jpg"),
        ("<img src='data:image/gif;base64,R0' data-original=l.jpg>", "l.jpg"),
        ("<img src=s.jpg srcset='s.jpg 320w, m.jpg 1200w, l.jpg 4000w'>", "m.jpg"),
        ("<img src=s.jpg data-srcset='s.jpg 320w, m.jpg 640w'>", "m.jpg"),
        ("<img srcset='s.jpg, l.jpg 2x'>", "l.jpg"),
        ("<picture><source srcset='p.webp 800w'><img src='data:,'></picture>", "p.webp"),
        ("<picture><source srcset='p.webp 800w'><img src=f.jpg></picture>", "f.jpg"),
        ("<noscript><img src=n.jpg></noscript>", "n.jpg"),
    ],
)
def test_which_address(markup: str, expected: str) -> None:
    assert list(pictures(markup)) == [f"https://a.example/dir/{expected}"]


def test_noscript_twin_is_one_picture() -> None:
    markup = "<img src=x.gif data-src=a.jpg alt=dog><noscript><img src=a.jpg alt=dog></noscript>"
    assert len(read_html(markup, PAGE, 0).pictures) == 1


def test_base_href_language_and_robots() -> None:
    page = read_html(
        "<html lang=pt-BR><head><base href='//cdn.example/i/'><base href='/other/'>"
        "<meta name=ROBOTS content='NoAI, noindex'></head><img src=a.jpg alt=x>",
        PAGE,
        7,
    )
    assert page.pictures[0].url == "https://cdn.example/i/a.jpg"
    assert page.language == "pt"
    assert page.robots == {"noai", "noindex"}
    assert page.offset == 7


def test_language_of_xhtml() -> None:
    assert read_html("<html xml:lang='de' xmlns='x'><img src=a.jpg>", PAGE, 0).language == "de"
    assert read_html("<html lang='' xml:lang=x-klingon><img src=a.jpg>", PAGE, 0).language is None


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("", ""),
        (" , ", ""),
        ("a.jpg", "a.jpg"),
        ("a.jpg 1x,b.jpg 3x", "b.jpg"),
        ("a,b.jpg 100w, c.jpg 200w", "c.jpg"),
        ("a.jpg 2000w, b.jpg 1024w", "b.jpg"),
        ("data:image/png;base64,AA== 1x", "data:image/png;base64,AA=="),
    ],
)
def test_srcset(srcset: str, expected: str) -> None:
    assert best_of_srcset(srcset) == expected


@given(
    st.lists(st.sampled_from([*" ,.(\t\n", "a.jpg", " 300w", " 1.5x", "2x", "1024w", " 0w", "٣w"]), max_size=16).map(
        "".join
    )
)
def test_plain_srcsets_are_read_as_any(srcset: str) -> None:
    plain = html._plain_candidates(srcset)
    assert plain is None or plain == list(html._candidates(srcset))


@given(
    st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode), st.lists(UTF8, max_size=6).map(b"".join))
)
def test_utf8_is_what_python_decodes(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError:
        assert not html._is_utf8(body)
    else:
        assert html._is_utf8(body)


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("gbk", "这是一张关于北京天安门广场的照片，摄于二〇一九年春天"),
        ("shift_jis", "これは東京タワーの写真です。とても綺麗な夜景が見えます"),
        ("euc-jp", "これは東京タワーの写真です。とても綺麗な夜景が見えます"),
        ("windows-1251", "Это фотография Красной площади в Москве зимой"),
        ("windows-1252", "Ein schönes Foto – über den Dächern der Straße „Müller“"),
        ("big5", "這是一張關於臺北的照片"),
        ("euc-kr", "이것은 서울의 사진입니다"),
        ("utf-8", "mixed 日本語 é"),
    ],
)
def test_charsets(charset: str, text: str) -> None:
    page = f"<html><head><title>{text}</title></head><body><img src=a.jpg alt='{text}'>{text * 5}</body></html>"
    body = page.encode(charset)
    assert text in decode_html(body, charset)
    assert text in decode_html(body, f'"{charset.upper()}"')
    assert text in decode_html(body.replace(b"<head>", f"<head><meta charset={charset}>".encode()), None)


@pytest.mark.parametrize(
    ("label", "body", "text"),
    [
        ("shift_jis", b"\x87\x40 \x81\x60 \xfb\xfc", "① ～ 髙"),
        ("euc-kr", b"\x8c\x63", "똠"),
        ("gb2312", b"\xa2\xe3 \xe9\x46", "€ 镕"),
        ("big5", b"\x87\x40", "䏰"),
        ("windows-874", b"\x80 \xa1", "€ ก"),
        ("iso-8859-1", b"\x93a\x94 \x80", "“a” €"),
        ("us-ascii", b"\xe9", "é"),
    ],
)
def test_labels_mean_what_browsers_take_them_for(label: str, body: bytes, text: str) -> None:
    assert decode_html(body, label) == text


# a standard's parser beside ours: html5lib's prescan is the HTML standard's
LEGACY = {
    "gbk": "这是一张关于北京天安门广场的照片",
    "gb18030": "这是一张关于北京天安门广场的照片",
    "big5": "這是一張關於臺北的照片",
    "shift_jis": "これは東京タワーの写真です",
    "euc-jp": "これは東京タワーの写真です",
    "iso-2022-jp": "これは東京タワーの写真です",
    "euc-kr": "이것은 서울의 사진입니다",
    "koi8-r": "Это фотография Москвы",
    "windows-1250": "Příliš žluťoučký kůň",
    "windows-1251": "Это фотография Москвы",
    "windows-1252": "schöne Straße – „Müller“ €",
    "windows-1253": "Φωτογραφία της Αθήνας",
    "windows-1254": "İstanbul’un fotoğrafı",
    "windows-1255": "תמונה של ירושלים",
    "windows-1256": "صورة من القاهرة",
    "windows-1257": "Vilniaus nuotrauka žąsis",
    "windows-1258": "Ảnh".encode("cp1258", "ignore").decode("cp1258") + " anh",
    "iso-8859-2": "Zażółć gęślą jaźń",
    "iso-8859-7": "Φωτογραφία",
    "iso-8859-15": "Œuvre à 5 €",
    "utf-8": "ünïcödé 日本語",
}
DECLARED = [
    "<meta charset={}>",
    '<META CharSet = "{}" >',
    "<meta http-equiv=Content-Type content='text/html; charset={}'>",
]
DECLARED += ["<!-- <meta charset=utf-8> --><meta name=x content=y><meta charset='{}'/>", "{}"]


@pytest.mark.parametrize("declared", DECLARED, ids=["meta", "spaced", "http-equiv", "comment", "header"])
@pytest.mark.parametrize("charset", LEGACY)
def test_legacy_pages_as_the_standard_reads_them(charset: str, declared: str) -> None:
    text = LEGACY[charset]
    header = charset if declared == "{}" else None
    head = "" if header else declared.format(charset)
    body = f"<html><head>{head}<title>{text}</title></head><body><img src=a.jpg alt='{text}'></body></html>".encode(
        charset
    )
    name = HTMLBinaryInputStream(body, transport_encoding=header, useChardet=False).charEncoding[0].codec_info.name
    assert f"alt='{text}'" in body.decode(name)
    assert read_utf8(utf8_html(body, header), PAGE, 0).pictures[0].texts["alt"] == text


@pytest.mark.shared
def test_real_pages_as_the_standard_reads_them(shared: Path) -> None:
    declared = agree = 0
    for path in sorted((shared / "data" / "warc" / "loopback").iterdir()):
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False):
                content = record.reader.read()
                head = read_head(content, 0, len(content))
                if head is None or "html" not in head.media_type:
                    continue
                body = content[head.body_start :]
                theirs = HTMLBinaryInputStream(body, transport_encoding=head.charset or None, useChardet=False)
                encoding, sure = theirs.charEncoding
                ours = utf8_html(body, head.charset).decode()
                if sure == "certain" or encoding.name != "windows-1252":  # of which the standard says "or guess"
                    declared += 1
                    agree += ours == body.decode(encoding.codec_info.name, "replace").lstrip("\ufeff")
                elif "\ufffd" in ours:
                    assert "\ufffd" in body.decode("utf-8", "replace"), record.headers["WARC-Target-URI"]
    assert declared > 500
    assert agree == declared


def test_bom_wins_and_lies_are_survived() -> None:
    assert decode_html(codecs.BOM_UTF8 + "é".encode(), "shift_jis") == "é"
    assert decode_html(codecs.BOM_UTF16_LE + "é<img".encode("utf-16-le"), None) == "é<img"
    assert decode_html("日本語".encode(), "gbk-nonsense") == "日本語"
    assert "日本語テキスト" in decode_html("日本語テキスト".encode(), "euc-kr")
    assert decode_html("这是照片".encode("gbk") + b"\xff<p>", "gb2312").startswith("这是照片")


def test_pages_without_pictures_are_told_unparsed() -> None:
    assert not may_hold_pictures(b"<p>text</p>")
    assert may_hold_pictures(b"<IMG src=a>")
    assert may_hold_pictures("<img src=a>".encode("utf-16-le"))


TAGS = st.sampled_from(
    [
        *(
            "<img ",
            "<figure>",
            "</figure>",
            "<figcaption>",
            "<picture>",
            "<source srcset=",
            "<base href=",
            "<noscript>",
        ),
        *("<meta name=robots content=", "src=", "srcset='", "alt='", "'", '"', "<!--", "-->", "<svg>", "<template>"),
        *("<script type='application/ld+json'>", '{"@type":"ImageObject","url":', "[", "{", "</script>", "<html lang="),
        *(">", "\0"),
    ]
)


@given(st.lists(st.one_of(TAGS, st.text(max_size=8)), max_size=40).map("".join), st.text(max_size=20))
def test_hostile_markup_gives_a_page(markup: str, url: str) -> None:
    for picture in read_html(markup, url, 0).pictures:
        picture.url.encode("utf-8", "surrogatepass")


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=12)))
def test_hostile_bytes_are_decoded(body: bytes, charset: str | None) -> None:
    read_html(decode_html(body, charset), PAGE, 0)


def test_deep_nesting_is_no_crash() -> None:
    read_html("<div>" * 20_000 + "<img src=a.jpg alt=x>", PAGE, 0)
    read_html("<script type='application/ld+json'>" + '["ImageObject",' * 20_000 + "</script>", PAGE, 0)


@pytest.mark.parametrize(
    "markup",
    [
        "<picture>" + "<source>" * 6000 + "<img src=data:x alt=b>" * 6000,
        "<picture>" * 3000 + "<img src=data:x alt=b>",
        "<figure>" * 3000 + "<img src=a.jpg alt=b><figcaption>c",
    ],
    ids=["sources", "pictures", "figures"],
)
def test_nesting_costs_no_square(markup: str) -> None:
    started = time.process_time()
    assert read_html(markup, "http://a.example/", 0).pictures
    assert time.process_time() - started < 1.5


@pytest.mark.parametrize("open_", ["<div>", "<DIV>", "<x/>", "<div></x>", "<div><p><li>", "<a href='<b>'>"])
def test_elements_without_end_are_too_deep_however_they_are_written(open_: str) -> None:
    assert too_costly((open_ * 30_000).encode()) == "too_deep"
    assert not too_costly((open_ * 3000).encode())


@pytest.mark.parametrize(
    "closed", ["<div></div>", "<p>", "<li>", "<img>", "<br/>", "<tr><td>", "<!-- -->", "<DIV></div>", "</x>"]
)
def test_a_long_page_is_not_deep(closed: str) -> None:
    assert not too_costly((closed * 30_000).encode())


def test_a_page_of_too_many_elements_is_too_large() -> None:
    assert too_costly(b"<img>" * 300_001) == "too_large"
    assert not too_costly(b"<img>" * 300_000)


def test_a_page_that_takes_a_moment_is_read() -> None:
    assert not too_costly(b"<div>" * 10_000 + b"</div>" * 10_000)


def test_the_inner_of_two_figures_captions_its_picture() -> None:
    markup = "<figure><figure><img src=a.jpg><figcaption>inner</figcaption></figure><figcaption>outer</figcaption>"
    page = read_html(markup, "http://a.example/", 0)
    assert page.pictures[0].texts == {"figcaption": "inner"}

"""What is read from a page: every kind of text, every way to name a picture, every charset."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.sources.candidates import Page
from curation.sources.html import best_of_srcset, may_hold_pictures, utf8_html
from curation.sources.html import read_html as read_utf8

PAGE = "https://a.example/dir/page.html"


def read_html(markup: str, url: str, offset: int) -> Page:
    return read_utf8(markup.encode("utf-8", "surrogatepass"), url, offset)


def decode_html(body: bytes, charset: str | None) -> str:
    return utf8_html(body, charset).decode()


def pictures(markup: str) -> dict[str, dict[str, str]]:
    return {url: dict(texts) for url, texts in read_html(markup, PAGE, 0).pictures}


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

"""Markup that is left out before a tree is made: the page must read as it does with all of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.lanes import LANES
from curation.sources import html
from curation.sources.html import read_html
from curation.sources.html_kernel import UNSURE, count, is_utf8, names_image, reduced

LD_JSON = '{"@type":"ImageObject","contentUrl":"l.jpg","caption":"a <b> in it"}'
PIECES = (
    *('<img src=a.jpg alt="a > b">', '<IMG class="x" data-src="b.jpg" title=\'"\'/>', '<image src="c.jpg" alt=c>'),
    *("<picture>", '<source srcset="s.jpg 1x">', "</picture>", "<figure class=f>", "</figure>", "<figcaption id=1>"),
    *(
        "</figcaption>",
        "<noscript>",
        "</noscript>",
        "<template>",
        "</template>",
        "<table border=0>",
        "<td>",
        "</table>",
    ),
    *("<select>", "</select>", "<option x>", "<svg a=b>", "</svg>", "<svg/>", "<path d=M0/>", '<path d="M0"/>', "<g/>"),
    *(
        "<script>",
        "<script src=x.js async>",
        "</script>",
        "<script/>",
        "</SCRIPT >",
        "</script x",
        "<style>",
        "</style>",
    ),
    *(f'<script type="application/ld+json">{LD_JSON}</script>', "<title>", "</title>", "<textarea a>", "</textarea>"),
    *("<iframe src=y>", "</iframe>", "<noframes>", "</noframes>", "<xmp>", "</xmp>", "<!--", "-->", "--!>", "<!-->"),
    *("<!--->", "<!", "<?", "</", "</>", "<", ">", "/", "=", '"', "'", "<![CDATA[", "]]>", "<!doctype html>", "<a b"),
    *("<html lang=de>", "<head>", "</head>", "<body onload=x>", "</body>", "<base href=/d/ target=t>", "<p>", "</p>"),
    *('<meta property="og:image" content="o.jpg">', '<META NAME="Robots" content=noai>', "<meta charset=x>", "<b q>"),
    *(
        "</b>",
        "<a href='x>y'>",
        "</a>",
        "<div class=\"a\nb\" id='c'>",
        "</div>",
        "<input type=hidden>",
        "<font color=red>",
    ),
    *(
        "<desc>",
        "<foreignObject>",
        "<math>",
        "<frameset>",
        "<plaintext>",
        "<textareas>",
        "<scripts>",
        "\r\n",
        "\f",
        " ",
    ),
    *("word", "é", "&lt;", "1 < 2", "<ä>"),
)


def as_it_stands(markup: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "_reduced", lambda markup: (markup, html._WANTED[-1]))
        return read_html(markup, "https://a.example/", 0)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_a_page_reads_as_with_all_of_it(markup: str) -> None:
    data = markup.encode()
    assert read_html(data, "https://a.example/", 0) == as_it_stands(data)


def left(markup: bytes) -> bytes | None:
    out = np.zeros(len(markup) + LANES, np.uint8)
    size, _ = reduced(np.frombuffer(markup, np.uint8), out)
    return None if size == UNSURE else out[:size].tobytes()


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (b'<div class="a > b" id=c>x</div >', b"<div>x</div>"),
        (b"<IMG class=c src=a.jpg>", b"<IMG class=c src=a.jpg>"),
        (b"<script async>if (a < b) x()</script>y", b"<script></script>y"),
        (b"<script type='application/LD+json'>{}</script>", b"<script type='application/LD+json'>{}</script>"),
        (b"<style a>b > c {}</style><title>a <b></title>", b"<style></style><title>a <b></title>"),
        (b"a<!-- <img> -->b<!-->c<!--->d--><!-- e --!>f", b"abcd-->f"),
        (
            b'<meta name=viewport content="x"><meta name="ROBOTS" content=noai>',
            b'<meta><meta name="ROBOTS" content=noai>',
        ),
        (b"<svg w=1><path d=M0/><path d='M0'/></svg>", b"<svg><path><path/></svg>"),
        (b"<!DOCTYPE html><?xml a?>1 < 2</>", b"<!DOCTYPE html><?xml a?>1 < 2</>"),
        (b"<figcaption>a<!-- b -->c", b"<figcaption>a<!-->c"),
        (b"<<!-- -->b>", None),
        (b"<script><!-- <script></script> -->", None),
        (b"<svg><style><b></style></svg>", None),
        (b"<p><![CDATA[<b>]]>", None),
        (b"<textarea>no end", None),
        (b"<p a='no end>", None),
        (b"<math><mi>x", None),
    ],
)
def test_what_is_left(markup: bytes, expected: bytes | None) -> None:
    assert left(markup) == expected


@given(st.one_of(st.text(max_size=80).map(str.encode), st.binary(max_size=80)), st.binary(max_size=2))
def test_utf8(text: bytes, damage: bytes) -> None:
    for data in (text, text + damage, text + damage + text):
        try:
            data.decode()
            expected = True
        except UnicodeDecodeError:
            expected = False
        assert is_utf8(np.frombuffer(data, np.uint8)) == expected


@given(st.lists(st.sampled_from([b"<", b"<img", b"<IMG ", b"x" * 30, b"i"]), max_size=9).map(b"".join))
def test_marks(markup: bytes) -> None:
    data = np.frombuffer(markup, np.uint8)
    assert count(data, ord("<")) == markup.count(b"<")
    assert names_image(data) == (b"<img" in markup.lower())

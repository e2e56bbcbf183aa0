"""Markup that is left out before a tree is made: the page must read as it does with all of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.lanes import LANES
from curation.sources import html
from curation.sources.candidates import LAZY_SRC, LAZY_SRCSET, SAID
from curation.sources.html import read_html
from curation.sources.html_kernel import UNSURE, count, is_utf8, names_image, reduced

LD_JSON = '{"@type":"ImageObject","contentUrl":"l.jpg","caption":"a <b> in it"}'


def _pieces(*lines: str) -> list[str]:
    return [piece for line in lines for piece in line.split("~")]


PICTURES = _pieces(
    """<img src=a.jpg alt="a > b">~<IMG class="x" data-src="b.jpg" title='"'/>~<image src="c.jpg" alt=c>""",
    """<img src=a.jpg>~<img alt=''src="d.jpg"width=1>~<img loading=lazy data-srcset='e.jpg 1x' ALT>""",
)
FRAMES = _pieces(
    '<picture>~<source srcset="s.jpg 1x">~</picture>~<figure class=f>~</figure>~<figcaption id=1>',
    "</figcaption>~<noscript>~</noscript>~<template>~</template>",
)
HEADS = _pieces(
    "<html lang=de>~<head>~</head>~<body onload=x>~</body>~</html>~<!doctype html>~<link rel=a>",
    '<meta property="og:image" content="o.jpg">~<META NAME="Robots" content=noai>~<meta charset=x>',
    "<base href=/d/ target=t>~<base href=/e/>~<title>~</title>~<style>~</style>~</br>",
)
INLINE = _pieces("<a href='x>y'>~<a>~</a>~<b q>~</b>~<span>~</span>~<nobr>~<font color=red>~<br>~<i/>")
BLOCKS = _pieces(
    """<p>~</p>~<div class="a\nb" id='c'>~</div>~<ul>~<li>~</li>~</ul>~<dd>~<h1>~</h2>~<button>~</button>""",
    "<form>~</form>~<hr>~<input type=hidden>~<object>~</object>~<option x>",
)
TABLES = _pieces("<table border=0>~<td>~</td>~<tr>~</tr>~<th>~<caption>~<col>~<tbody>~</table>")
FOREIGN = _pieces('<svg a=b>~</svg>~<svg/>~<path d=M0/>~<path d="M0"/>~<g/>~<g>~</g>~<desc>~</desc>')
TEXTS = _pieces(
    "<script>~<script src=x.js async>~</script>~<script/>~</SCRIPT >~</script x~<textarea a>",
    f'<script type="application/ld+json">{LD_JSON}</script>~</textarea>~<iframe src=y>~</iframe>~<noframes>',
    "</noframes>~<xmp>~</xmp>~<select>~</select>",
)
REST = _pieces(
    """<!--~-->~--!>~<!-->~<!--->~<!-- c -->~<!~<?~</~</>~<~>~/~=~"~'~<![CDATA[~]]>~<a b~<foreignObject>""",
    "<math>~<frameset>~<plaintext>~<textareas>~<scripts>~\r\n~\f~ ~word~é~&lt;~&#32;~1 < 2~<ä>",
)
PIECES = PICTURES + FRAMES + HEADS + INLINE + BLOCKS + TABLES + FOREIGN + TEXTS + REST
NEAR = [  # few kinds at a time: what changes one another's meaning comes together
    PICTURES + FRAMES + each for each in (INLINE + BLOCKS, TABLES + FOREIGN, HEADS + TEXTS, INLINE + REST, PIECES)
]


def as_it_stands(markup: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "_reduced", lambda markup: (markup, html._WANTED[-1]))
        return read_html(markup, "https://a.example/", 0)


@settings(max_examples=1500)
@given(st.sampled_from(NEAR).flatmap(lambda pieces: st.lists(st.sampled_from(pieces), max_size=30)).map("".join))
def test_a_page_reads_as_with_all_of_it(markup: str) -> None:
    data = markup.encode()
    assert read_html(data, "https://a.example/", 0) == as_it_stands(data)


def left(markup: bytes) -> bytes | None:
    out = np.zeros(2 * len(markup) + 2 * LANES, np.uint8)
    size, _ = reduced(np.frombuffer(markup, np.uint8), out)
    return None if size == UNSURE else out[:size].tobytes()


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (b'<div class="a > b" id=c>x</div >', b"<body>"),
        (b"<IMG class=c src=a.jpg width=1 ALT='b'>", b"<body><IMG src=a.jpg ALT='b'>"),
        (b"<img data-lazy-src=a data-sizes=b srcset = 'c' title>", b"<body><img data-lazy-src=a srcset = 'c' title>"),
        (b"<html lang=de><head x><title>a</title> </head><p>b<p>c", b"<html lang=de><head></head><body>"),
        (b"<script async>if (a < b) x()</script>", b""),
        (b"<script type='application/LD+json'>{}</script >", b"<script type='application/LD+json'>{}</script>"),
        (b'<meta name=viewport content="x"><meta name="ROBOTS" content=noai>', b'<meta name="ROBOTS" content=noai>'),
        (b"<p><video><source src=v></video><picture><source srcset=a><!-- b --><img src=c></picture>",
         b"<body><picture><source srcset=a><img src=c></picture>"),
        (b"<p><noscript><div id=a><img src=b></div></noscript>", b"<body><noscript><div><img src=b></div></noscript>"),
        (b"<figure><div><img src=a></div><figcaption class=b>c<!-- d --><i>e</figcaption></figure>f",
         b"<body><figure><img src=a><figcaption>c<!--><i>e</figcaption></figure>"),
        (b"<table><tr><td><img src=a></table>", b"<body><img src=a>"),
        (b"<template>a<template></template><img src=a></p></template><noscript><img src=b>",
         b"<noscript><body><img src=b>"),
        (b"<svg><title>a</title><desc>b</desc><path d=c /></svg><img src=d>", b"<body><img src=d>"),
        (b"<table><tr><img src=a></table>", None),  # stands before the table
        (b"<select><img src=a></select>", None),
        (b"<p><noscript><div>a</div><img src=b></noscript>", None),  # the div ends the paragraph and so the noscript
        (b"<a><noscript><img src=a><a>", None),
        (b"<picture><div><img src=a></div></picture>", None),
        (b"<div><figure><figcaption>a</figcaption></div><img src=b></figure>", None),
        (b"<ul><li><figure><li><figcaption>a</figure>", None),
        (b"<svg><template><img src=a></template>", None),
        (b"&#32;<noscript><img src=a></noscript>", None),
        (b"<script><!-- <script></script> -->", None),
        (b"<svg><style><b></style></svg>", None),
        (b"<p><![CDATA[<b>]]>", None),
        (b"<textarea>no end", None),
        (b"<p a='no end>", None),
        (b"<!-- no end", None),
        (b"<math><mi>x", None),
    ],
)  # fmt: skip
def test_what_is_left(markup: bytes, expected: bytes | None) -> None:
    assert left(markup) == expected


@pytest.mark.parametrize("name", ["src", *LAZY_SRCSET, *LAZY_SRC, *SAID])
def test_an_attribute_that_is_read_is_left(name: str) -> None:
    tag = f'<img {name.upper()}="a">'.encode()
    assert left(tag) == b"<body>" + tag
    assert left(tag.replace(b" ", b" x-")) == b"<body><img>"


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

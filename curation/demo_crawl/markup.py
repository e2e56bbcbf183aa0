"""Pages that test the reader: refused links and texts, and HTML as strangers write it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

from curation.demo_crawl.pictures import Take, encode, picture
from curation.demo_crawl.site import Page, Site

BLOCKED_DOMAINS = ("blocked-ads.test", "spam-pictures.test", "copied-content.test")

_PLACEHOLDER_SRC = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
_NESTED_DIVS = 10_000
_HUGE_CHARS = 1 << 20


def build_refused_links(site: Site, takes: Iterator[Take]) -> list[Page]:
    """URLs that must not be fetched and texts that are no captions. The pictures behind them exist all the same."""
    links = Page(site, "http://links.demo.test/", "Links of many kinds")
    body = encode(picture(next(takes)))
    for number, host in enumerate((*BLOCKED_DOMAINS, "cdn.blocked-ads.test", "a.b.spam-pictures.test")):
        url = site.put(f"http://{host}/offer-{number}.jpg", body)
        links.show(url, f"Great offer of the week, number {number}", "url_blocked", template=number)
    for src, text in (
        ("/drawing.svg", "Drawing of a circle and a square"),
        ("/drawing.svg?v=2", "Drawing of a circle, second version"),
        (_PLACEHOLDER_SRC, "Picture that a script will load"),
        ("javascript:void(0)", "Picture behind a script"),
        ("ftp://files.demo.test/photo.jpg", "Photo on an FTP server"),
        ("/images/pixel.gif?visit=8123", "Counter of this page"),
        ("/spacer.gif", "Space between two columns"),
        ("/1x1.png", "Tracking of this visit"),
        ("/sprites.png", "All symbols of this site"),
    ):
        links.show(src, text, "url_rejected", note=src[:40])

    texts = Page(site, "http://texts.demo.test/", "Texts that say nothing")
    for number, (text, expect) in enumerate(
        (
            ("ok", "text_too_short"),
            ("Cat", "text_too_short"),
            ("Oslo", "text_too_short"),
            ("海", "text_too_short"),
            ("image", "text_placeholder"),
            ("Photo", "text_placeholder"),
            ("picture 7", "text_placeholder"),
            ("Untitled", "text_placeholder"),
            ("featured image", "text_placeholder"),
            ("изображение", "text_placeholder"),
            ("IMG_2034.JPG", "text_placeholder"),
            ("DSC00012", "text_placeholder"),
            ("sunset-at-the-lake.png", "text_placeholder"),
            ("https://texts.demo.test/photo", "text_placeholder"),
        )
    ):
        url = site.put(f"{texts.url}{number}.jpg", body)
        texts.show(url, text, expect, template=number if number % 4 != 1 else 0)
    return [links, texts]


def build_hostile(site: Site, takes: Iterator[Take]) -> list[Page]:
    """Broken, huge, deep and lying pages; the pictures on them are sound."""
    pages: list[Page] = []

    def page(name: str) -> tuple[Page, Take, str]:
        take = next(takes)
        made = Page(site, f"http://wild.demo.test/{name}.html", f"Wild page {name}")
        pages.append(made)
        return made, take, site.put(f"http://wild.demo.test/{take.name}.jpg", encode(picture(take)))

    def note(made: Page, url: str, text: str, **truth: Any) -> None:
        made.expect(url, text, note=made.title, **truth)

    made, take, url = page("unclosed")
    made.add(f"<table><tr><td><b><p>no end <div><img src={url} alt='{_quoted(take)}' width=400<p>next</i></td>")
    note(made, url, take.region.english)

    made, take, url = page("script")
    for payload in ('"><script>alert(1)</script>', "' onerror='alert(2)", "</textarea><svg onload=alert(3)>"):
        text = f"{take.region.english} {payload}"
        made.add(f'<img src="{url}" alt="{html.escape(text)}" onerror="alert(4)">')
        made.expect(url, text, ["kept", "duplicate_sha256"], group="script", note="script in the alt text")

    made, take, url = page("deep")
    made.add("<div>" * _NESTED_DIVS + f'<img src="{url}" alt="{_quoted(take)}">' + "</div>" * _NESTED_DIVS)
    note(made, url, take.region.english)

    made, take, url = page("huge")
    made.add(f'<div title="{"huge " * (_HUGE_CHARS // 5)}"></div><img data-x="{"y" * 5000}" src="{url}"')
    made.add(f'alt="{_quoted(take)}">')
    note(made, url, take.region.english)

    made, take, url = page("nul")
    made.add(f'<p>zero \0 bytes</p><img src="{url}" alt="{_quoted(take)}\0">\0')
    note(made, url, take.region.english)

    made, take, _ = page("base")
    made.head.append('<base href="http://cdn.demo.test/base/">')
    url = site.put(f"http://cdn.demo.test/base/{take.name}.jpg", encode(picture(take)))
    made.add(f'<img src="{take.name}.jpg" alt="{_quoted(take)}">')
    note(made, url, take.region.english)

    made, take, url = page("entities")
    text = f"{take.region.english} & café, “quoted” 😀"
    made.add(f'<img src="{url}?a=1&amp;b=2" alt="{_quoted(take)} &amp; caf&eacute;, &ldquo;quoted&#8221; &#x1F600;">')
    note(made, f"{url}?a=1&b=2", text)

    made, take, url = page("comment")
    made.add(f'<!-- <img src="/hidden.jpg" alt="A picture in a comment"> --><img src="{url}" alt="{_quoted(take)}">')
    made.add('<script>document.write(\'<img src="/written.jpg" alt="A picture that a script writes">\')</script>')
    note(made, url, take.region.english)

    made, take, url = page("title")
    made.add(f'<img src="{url}" title="{_quoted(take)}" alt="">')
    note(made, url, take.region.english)

    made, take, url = page("share")
    made.head += [f'<meta property="og:image" content="{url}">']
    made.head += [f'<meta property="og:image:alt" content="{_quoted(take)}">']
    note(made, url, take.region.english)

    made, take, url = page("lazy")
    made.add(f'<img class="lazyload" src="{_PLACEHOLDER_SRC}" data-src="{url}" alt="{_quoted(take)}">')
    note(made, url, take.region.english, via="warc")
    made.expect(_PLACEHOLDER_SRC, take.region.english, "url_rejected", via="wat", note="placeholder of a lazy picture")

    made, take, url = page("srcset")
    site.put(f"http://wild.demo.test/{take.name}-small.jpg", encode(picture(take).resize((120, 90))))
    made.add(f'<img srcset="{take.name}-small.jpg 120w, {take.name}.jpg 512w" alt="{_quoted(take)}">')
    note(made, url, take.region.english, via="warc")

    made, take, url = page("picture")
    made.add(f'<picture><source srcset="{url}" type="image/jpeg"><img alt="{_quoted(take)}"></picture>')
    note(made, url, take.region.english, via="warc")

    made, take, url = page("figcaption")
    made.add(f'<figure><img src="{url}"><figcaption>{_quoted(take)}</figcaption></figure>')
    note(made, url, take.region.english, via="warc")

    made, take, url = page("json-ld")
    facts = {"@context": "https://schema.org", "@type": "ImageObject", "contentUrl": url}
    made.add(f'<script type="application/ld+json">{json.dumps(facts | {"caption": take.region.english})}</script>')
    note(made, url, take.region.english, via="warc")

    made, take, url = page("two-charsets")
    made.declare_in = "header"
    made.head.append('<meta charset="shift_jis">')
    made.add(f'<img src="{url}" alt="{_quoted(take)} – Zürich, Łódź">')
    note(made, url, f"{take.region.english} – Zürich, Łódź")
    return pages


def _quoted(take: Take) -> str:
    return html.escape(take.region.english)

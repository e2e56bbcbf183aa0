"""The sound part of the web: galleries in seven languages, and what dedup, safety and leakage must find in them."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from curation.demo_crawl.pictures import (
    MAX_COPY_DISTANCE,
    Region,
    Take,
    cropped_copy,
    encode,
    phash,
    picture,
    resized_copy,
    watermarked_copy,
)
from curation.demo_crawl.site import Page, Site

HOME = "http://photos.demo.test/"
_HOSTS = {  # language: host, title, charset of every second page
    "en": ("photos.demo.test", "Photographs", "utf-8"),
    "de": ("zeitung.demo.test", "Bilder des Tages", "windows-1252"),
    "fr": ("revue.demo.test", "La revue illustrée", "iso-8859-1"),
    "es": ("fotos.demo.test", "Álbum de fotos", "windows-1252"),
    "zh": ("tupian.demo.test", "图片库", "gbk"),
    "ja": ("shashin.demo.test", "写真館", "shift_jis"),
    "ru": ("kartinki.demo.test", "Фотографии", "windows-1251"),
}
_PICTURES_PER_PAGE = 8
_COPIED = 24  # photographs of which copies stand elsewhere


def plain_url(take: Take) -> str:
    """Where the gallery of the take's language shows it first."""
    return f"http://photos.demo.test/pictures/{take.name}.jpg"


def build_galleries(site: Site, takes: Sequence[Take]) -> None:
    """Galleries by language: English shows the plain takes, the others mirrored and nearer ones."""
    by_language: defaultdict[str, list[tuple[Take, str]]] = defaultdict(list)
    for take in takes:
        if take.region.role == "page" and take.kind != "near-mirror":
            language, text = take.region.captions[("plain", "mirror", "near").index(take.kind)]
            by_language[language].append((take, text))
    groups = {region.name: region.name for region in _copied(takes)}
    for language, shown in by_language.items():
        host, title, legacy = _HOSTS[language]
        starts = range(0, len(shown), _PICTURES_PER_PAGE)
        for number, start in enumerate(starts, 1):
            page = Page(site, f"http://{host}/gallery/{number}.html", f"{title} {number}", language)
            if number % 2 == 0:
                page.charset = legacy
                page.declare_in = "header" if number % 4 == 0 else "meta"
            for template, (take, text) in enumerate(shown[start : start + _PICTURES_PER_PAGE]):
                path = f"/pictures/{take.name}.jpg"
                site.put(f"http://{host}{path}", encode(picture(take)))
                src = (path, f"../pictures/{take.name}.jpg", f"http://{host}{path}", f"//{host}{path}")[template % 4]
                group = groups.get(take.region.name) if take.kind == "plain" else None
                expect = ["kept", "duplicate_sha256", "duplicate_phash"] if group else "kept"
                page.show(src, text, expect, template=template, group=group)
            if number < len(starts):
                page.link(f"{number + 1}.html")
    index = Page(site, HOME, "Photographs of many places")
    index.link(*(f"http://{_HOSTS[language][0]}/gallery/1.html" for language in by_language))


def build_copies(site: Site, takes: Sequence[Take]) -> list[Page]:
    """Copies of gallery pictures on other hosts: re-encoded, resized, cropped, watermarked, moved, retold."""
    sections: dict[str, Page] = {}
    for number, region in enumerate(_copied(takes)):
        take = Take(region, "plain")
        image = picture(take)
        edited = [
            ("reencoded", encode(image, quality=60)),
            ("resized", encode(resized_copy(image))),
            ("cropped", None if (copy := cropped_copy(image)) is None else encode(copy)),
            ("watermarked", None if (copy := watermarked_copy(image)) is None else encode(copy)),
            ("moved", encode(image)),
        ]
        for at in (number % 5, (number + 1 + number // 5 % 4) % 5):
            note, body = edited[at]
            if body is None:
                continue
            page = sections.get(note)
            if page is None:
                page = sections[note] = Page(site, f"http://mirror-{note}.demo.test/", f"Found pictures, {note}")
            url = site.put(page.url + f"{note}/{region.name}-{number}.jpg", body)
            exact = note == "moved"
            expect = ["duplicate_sha256" if exact else "duplicate_phash", "kept", "duplicate_phash"]
            page.show(url, region.english, sorted(set(expect), key=expect.index), group=region.name, note=note)
    retold = sections["retold"] = Page(site, "http://retold.demo.test/", "The same pictures in other words")
    for region in _copied(takes)[:8]:
        language, text = region.captions[-1]
        expect = ["duplicate_sha256", "kept", "duplicate_phash"]
        url = plain_url(Take(region, "plain"))
        retold.show(url, text, expect, group=region.name, language=language, note="same URL, other text")
    return list(sections.values())


def build_repeats(site: Site, takes: Sequence[Take]) -> list[Page]:
    """The same URL with the same text on several pages: every occurrence but one is a duplicate pair."""
    pages = [Page(site, f"http://again.demo.test/{number}.html", f"Favourites {number}") for number in range(1, 5)]
    # rows of one page stand in one shard; those of several pages in several: the second may be seen as same bytes
    for take in [take for take in takes if take.kind == "near-mirror"][:5]:
        url = site.put(f"http://again.demo.test/{take.name}.jpg", encode(picture(take)))
        for page in pages:
            expect = ["duplicate_pair", "kept", "duplicate_sha256"]
            page.show(url, take.region.english, expect, group=f"again-{take.name}", note="same url and text")
    pages[0].show(url, take.region.english, expect, template=1, group=f"again-{take.name}", note="twice on a page")
    return pages


def build_wrong(site: Site, takes: Sequence[Take], random_: random.Random) -> list[Page]:
    """Pictures under captions of other photographs: the score must part them."""
    pages = [Page(site, f"http://mixed-up.demo.test/{number}.html", f"Mixed up {number}") for number in range(1, 4)]
    regions = [take.region for take in takes if take.region.role == "page"]
    for number, take in enumerate(takes):
        others = [region for region in regions if region.file != take.region.file]
        other = random_.choice(others)
        url = site.put(f"http://mixed-up.demo.test/{take.name}.jpg", encode(picture(take)))
        note = f"caption of {other.name}"
        pages[number % 3].show(url, other.english, "similarity_low", template=number, note=note)
    return pages


def build_evalset(site: Site, takes: Sequence[Take], folder: Path) -> list[Page]:
    """Write the evaluation set to `folder`, and show eight of its pictures on a page: exact, re-encoded, resized."""
    folder.mkdir(parents=True)
    page = Page(site, "http://benchmarks.demo.test/", "Pictures from a benchmark")
    items = []
    reserved = [take for take in takes if take.region.role == "evalset"]
    for number, take in enumerate(reserved):
        image = picture(take)
        body = encode(image, quality=92)
        (folder / f"{take.name}.jpg").write_bytes(body)
        items.append({"image": f"{take.name}.jpg", "text": take.region.english})
        if number >= 8:
            continue
        note = ("exact", "reencoded", "resized")[number % 3]
        shown = {"exact": body, "reencoded": encode(image, quality=70), "resized": encode(resized_copy(image))}[note]
        url = site.put(page.url + f"{take.name}.jpg", shown)
        expect = "leak_sha256" if note == "exact" else "leak_phash"
        page.show(url, take.region.english, expect, template=number, note=note)
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (folder / "items.jsonl").write_text(lines, "utf-8")
    return [page]


def build_unsafe(site: Site, takes: Sequence[Take], path: Path) -> list[Page]:
    """Write an operator's hash list to `path`; two of its pictures are on a page. All are harmless photographs."""
    page = Page(site, "http://banned.demo.test/", "Pictures on a list")
    lines = ["# sha256 of pictures that must not be published; harmless stand-ins"]
    listed = [take for take in takes if take.region.role == "unsafe"]
    for take in listed:
        body = encode(picture(take))
        lines.append(hashlib.sha256(body).hexdigest())
        if take in (listed[0], listed[-1]):
            page.show(site.put(page.url + f"{take.name}.jpg", body), take.region.english, "known_hash")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return [page]


def _copied(takes: Sequence[Take]) -> list[Region]:
    """The regions of which copies are made: those that stay near copies when re-encoded and resized."""
    chosen: list[Region] = []
    for take in takes:
        if take.region.role == "page" and take.kind == "plain" and len(chosen) < _COPIED:
            image = picture(take)
            drift = (phash(resized_copy(image)) ^ phash(image)).bit_count()
            if drift <= MAX_COPY_DISTANCE:
                chosen.append(take.region)
    return chosen

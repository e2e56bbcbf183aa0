"""Pictures of an HTML page and what it says about them, read as a browser would show them.

Parsed by selectolax (lexbor): on 514 saved pages of live sites it parses in 0.9 s what resiliparse's tree takes 1.5 s
for, and lists the 11,665 img elements in 0.1 s against 5 s (its collections are live and walk the tree anew).
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, SelectolaxError

from curation.lanes import LANES
from curation.sources.candidates import (
    LAZY_SRC,
    LAZY_SRCSET,
    SAID,
    Page,
    Picture,
    TextKind,
    page_language,
    robots_directives,
)
from curation.sources.html_kernel import RARE, UNSURE, count, is_utf8, names_image, reduced
from curation.web.urls import Base

_OTHER_PICTURES = (b"og:image", b"imageobject", b"<\0i\0m\0g")
_LAZY = frozenset((*LAZY_SRCSET, *LAZY_SRC))
_CANDIDATE = re.compile(r"[\s,]*([^\s,](?:\S*[^\s,])?)((?:\s(?:[^,(]|\([^)]*\)?)*)?)(?:,|$)")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d+)?)([wx])")
_MAX_SRCSET_CHARS = 20_000
_ENOUGH_PX = 1024  # a candidate of this width serves every recipe; a larger one only costs the site
_DENSITY_PX = 512  # what "1x" counts as beside widths: sites use one of the two, never both
_JSON_LD = 'script[type="application/ld+json"]'
_WANTED = [  # for each choice of rare elements, for each that is looked for makes the walk longer
    ",".join(
        ("meta", "img", *(_JSON_LD if each == "script" else each for n, each in enumerate(RARE) if choice >> n & 1))
    )
    for choice in range(1 << len(RARE))
]
_OPTIONS = LexborDocumentOptions.WO_EVENTS.value  # all but the mirror of a chosen `option` without a look at each node
_MAX_DEPTH = 64  # elements between a figure and what it shows; without a limit nested figures cost their square
_MAX_STEPS = 200_000_000  # over open elements, 1 to 2 s; 0.9 million at most in 3,785 real pages
_MAX_TAGS = 300_000  # 70,535 at most in 4,404 real pages
_TAG = re.compile(rb"<(/?)([a-zA-Z][^\s/>]*)")
# never left open: void elements, and those that the next of their kind ends
_SHALLOW = frozenset(
    b"area base body br col dd dt embed head hr html image img input keygen li link meta optgroup option p param rp rt "
    b"source tbody td tfoot th thead tr track wbr".split()
)
_MAX_JSON_LD_CHARS = 1 << 20
_MAX_JSON_LD_NODES = 10_000
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DETECT_BYTES = 64 << 10
# what browsers read under these names (WHATWG Encoding, 4.2): the vendors' supersets, not the standards
_SUPERSETS = {
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-11": "cp874",
    "shift_jis": "cp932",
}


def may_hold_pictures(body: bytes) -> bool:
    """Whether the bytes name a picture at all; False saves the parsing."""
    if names_image(np.frombuffer(body, np.uint8)):
        return True
    lower = body.lower()
    return any(mark in lower for mark in _OTHER_PICTURES)


def too_costly(markup: bytes) -> Literal["too_large", "too_deep"] | None:
    """Why the page's tree is not to be made; None when it is.

    too_large: each tag may be an element, and one that is handed on as a picture takes 1 KB. too_deep: making the tree
    may take the square of the page's length, many tags among many open elements.

    lexbor looks through the open elements at many a tag: 64,000 nested `div` in 320 kB took it 10 s. Taken as open is
    each start tag without an end tag of its name, which is at least the depth; those in comments and scripts count too.
    """
    n_tags = count(np.frombuffer(markup, np.uint8), ord("<"))
    if n_tags * n_tags <= 2 * _MAX_STEPS:
        return None
    if n_tags > _MAX_TAGS:
        return "too_large"
    opened: Counter[bytes] = Counter()
    n_open = steps = 0
    for end, name in _TAG.findall(markup):
        steps += n_open
        if steps > _MAX_STEPS:
            return "too_deep"
        name = name.lower()
        if name in _SHALLOW:
            continue
        if not end:
            opened[name] += 1
            n_open += 1
        elif opened[name]:
            opened[name] -= 1
            n_open -= 1
    return None


def utf8_html(body: bytes, http_charset: str | None) -> bytes:
    """A page in UTF-8, from the encoding a browser would take: BOM, then HTTP header, then meta, then detection.

    A page that breaks its declared encoding but is valid UTF-8 is UTF-8. Bytes that fit nothing become U+FFFD.
    """
    for bom, name in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(name, "replace").encode("utf-8", "replace")
    label = (http_charset or "").strip(" \"'").lower()
    if label in ("utf-8", "utf8") and _is_utf8(body):
        return body
    declared = map_encoding_to_html5(label, fallback_utf8=False) if label else None
    name = declared or detect_encoding(body[:_DETECT_BYTES], from_html_meta=True) or "utf-8"
    try:
        codec = codecs.lookup(_SUPERSETS.get(name, name)).name
    except LookupError:
        codec = "utf-8"
    if codec != "utf-8":
        try:
            return body.decode(codec).encode("utf-8", "replace")
        except (UnicodeDecodeError, ValueError):
            pass
    return body if _is_utf8(body) else body.decode(codec, "replace").encode("utf-8", "replace")


def _is_utf8(body: bytes) -> bool:
    return bool(is_utf8(np.frombuffer(body, np.uint8)))


def _reduced(markup: bytes) -> tuple[bytes, str]:
    """The markup without what no picture depends on, where that can be told from its tags.

    returns  with it the selector of the elements that matter
    """
    out = np.empty(len(markup) + len(markup) // 4 + 2 * LANES, np.uint8)
    size, seen = reduced(np.frombuffer(markup, np.uint8), out)
    return (markup, _WANTED[-1]) if size == UNSURE else (out[:size].tobytes(), _WANTED[seen])


def best_of_srcset(srcset: str) -> str:
    """URL of the srcset candidate to fetch: the smallest that is large enough, else the largest; "" for none."""
    best, best_px = "", -1.0
    for url, size, unit in _plain_candidates(srcset) or _candidates(srcset):
        px = size if unit == "w" else size * _DENSITY_PX
        if (px > best_px and best_px < _ENOUGH_PX) or _ENOUGH_PX <= px < best_px:
            best, best_px = url, px
    return best


def _plain_candidates(srcset: str) -> list[tuple[str, float, str]] | None:
    """Candidates of a srcset in which each has its descriptor and no URL has a comma; None for any other."""
    if len(srcset) > _MAX_SRCSET_CHARS:
        return None
    found: list[tuple[str, float, str]] = []
    for part in srcset.split(","):
        words = part.split()
        if len(words) != 2:
            return None
        url, descriptor = words
        number, unit = descriptor[:-1], descriptor[-1]
        if unit not in "wx" or not (number.isascii() and number.isdigit()):
            return None
        found.append((url, float(number), unit))
    return found


def _candidates(srcset: str) -> Iterator[tuple[str, float, str]]:
    for found in _CANDIDATE.finditer(srcset[:_MAX_SRCSET_CHARS]):
        descriptor = _DESCRIPTOR.search(found[2])
        yield found[1], float(descriptor[1]) if descriptor else 1.0, descriptor[2] if descriptor else "x"


def read_html(markup: bytes, url: str, offset: int) -> Page:
    """Read one page, in UTF-8; markup that no parser takes gives a page without pictures."""
    nothing = Page(url, None, frozenset(), [], offset)
    markup, wanted = _reduced(markup.replace(b"\0", b"") if b"\0" in markup else markup)
    try:
        tree = LexborHTMLParser(markup, options=_OPTIONS)
    except (SelectolaxError, ValueError):
        return nothing
    root = tree.root
    if root is None:
        return nothing
    found = _elements(tree, wanted)
    base = Base(url)
    for element in found["base"]:
        if href := element.attributes.get("href"):
            base = Base(base.join(href) or url)
            break  # the first counts (HTML, 4.2.3)
    robots, share = _metas(found["meta"])
    captions = _captions(found["figcaption"], found["img"])
    pictures: list[Picture] = []
    shown: set[str] = set()
    sources: dict[int, str] | None = None
    for img in found["img"]:
        attributes = img.attributes
        parent = img.parent
        within = parent.tag if parent is not None else ""
        address = _address(attributes)
        if within == "picture" and (not address or address.startswith("data:")):
            sources = _first_sources(found["source"]) if sources is None else sources
            address = sources.get(parent.mem_id, address)
        address = base.join(address)
        if not address or (within == "noscript" and address in shown):
            continue  # the twin that a lazy loader leaves for readers without scripts
        shown.add(address)
        texts: dict[TextKind, str] = {}
        for kind in SAID:
            if value := attributes.get(kind):
                texts[kind] = value
        if captions and (caption := captions.get(img.mem_id)):
            texts["figcaption"] = caption
        pictures.append(Picture(address, texts))
    if "og:image" in share and (address := base.join(share["og:image"])):
        text = share.get("og:image:alt") or share.get("og:description") or share.get("og:title")
        pictures.append(Picture(address, {"og": text} if text else {}))
    pictures += _json_ld(found["script"], base)
    language = page_language(root.attributes.get("lang") or root.attributes.get("xml:lang"))
    return Page(url, language, robots, pictures, offset)


def _elements(tree: LexborHTMLParser, wanted: str) -> dict[str, list[Any]]:
    """Elements that matter by name, each list in document order, by one walk."""
    found: dict[str, list[Any]] = {name: [] for name in ("base", "meta", "img", "source", "figcaption", "script")}
    for element in tree.css(wanted):
        found[element.tag or ""].append(element)
    return found


def _address(attributes: dict[str, str | None]) -> str:
    if _LAZY.isdisjoint(attributes):
        return (attributes.get("src") or "").strip()
    for name in LAZY_SRCSET:
        if (srcset := attributes.get(name)) and (found := best_of_srcset(srcset)) and not found.startswith("data:"):
            return found
    for name in LAZY_SRC:
        if found := (attributes.get(name) or "").strip():
            return found
    return (attributes.get("src") or "").strip()


def _first_sources(sources: list[Any]) -> dict[int, str]:
    """Address of the first `source` of each picture element that has one."""
    first: dict[int, str] = {}
    for source in sources:
        srcset = source.attributes.get("srcset") or source.attributes.get("data-srcset")
        if srcset and (found := best_of_srcset(srcset)):
            for picture in _around(source, "picture"):
                first.setdefault(picture, found)
    return first


def _metas(metas: list[Any]) -> tuple[frozenset[str], dict[str, str]]:
    robots: frozenset[str] = frozenset()
    share: dict[str, str] = {}
    for meta in metas:
        attributes = meta.attributes
        content = attributes.get("content")
        if not content:
            continue
        name = (attributes.get("property") or attributes.get("name") or "").strip().lower()
        if name == "robots":
            robots |= robots_directives(content)
        elif name.startswith("og:"):
            share.setdefault("og:image" if name == "og:image:url" else name, content)
    return robots, share


def _captions(figcaptions: list[Any], images: list[Any]) -> dict[int, str]:
    """Captions by element, of figures that show one picture: in a gallery none would be surely whose it is."""
    captions: dict[int, str] = {}
    caption_of: dict[int, Any] = {}  # the first of each figure
    for caption in figcaptions:
        for figure in _around(caption, "figure"):
            caption_of.setdefault(figure, caption)
    if not caption_of:
        return captions
    framed = [(img, [figure for figure in _around(img, "figure") if figure in caption_of]) for img in images]
    shown = Counter(figure for img, figures in framed if img.parent.tag != "noscript" for figure in figures)
    for img, figures in framed:
        for figure in figures:
            if shown[figure] <= 1 and (text := caption_of[figure].text(separator=" ", strip=True)):
                captions[img.mem_id] = text
                break
    return captions


def _around(element: Any, name: str) -> Iterator[int]:
    """The elements of a name in which an element lies, innermost first."""
    for _ in range(_MAX_DEPTH):
        element = element.parent
        if element is None:
            return
        if element.tag == name:
            yield element.mem_id


def _json_ld(scripts: list[Any], base: Base) -> list[Picture]:
    pictures: list[Picture] = []
    for script in scripts:
        source = script.text()
        if "ImageObject" not in source or len(source) > _MAX_JSON_LD_CHARS:
            continue
        try:
            waiting: list[Any] = [_json(source)]
        except (ValueError, RecursionError):
            continue
        for _ in range(_MAX_JSON_LD_NODES):
            if not waiting:
                break
            node = waiting.pop()
            if isinstance(node, list):
                waiting.extend(reversed(node))
            elif isinstance(node, dict):
                waiting.extend(value for value in reversed(node.values()) if isinstance(value, dict | list))
                picture = _image_object(node, base)
                if picture:
                    pictures.append(picture)
    return pictures


def _json(source: str) -> Any:
    try:
        return msgspec.json.decode(source)  # half the time, and strict
    except (msgspec.DecodeError, UnicodeEncodeError):
        return json.loads(source, strict=False)


def _image_object(node: dict[str, Any], base: Base) -> Picture | None:
    kind = node.get("@type")
    if kind != "ImageObject" and not (isinstance(kind, list) and "ImageObject" in kind):
        return None
    url = next((value for name in ("contentUrl", "url") if isinstance(value := node.get(name), str) and value), "")
    text = next((v for name in ("caption", "description", "name") if isinstance(v := node.get(name), str) and v), "")
    address = base.join(url)
    return Picture(address, {"json-ld": text} if text else {}) if address else None

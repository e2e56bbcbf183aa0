"""Markup looked at before a tree is made of it, compiled: what a page's pictures do not depend on is left out."""

from __future__ import annotations

import numpy as np
from numba import types

from curation.compiled import compiled, part
from curation.lanes import LANES, between, copied, first, next_byte, number
from curation.sources.candidates import LAZY_SRC, LAZY_SRCSET, SAID
from curation.sources.html_tokens import (
    AND,
    BANG,
    CDATA,
    COMMENT,
    ENDS_TAG_NAME,
    GT,
    IS_SPACE,
    LT,
    QUESTION,
    SLASH,
    attribute,
    begins,
    comment_end,
    holds,
    name_number,
    named,
    tag_end,
    text_end,
)

UNSURE = -1
"""Where a picture lies may depend on more than the tags around it."""

RARE = ("base", "source", "figcaption", "script")
"""Elements that most pages lack; of scripts those of JSON-LD."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_I = types.intp
_NON_ASCII, _LAST, _SPACE = np.uint8(0x80), np.uint8(0xFF), np.uint8(0x20)
_EMPTY_COMMENT, _BODY_TAG, _LD_JSON, _AMPERSAND, _SCRIPT_TAG, _IMG_TAG, _OG, _ROBOTS = (
    np.frombuffer(each, np.uint8)
    for each in (b"<!-->", b"<body>", b"+json", b"&", b"<script", b"<img", b"og:", b"robots")
)
_HAS_BASE, _HAS_SOURCE, _HAS_CAPTION, _HAS_SCRIPT = (1 << n for n in range(len(RARE)))

# what a tag does, of those that may stand in the head first
(_IN_HEAD, _TEXT_IN_HEAD, _SCRIPT, _META, _BASE, _NOSCRIPT, _TEMPLATE, _HTML, _HEAD,
 _BODY, _PLAIN, _IMG, _IMAGE, _SOURCE, _PICTURE, _FIGURE, _CAPTION, _TABLE, _CELL, _ROW, _SVG, _DESC, _SELECT, _BR,
 _EMPTY, _TEXT, _ENDING, _UNKNOWN) = range(28)  # fmt: skip
_KINDS = {
    _IN_HEAD: "link basefont bgsound", _TEXT_IN_HEAD: "title style noframes", _TEXT: "textarea iframe noembed",
    _SCRIPT: "script", _META: "meta", _BASE: "base", _NOSCRIPT: "noscript", _TEMPLATE: "template",
    _HTML: "html", _HEAD: "head", _BODY: "body", _IMG: "img", _IMAGE: "image", _SOURCE: "source", _PICTURE: "picture",
    _FIGURE: "figure", _CAPTION: "figcaption", _TABLE: "table", _CELL: "td th caption",
    _ROW: "tr tbody thead tfoot col colgroup", _SVG: "svg", _DESC: "desc", _SELECT: "select", _BR: "br",
    _EMPTY: "wbr input embed area param track hr keygen",
    # end what is around them, keep it from ending, or are none within another
    _ENDING: "button dd dt object applet marquee option optgroup form",
    _UNKNOWN: "math frameset plaintext foreignobject xmp",
}  # fmt: skip
_SPREAD = np.uint64(0x4FA6961145F21E95)  # gives each of the names a place of its own
_NAME_AT, _KIND_AT = np.zeros(256, np.uint64), np.zeros(256, np.uint8)
for _its_kind, _names in _KINDS.items():
    _numbers = np.array([named(name) for name in _names.split()])
    _places = _numbers * _SPREAD >> np.uint64(56)
    _NAME_AT[_places], _KIND_AT[_places] = _numbers, _its_kind
assert np.count_nonzero(_NAME_AT) == len(" ".join(_KINDS.values()).split())
_KEPT = np.array(sorted({int(named(name)) for name in ("src", *LAZY_SRCSET, *LAZY_SRC, *SAID)}), np.uint64)
_A, _SPAN, _DIV, _P, _LI, _UL, _OL, _FIGURE_NAME, _CAPTION_NAME, _TABLE_NAME = (
    named(name) for name in ["a", "span", "div", "p", "li", "ul", "ol", "figure", "figcaption", "table"]
)


@compiled(types.boolean(_BYTES))
def is_utf8(data: np.ndarray) -> bool:
    """Whether the bytes are UTF-8 (Unicode, table 3-7)."""
    at, end = 0, len(data)
    while at < end:
        if at + LANES <= end:
            found = between(data, at, _NON_ASCII, _LAST)
            if not found:
                at += LANES
                continue
            at += first(found)
        lead = data[at]
        if lead < 0x80:
            at += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            length = 2
        elif 0xE0 <= lead <= 0xEF:
            length = 3
            low, high = (0xA0 if lead == 0xE0 else 0x80), (0x9F if lead == 0xED else 0xBF)
        elif 0xF0 <= lead <= 0xF4:
            length = 4
            low, high = (0x90 if lead == 0xF0 else 0x80), (0x8F if lead == 0xF4 else 0xBF)
        else:
            return False
        if at + length > end or not low <= data[at + 1] <= high:
            return False
        for n in range(at + 2, at + length):
            if data[n] & 0xC0 != 0x80:
                return False
        at += length
    return True


@compiled(_I(_BYTES, types.uint8))
def count(data: np.ndarray, byte: int) -> int:
    """How often the byte stands in the bytes."""
    total = at = 0
    while at + LANES <= len(data):
        total += number(between(data, at, byte, byte))
        at += LANES
    while at < len(data):
        total += data[at] == byte
        at += 1
    return int(total)


@compiled(types.boolean(_BYTES))
def names_image(data: np.ndarray) -> bool:
    """Whether "<img" stands in the bytes, in any case."""
    return bool(holds(data, 0, len(data), _IMG_TAG))


@part
def _kind(name: np.uint64) -> int:
    place = name * _SPREAD >> np.uint64(56)
    return _KIND_AT[place] if _NAME_AT[place] == name else _PLAIN


@part
def _without(opened: np.ndarray, n_open: int, name: np.uint64) -> int:
    """How many of a figure's open elements an end tag of that name leaves open; -1 where it ends none of them."""
    for n in range(n_open - 1, -1, -1):
        if opened[n] == name:
            return n
        if opened[n] == _TABLE_NAME or (
            name != _FIGURE_NAME and (opened[n] == _FIGURE_NAME or opened[n] == _CAPTION_NAME)
        ):
            return -1
    return -1


@part
def _may_open(opened: np.ndarray, n_open: int, name: np.uint64) -> bool:
    """Whether a start tag of that name ends no element around it, but for paragraphs, by HTML, 13.2.6.4.7."""
    if name == _LI:
        return bool(opened[n_open - 1] == _UL or opened[n_open - 1] == _OL)
    if name >> np.uint64(8) == 0x68:  # h1 to h6
        for n in range(n_open):
            if opened[n] >> np.uint64(8) == 0x68:
                return False
    return n_open < len(opened)


@part
def _tag(data: np.ndarray, at: int, end: int, out: np.ndarray, to: int) -> int:
    """Write the tag that begins with data[at:end], with nothing else in it."""
    to = copied(data, at, end, out, to)
    out[to] = GT
    return to + 1


@part
def _picture(data: np.ndarray, at: int, name_end: int, end: int, out: np.ndarray, to: int) -> int:
    """Write the tag of a picture, data[at:end] and ">", with those attributes alone that matter."""
    to = copied(data, at, name_end, out, to)
    at = name_end
    while True:
        while at < end and (IS_SPACE[data[at]] or data[at] == SLASH):
            at += 1
        if at >= end:
            out[to] = GT
            return to + 1
        name_end, behind = attribute(data, at, end)
        name = name_number(data, at, name_end)
        for kept in _KEPT:
            if name == kept:
                out[to] = _SPACE
                to = copied(data, at, behind, out, to + 1)
                break
        at = behind


@part
def _matters(data: np.ndarray, at: int, end: int, kind: int) -> bool:
    """Whether attributes of a meta or script element, data[at:end], may say something of a picture."""
    if kind == _SCRIPT:
        return holds(data, at, end, _AMPERSAND) or holds(data, at, end, _LD_JSON)
    return holds(data, at, end, _AMPERSAND) or holds(data, at, end, _OG) or holds(data, at, end, _ROBOTS)


@compiled(types.UniTuple(_I, 2)(_BYTES, types.uint8[::1]))
def reduced(data: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    """Leave out of a page all that its pictures and what is said about them do not depend on: most elements and texts.

    What is left has the same pictures, captions, metas and JSON-LD in the same order, each in the head or the body and
    in the `picture`, `noscript` and figures that it was in (HTML, 13.2.5 and 13.2.6). Where it takes more than the tags
    around them to tell, nothing is left out: in a table but no cell of it, in `select`, in a figure that is not closed.

    data     uint8, the page without NUL
    out      uint8, longer than it by a fourth and 2 * LANES
    returns  bytes written, or UNSURE, and which of RARE there may be, a bit for each
    """
    at = to = in_svg = in_select = n_templates = n_tables = n_figures = n_open = seen = 0
    in_cell = in_body = in_picture = in_caption = in_noscript = False
    is_lost = is_moved = has_picture = False
    opened = np.empty(32, np.uint64)  # in the outermost figure or noscript
    outside = 0  # how many of them are open around the noscript
    end = len(data)
    while at < end:
        tag = next_byte(data, at, end, LT)
        if in_caption:
            to = copied(data, at, tag, out, to)
        elif not in_body and not n_templates:
            while at < tag and IS_SPACE[data[at]]:
                at += 1
            if at < tag:
                if data[at] == AND:
                    return UNSURE, seen
                in_body, to = True, copied(_BODY_TAG, 0, len(_BODY_TAG), out, to)
        at = tag
        if at + 2 >= end:
            return int(copied(data, at, end, out, to)) if in_caption else to, seen
        is_end = data[at + 1] == SLASH
        start = at + 2 if is_end else at + 1
        if not 0x61 <= data[start] | 0x20 <= 0x7A:
            if is_end or data[start] == BANG or data[start] == QUESTION:
                if begins(data, at, CDATA):
                    return UNSURE, seen
                if begins(data, at, COMMENT):
                    at = comment_end(data, at + len(COMMENT))
                    if at < 0:
                        return UNSURE, seen
                    if in_caption:  # it parts two texts
                        to = copied(_EMPTY_COMMENT, 0, len(_EMPTY_COMMENT), out, to)
                else:  # a declaration, or what counts as a comment
                    behind = min(next_byte(data, start, end, GT) + 1, end)
                    if in_caption:
                        to = copied(data, at, behind, out, to)
                    at = behind
            else:  # a text
                if in_caption:
                    to = copied(data, at, at + 1, out, to)
                elif not in_body and not n_templates:
                    in_body, to = True, copied(_BODY_TAG, 0, len(_BODY_TAG), out, to)
                at += 1
            continue
        behind, is_closed = start, False
        while behind < end and not ENDS_TAG_NAME[data[behind]]:
            behind += 1
        name, name_end = name_number(data, start, behind), behind
        if behind < end and data[behind] != GT:
            behind, is_closed = tag_end(data, behind)
        if not 0 <= behind < end:
            return UNSURE, seen
        kind = _kind(name)
        if kind == _DESC:
            kind = _TEXT_IN_HEAD if in_svg else _PLAIN
        if kind == _UNKNOWN:
            return UNSURE, seen
        if in_picture and not (kind in (_IMG, _IMAGE, _SOURCE) or (kind == _PICTURE and is_end)):
            return UNSURE, seen
        if in_caption and kind not in (_PLAIN, _IMG, _BR, _EMPTY, _FIGURE, _CAPTION):
            return UNSURE, seen

        if kind == _TEMPLATE and not is_end:
            if in_svg or in_noscript:
                return UNSURE, seen
            n_templates += 1
        if n_templates:  # no part of the page, and nothing in it ends what is around it
            if kind in (_SVG, _SELECT):
                return UNSURE, seen
            n_templates -= kind == _TEMPLATE and is_end
            kind = _TEXT_IN_HEAD if kind in (_TEXT_IN_HEAD, _TEXT, _SCRIPT) else _IN_HEAD
        if kind in (_META, _SCRIPT):
            keeps = not is_end and _matters(data, name_end, behind, kind)
        elif kind == _PICTURE:
            keeps = not is_end or in_picture
        elif kind == _NOSCRIPT:
            keeps = not is_end or in_noscript
        elif kind == _SOURCE:
            keeps = in_picture and not is_end
        else:
            keeps = kind in (_IMG, _IMAGE, _HTML, _BASE) and not is_end
        if (keeps or (kind in (_FIGURE, _CAPTION) and not is_end)) and (
            in_select or (n_tables and not in_cell) or (in_svg and kind != _IMG)
        ):
            return UNSURE, seen

        if not in_body:
            if kind == _HEAD:
                to = _tag(data, at, name_end, out, to)
            elif kind in (_HTML, _BODY, _BR) if is_end else kind > _HEAD:
                if is_end and in_noscript:
                    return UNSURE, seen
                in_body, to = True, copied(_BODY_TAG, 0, len(_BODY_TAG), out, to)

        if kind == _NOSCRIPT:
            if in_noscript and (n_open != outside or not is_end):
                return UNSURE, seen
            in_noscript, outside, is_moved, has_picture = not is_end, n_open, False, False
        elif in_noscript:
            if kind == _CAPTION or (is_moved and kind in (_IMG, _IMAGE)):
                return UNSURE, seen
            has_picture = has_picture or kind in (_IMG, _IMAGE)
            if kind in (_PLAIN, _ENDING, _FIGURE, _TABLE, _CELL, _ROW, _SVG, _SELECT):
                is_inline = name in (_A, _SPAN)
                is_block = name in (_DIV, _P)
                if is_end:
                    if n_open == outside or opened[n_open - 1] != name:
                        return UNSURE, seen
                    n_open -= 1
                    is_moved = is_moved or not is_inline  # its start may have ended a paragraph around the noscript
                elif not (is_closed and in_svg):
                    if n_open == len(opened) or (has_picture and not is_block and name != _SPAN):
                        return UNSURE, seen  # a link in a link takes over what was in the noscript
                    opened[n_open] = name
                    n_open += 1
                    is_moved = is_moved or not (is_inline or is_block)
                if is_inline or is_block:
                    to = _tag(data, at, name_end, out, to)
            elif kind == _EMPTY:
                is_moved = True
        elif kind == _FIGURE and not is_end and not is_lost:
            if in_caption:
                return UNSURE, seen
            is_lost = n_open == len(opened)
            if not is_lost:
                opened[n_open] = name
                n_open, n_figures = n_open + 1, n_figures + 1
                to = _tag(data, at, name_end, out, to)
        elif kind == _CAPTION and not is_end and (is_lost or in_caption):
            return UNSURE, seen
        elif n_figures:
            if kind in (_SELECT, _ENDING):
                is_lost = True
            elif kind in (_CELL, _ROW):
                is_lost = _without(opened, n_open, _TABLE_NAME) < 0
            elif kind in (_PLAIN, _FIGURE, _CAPTION, _TABLE, _SVG):
                if is_end:
                    left = _without(opened, n_open, name)
                    is_lost = left < 0
                    n_open = max(0, left)
                    n_figures -= kind == _FIGURE
                elif _may_open(opened, n_open, name):
                    if not (is_closed and (in_svg or kind == _SVG)):
                        opened[n_open] = name
                        n_open += 1
                else:
                    is_lost = True
                if in_caption or kind in (_FIGURE, _CAPTION):
                    to = _tag(data, at, name_end, out, to)
                if kind in (_CAPTION, _FIGURE):
                    in_caption = kind == _CAPTION and not is_end
            elif in_caption and kind in (_BR, _EMPTY):
                to = _tag(data, at, name_end, out, to)
            if is_lost:
                n_figures = n_open = 0
        if kind == _CAPTION and not is_end:
            seen |= _HAS_CAPTION
        if is_lost and seen & _HAS_CAPTION:
            return UNSURE, seen

        if kind == _SVG:
            in_svg = max(0, in_svg - 1) if is_end else in_svg if is_closed else in_svg + 1
        elif kind == _SELECT:
            in_select = max(0, in_select - 1) if is_end else in_select + 1
        elif kind in (_TABLE, _CELL, _ROW):
            if not is_end and (in_svg or (kind == _TABLE and n_tables and not in_cell)):
                return UNSURE, seen
            if kind == _TABLE:
                n_tables = max(0, n_tables - 1) if is_end else n_tables + 1
                in_cell = is_end
            else:
                in_cell = kind == _CELL and not is_end
        elif kind == _PICTURE:
            in_picture = not is_end
        elif kind == _BASE:
            seen |= _HAS_BASE
        if keeps:
            if kind in (_IMG, _IMAGE):
                to = _picture(data, at, name_end, behind, out, to)
            else:
                to = copied(data, at, behind + 1, out, to)
                if kind == _SOURCE:
                    seen |= _HAS_SOURCE
                elif kind == _SCRIPT:
                    seen |= _HAS_SCRIPT
        at = behind + 1
        if not is_end and kind in (_TEXT_IN_HEAD, _TEXT, _SCRIPT):
            behind = text_end(data, at, start, name_end)
            if behind < 0:
                return UNSURE, seen
            if in_svg or in_select:
                if next_byte(data, at, behind, LT) < behind:
                    return UNSURE, seen
            elif kind == _SCRIPT and holds(data, at, behind, COMMENT) and holds(data, at, behind, _SCRIPT_TAG):
                return UNSURE, seen
            if keeps:
                to = _tag(data, at, behind + 2 + name_end - start, out, to)
            at = behind
    return to, seen

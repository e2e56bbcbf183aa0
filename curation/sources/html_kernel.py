"""Markup looked at before a tree is made of it, compiled: what a page's pictures do not depend on is left out."""

from __future__ import annotations

import numpy as np
from numba import types

from curation.compiled import compiled, part
from curation.lanes import LANES, between, copied, first, next_byte, number, table

UNSURE = -1
"""A browser may read the markup in another way than by its tags alone."""

RARE = ("base", "source", "figcaption", "script")
"""Elements that many pages lack; of scripts those of JSON-LD."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_I = types.intp
_LT, _GT, _SLASH, _BANG, _DASH, _EQUAL, _QUOTE, _APOSTROPHE, _QUESTION = (np.uint8(each) for each in b"<>/!-=\"'?")
_NON_ASCII, _LAST = np.uint8(0x80), np.uint8(0xFF)
_COMMENT, _EMPTY_COMMENT, _COMMENT_END, _OTHER_END, _ABRUPT, _CDATA = (
    np.frombuffer(each, np.uint8) for each in (b"<!--", b"<!-->", b"-->", b"--!>", b"->", b"<![cdata[")
)
_LD_JSON, _AMPERSAND, _SCRIPT_TAG, _IMG_TAG, _OG, _ROBOTS = (
    np.frombuffer(each, np.uint8) for each in (b"+json", b"&", b"<script", b"<img", b"og:", b"robots")
)


def _names(*names: bytes) -> tuple[np.uint64, ...]:
    """As _name gives them."""
    return tuple(np.uint64(int.from_bytes(name[:8], "big") ^ (len(name) > 8) << 63) for name in names)


_HAS_BASE, _HAS_SOURCE, _HAS_CAPTION, _HAS_SCRIPT = (1 << n for n in range(len(RARE)))
_IS_SPACE, _ENDS_TAG_NAME, _ENDS_NAME, _ENDS_VALUE = map(
    table, (b"\t\n\f\r ", b"\t\n\f\r />", b"\t\n\f\r />=", b"\t\n\f\r >")
)
_SVG, _SELECT, _CAPTION, _SCRIPT, _STYLE = _names(b"svg", b"select", b"figcaption", b"script", b"style")
# of font and input the attributes matter for where an element goes
_IMG, _META, _SOURCE, _HTML, _BASE, _INPUT, _IMAGE, _FONT = _names(
    *(b"img", b"meta", b"source", b"html", b"base", b"input", b"image", b"font")
)
_TITLE, _TEXTAREA, _IFRAME, _NOFRAMES, _NOEMBED, _XMP = _names(
    *(b"title", b"textarea", b"iframe", b"noframes", b"noembed", b"xmp")
)
_MATH, _FRAMESET, _PLAINTEXT, _FOREIGN_OBJECT, _DESC = _names(
    *(b"math", b"frameset", b"plaintext", b"foreignobject", b"desc")
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


@part
def _begins(data: np.ndarray, at: int, text: np.ndarray) -> bool:
    """Whether the text, in lower case, stands here in any case."""
    n = 0
    while n < len(text) and at + n < len(data) and _lower(data[at + n]) == text[n]:
        n += 1
    return n == len(text)


@part
def _lower(byte: np.uint8) -> np.uint8:
    return byte | np.uint8(0x20) if 0x41 <= byte <= 0x5A else byte


@part
def _holds(data: np.ndarray, start: int, end: int, text: np.ndarray) -> bool:
    """Whether the text, in lower case, begins in data[start:end] in any case."""
    lower = text[0]
    upper = lower ^ np.uint8(0x20) if 0x61 <= lower <= 0x7A else lower
    at = start
    while at < end:
        if at + LANES <= end:
            found = between(data, at, lower, lower) | between(data, at, upper, upper)
            at += first(found) if found else LANES
            if not found:
                continue
        if _begins(data, at, text):
            return True
        at += 1
    return False


@part
def _name(data: np.ndarray, at: int, end: int) -> np.uint64:
    """Name of a tag in lower case, as a number; of more than eight letters the first ones and a bit that says so."""
    name = np.uint64(0)
    for n in range(at, min(end, at + 8)):
        name = name << np.uint64(8) | np.uint64(_lower(data[n]))
    return name ^ np.uint64(1 << 63) if end - at > 8 else name


@part
def _tag_end(data: np.ndarray, at: int) -> tuple[int, bool]:
    """Offset of the ">" that ends the tag whose attributes may begin here, -1 for none, and whether it closes itself.

    HTML, 13.2.5.32 to 13.2.5.40.
    """
    end = len(data)
    while True:
        behind = at
        while at < end and (_IS_SPACE[data[at]] or data[at] == _SLASH):
            at += 1
        if at >= end:
            return -1, False
        if data[at] == _GT:
            return at, at > behind and data[at - 1] == _SLASH
        at += 1  # "=" as well, at the start of a name
        while at < end and not _ENDS_NAME[data[at]]:
            at += 1
        while at < end and _IS_SPACE[data[at]]:
            at += 1
        if at >= end or data[at] != _EQUAL:
            continue
        at += 1
        while at < end and _IS_SPACE[data[at]]:
            at += 1
        if at >= end:
            return -1, False
        if data[at] == _QUOTE or data[at] == _APOSTROPHE:
            at = next_byte(data, at + 1, end, data[at]) + 1
        else:
            while at < end and not _ENDS_VALUE[data[at]]:
                at += 1


@part
def _text_end(data: np.ndarray, at: int, name: int, name_end: int) -> int:
    """Offset of the end tag of that name, data[name:name_end], from here; -1 for none."""
    end, length = len(data), name_end - name
    while True:
        at = next_byte(data, at, end, _LT)
        behind = at + 2 + length
        if behind >= end:
            return -1
        if data[at + 1] == _SLASH and _ENDS_TAG_NAME[data[behind]]:
            n = 0
            while n < length and _lower(data[at + 2 + n]) == _lower(data[name + n]):
                n += 1
            if n == length:
                return at
        at += 1


@part
def _comment_end(data: np.ndarray, at: int) -> int:
    """Offset behind the comment whose content begins here; -1 for none."""
    if at < len(data) and data[at] == _GT:
        return at + 1
    if _begins(data, at, _ABRUPT):
        return at + 2
    while at < len(data):
        at = next_byte(data, at, len(data), _DASH)
        if _begins(data, at, _COMMENT_END):
            return at + 3
        if _begins(data, at, _OTHER_END):
            return at + 4
        at += 1
    return -1


@compiled(types.boolean(_BYTES))
def names_image(data: np.ndarray) -> bool:
    """Whether "<img" stands in the bytes, in any case."""
    return bool(_holds(data, 0, len(data), _IMG_TAG))


@compiled(types.UniTuple(_I, 2)(_BYTES, types.uint8[::1]))
def reduced(data: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    """Leave out of a page comments, attributes of elements that no picture depends on, scripts and styles.

    What remains has the same elements in the same places, by the rules of a browser's tokenizer (HTML, 13.2.5). Where
    what a tag means depends on more, nothing is left out.

    data     uint8, the page without NUL
    out      uint8, longer than it by LANES
    returns  bytes written, or UNSURE, and which of RARE there may be, a bit for each
    """
    at = to = in_svg = in_select = seen = 0
    end = len(data)
    while at < end:
        tag = next_byte(data, at, end, _LT)
        to = copied(data, at, tag, out, to)
        at = tag
        if at + 2 >= end:
            return int(copied(data, at, end, out, to)), seen
        is_end = data[at + 1] == _SLASH
        start = at + 2 if is_end else at + 1
        if not 0x61 <= data[start] | 0x20 <= 0x7A:
            if _begins(data, at, _COMMENT):
                if seen & _HAS_CAPTION:  # there it parts two texts
                    to = copied(_EMPTY_COMMENT, 0, len(_EMPTY_COMMENT), out, to)
                elif to and out[to - 1] == _LT:
                    return UNSURE, seen  # without what is between, it may begin a tag
                at = _comment_end(data, at + len(_COMMENT))
                if at < 0:
                    return UNSURE, seen
            elif _begins(data, at, _CDATA):
                return UNSURE, seen
            else:  # as it stands: a text, or up to ">" a declaration or a comment
                behind = at + 1
                if is_end or data[behind] == _BANG or data[behind] == _QUESTION:
                    behind = next_byte(data, behind, end, _GT)
                to = copied(data, at, behind, out, to)
                at = behind
            continue
        behind, is_closed = start, False
        while behind < end and not _ENDS_TAG_NAME[data[behind]]:
            behind += 1
        name, name_end = _name(data, start, behind), behind
        if behind < end and data[behind] != _GT:
            behind, is_closed = _tag_end(data, behind)
        if not 0 <= behind < end:
            return UNSURE, seen
        is_text = keeps = keeps_attributes = False
        if name == _SVG:
            in_svg = max(0, in_svg - 1) if is_end else in_svg if is_closed else in_svg + 1
        elif name == _SELECT:
            in_select = max(0, in_select - 1) if is_end else in_select + 1
        elif name == _SCRIPT:
            is_text = not is_end
            keeps = keeps_attributes = is_text and (
                _holds(data, name_end, behind, _LD_JSON) or _holds(data, name_end, behind, _AMPERSAND)
            )
        elif name == _STYLE:
            is_text = not is_end
        elif name == _CAPTION:
            seen |= _HAS_CAPTION
        elif name == _META:
            keeps_attributes = not is_end and (
                _holds(data, name_end, behind, _OG)
                or _holds(data, name_end, behind, _ROBOTS)
                or _holds(data, name_end, behind, _AMPERSAND)
            )
        elif name in (_IMG, _SOURCE, _HTML, _BASE, _INPUT, _IMAGE, _FONT):
            keeps_attributes = not is_end
        elif name in (_TITLE, _TEXTAREA, _IFRAME, _NOFRAMES, _NOEMBED, _XMP):
            is_text = keeps = not is_end
        elif name in (_MATH, _FRAMESET, _PLAINTEXT, _FOREIGN_OBJECT, _DESC):
            return UNSURE, seen
        if name == _BASE:
            seen |= _HAS_BASE
        elif name == _SOURCE:
            seen |= _HAS_SOURCE
        elif name == _SCRIPT and keeps:
            seen |= _HAS_SCRIPT
        if keeps_attributes:
            to = copied(data, at, behind + 1, out, to)
        else:
            to = copied(data, at, name_end, out, to)
            if is_closed and not is_end:
                out[to] = _SLASH
                to += 1
            out[to] = _GT
            to += 1
        at = behind + 1
        if is_text:
            behind = _text_end(data, at, start, name_end)
            if behind < 0:
                return UNSURE, seen
            if in_svg or in_select:
                if next_byte(data, at, behind, _LT) < behind:
                    return UNSURE, seen
            elif name == _SCRIPT and _holds(data, at, behind, _COMMENT) and _holds(data, at, behind, _SCRIPT_TAG):
                return UNSURE, seen
            if keeps:
                to = copied(data, at, behind, out, to)
            at = behind
    return to, seen

"""Links to pictures cut out of a WAT's document, compiled: nine tenths of a document are other links."""

from __future__ import annotations

import numpy as np
from numba import types

from curation.compiled import compiled, part
from curation.lanes import LANES, behind, between, copy_32, first, table

UNSURE = -1
"""The document is not surely of the form in which Common Crawl writes them."""
JOIN, ABSOLUTE, OF_SCHEME, OF_ORIGIN, OF_DIRECTORY, SRCSET = range(6)
"""What makes an address canonical: Base.join, nothing, a part of the page's address in front; or it is a srcset."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OUT = types.uint8[::1]
_I = types.intp
_OPENING = np.frombuffer(b'{"path":"IMG@/', np.uint8)
_MARK = 12  # offset of the "@" in it
_PATH, _URL, _ALT, _TITLE, _PROPERTY, _NAME, _CONTENT = (
    np.frombuffer(b'"%b":"' % each, np.uint8)
    for each in (b"path", b"url", b"alt", b"title", b"property", b"name", b"content")
)
_IMG, _BETWEEN, _LIST, _HTTP, _HTTPS, _TWO_SLASHES, _DATA = (
    np.frombuffer(each, np.uint8) for each in (b'"IMG@', b'":"', b"[]", b"http://", b"https://", b"//", b"data:")
)
_QUOTE, _BACKSLASH, _COLON, _COMMA, _CLOSING, _AT, _G, _SPACE = (np.uint8(each) for each in b'"\\:,}@G ')
_NUL, _LAST_CONTROL = np.uint8(0), np.uint8(0x1F)
_SLASH, _DOT, _QUESTION, _HASH, _AND, _SEMICOLON = (np.uint8(each) for each in b"/.?#&;")
_ESCAPED, _MEANT = (np.frombuffer(each, np.uint8) for each in (b'"\\/bfnrt', b'"\\/\b\f\n\r\t'))
# as the expression of canonical URLs in web/urls.py
_WORD = b"abcdefghijklmnopqrstuvwxyz0123456789"
_IN_HOST = table(_WORD + b"-")
_IN_PATH = table(_WORD + _WORD.upper() + b"-_~!$&'()*+,;=:@./")
_IN_QUERY = table(_WORD + _WORD.upper() + b"!$%&()*+,-./:;=?@[]^_`{|}~")  # but a backslash, which escapes here


@part
def _next_image(data: np.ndarray, at: int, end: int) -> int:
    """Offset of the next "@" behind a "G", with which the path of a picture's link begins; `end` if there is none."""
    at = max(at, 1)
    while at + LANES <= end:
        found = between(data, at, _AT, _AT) & between(data, at - 1, _G, _G)
        if found:
            return int(at + first(found))
        at += LANES
    while at < end and (data[at] != _AT or data[at - 1] != _G):
        at += 1
    return at


@part
def _text_end(data: np.ndarray, at: int, end: int) -> int:
    """Offset of the quote that ends the text which begins here; -1 if none does, or it holds control characters."""
    if at < 0:
        return -1
    while at < end:
        if at + LANES <= end:
            found = (
                between(data, at, _QUOTE, _QUOTE)
                | between(data, at, _BACKSLASH, _BACKSLASH)
                | between(data, at, _NUL, _LAST_CONTROL)
            )
            at += first(found) if found else LANES
            if not found:
                continue
        if data[at] == _QUOTE:
            return at
        if data[at] <= _LAST_CONTROL:
            return -1
        at += 2 if data[at] == _BACKSLASH else 1
    return -1


@part
def _has_escape(data: np.ndarray, at: int, end: int) -> bool:
    found = np.uint8(0)
    for n in range(at, end):  # SIMD
        found |= np.uint8(data[n] == _BACKSLASH)
    return bool(found)


@part
def _index(data: np.ndarray, at: int, names: np.ndarray, any_case: bool) -> int:
    """Which of the names, each with a quote behind it, the text that begins here is; -1 for none of them."""
    fold = np.uint8(0x20 if any_case else 0)
    index = name = 0
    while name < len(names):
        n = 0
        while names[name + n] != _QUOTE and names[name + n] | fold == data[at + n] | fold:
            n += 1
        if names[name + n] == data[at + n]:
            return index
        while names[name + n] != _QUOTE:
            n += 1
        name += n + 1
        index += 1
    return -1


@part
def _hexadecimal(data: np.ndarray, at: int, end: int) -> int:
    """Value of the four digits behind a backslash and a "u" at this offset; -1 if they are not there."""
    if at + 6 > end or data[at] != _BACKSLASH or data[at + 1] != 0x75:
        return -1
    value = 0
    for n in range(at + 2, at + 6):
        digit = np.int64(data[n])
        if 0x30 <= digit <= 0x39:
            digit -= 0x30
        else:
            digit = (digit | 0x20) - 0x61 + 10
            if not 10 <= digit < 16:
                return -1
        value = value * 16 + int(digit)
    return value


@part
def _encoded(code: int, out: np.ndarray, to: int) -> int:
    """Write a character beyond ASCII or in it as UTF-8; returns where it ends."""
    if code < 0x80:
        out[to] = code
        return to + 1
    length = 2 if code < 0x800 else 3 if code < 0x10000 else 4
    for n in range(length - 1, 0, -1):
        out[to + n] = 0x80 | (code & 0x3F)
        code >>= 6
    out[to] = ((0xF00 >> length) & 0xFF) | code
    return to + length


@part
def _copied(data: np.ndarray, at: int, end: int, out: np.ndarray, to: int) -> int:
    """Write data[at:end], the inside of a JSON text, and a NUL; returns where that ends, -1 if JSON has no such text.

    A text with a NUL or half a surrogate pair counts as none.
    """
    while at < end and at + LANES <= len(data) and not between(data, at, _BACKSLASH, _BACKSLASH):
        copy_32(out, to, data, at)  # what lies behind the text is written over
        at += LANES
        to += LANES
    if at > end:
        at, to = end, to - (at - end)
    while at < end:
        byte = data[at]
        if byte != _BACKSLASH:
            out[to] = byte
            at += 1
            to += 1
            continue
        code = _hexadecimal(data, at, end)
        if code < 0:
            for n in range(len(_ESCAPED)):
                if data[at + 1] == _ESCAPED[n]:
                    code = int(_MEANT[n])
            at += 2
        else:
            at += 6
            if 0xD800 <= code < 0xDC00:
                low = _hexadecimal(data, at, end)
                if not 0xDC00 <= low < 0xE000:
                    return -1
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                at += 6
            elif 0xDC00 <= code < 0xE000:
                return -1
        if code <= 0:
            return -1
        to = _encoded(code, out, to)
    out[to] = 0
    return to + 1


@part
def _is_printable(data: np.ndarray, start: int, end: int) -> bool:
    """Whether there are only printable ASCII characters without an ampersand and no space at the end."""
    other = np.uint8(0)
    for n in range(np.uint64(start), np.uint64(end)):  # SIMD
        other |= np.uint8(data[n] - _SPACE > 0x7E - 0x20) | np.uint8(data[n] == _AND) | np.uint8(data[n] == _BACKSLASH)
    return not other and bool(data[end - 1] != _SPACE)


@part
def url_kind(data: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """What the address data[start:end] takes to be canonical, and where it ends then: a fragment is left out.

    JOIN is always right. Another kind holds if the part that is put in front is canonical itself, and there is nothing
    in the address that HTML may have escaped.
    """
    if start == end or data[start] == _QUESTION or data[start] == _DOT:
        return JOIN, end
    if behind(data, start, end, _DATA) > 0:
        return (ABSOLUTE if _is_printable(data, start, end) else JOIN), end
    kind, at = ABSOLUTE, max(behind(data, start, end, _HTTP), behind(data, start, end, _HTTPS))
    if at < 0:
        kind, at = OF_SCHEME, behind(data, start, end, _TWO_SLASHES)
    if at < 0:
        kind, at = OF_ORIGIN if data[start] == _SLASH else OF_DIRECTORY, start
    else:
        label, labels = at, 0
        while at < end and (_IN_HOST[data[at]] or (data[at] == _DOT and at > label)):
            if data[at] == _DOT:
                label, labels = at + 1, labels + 1
            at += 1
        if not labels or at <= label or at >= end or data[at] != _SLASH:
            return JOIN, end
    in_query, has_and, has_semicolon = False, False, False
    while at < end:
        byte = data[at]
        if byte == _HASH and kind == ABSOLUTE and not has_and:
            end = at
            break
        if byte == _QUESTION:
            in_query = True
        elif not (_IN_QUERY[byte] if in_query else _IN_PATH[byte]):
            return JOIN, end
        if (byte == _DOT and data[at - 1] == _SLASH) or (byte == _COLON and kind == OF_DIRECTORY):
            return JOIN, end
        if byte == _AND:
            has_and = True
        elif byte == _SEMICOLON:
            has_semicolon = True
        at += 1
    return (JOIN if has_and and has_semicolon else kind), end


@part
def _member(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """Of a member of an object, that begins at this offset, the offsets of its text and of the quote behind that.

    returns  -1 for both if this is no name with a text
    """
    if at >= end or data[at] != _QUOTE:
        return -1, -1
    name_end = _text_end(data, at + 1, end)
    text = behind(data, name_end, end, _BETWEEN)
    text_end = _text_end(data, text, end)
    return (text, text_end) if text_end >= 0 else (-1, -1)


@part
def _metas(data: np.ndarray, at: int, end: int, names: np.ndarray, out: np.ndarray, to: int) -> int:
    """Write property, or else name, and content of the meta elements of these names, in the list that begins here.

    returns  where that ends in `out`, or UNSURE
    """
    if at >= end or data[at] != _LIST[0]:
        return UNSURE
    at += 1
    while at + 1 < end and data[at] == _OPENING[0]:
        name = name_end = other = other_end = content = content_end = 0
        at += 1
        more = data[at] != _CLOSING
        while more:
            key = at
            text, at = _member(data, key, end)
            if at < 0:
                return UNSURE
            if behind(data, key, at, _PROPERTY) == text:
                name, name_end = text, at
            elif behind(data, key, at, _NAME) == text:
                other, other_end = text, at
            elif behind(data, key, at, _CONTENT) == text:
                content, content_end = text, at
            elif _has_escape(data, key, text):
                return UNSURE
            at += 1
            more = at < end and data[at] == _COMMA
            if more:
                at += 1
        if at >= end or data[at] != _CLOSING:
            return UNSURE
        if name == name_end:
            name, name_end = other, other_end
        if name == name_end or content == content_end:
            pass
        elif _index(data, name, names, True) >= 0 or _has_escape(data, name, name_end):
            to = _copied(data, name, name_end, out, to)
            to = _copied(data, content, content_end, out, to) if to >= 0 else to
            if to < 0:
                return UNSURE
        at += 1
        if at >= end or data[at] != _COMMA:
            break
        at += 1
    return to if at < end and data[at] == _LIST[1] else UNSURE


@part
def _image_links(
    data: np.ndarray, start: int, end: int, paths: np.ndarray, n_srcsets: int, out: np.ndarray
) -> tuple[int, int, int, int]:
    """Write the links that show pictures of which something is said; see `cut`.

    returns  bytes written, or UNSURE; the number of links written, of those of which nothing is said, and of all of img
    """
    to = n_links = wordless = n_images = 0
    at = start
    while True:
        at = _next_image(data, at, end)
        if at >= end:
            return to, n_links, wordless, n_images
        if behind(data, at - 4, end, _IMG) < 0:
            at += 1
            continue
        n_images += 1
        path = behind(data, max(at - _MARK, start), end, _OPENING)
        at = _text_end(data, path, end)
        if path < 0 or at < 0:
            return UNSURE, 0, 0, n_images
        known = _index(data, path, paths, False)
        if known < 0 and _has_escape(data, path, at):
            return UNSURE, 0, 0, n_images
        url = url_end = alt = alt_end = title = title_end = 0
        at += 1
        while at < end and data[at] == _COMMA:
            key = at + 1
            text, at = _member(data, key, end)
            if at < 0:
                return UNSURE, 0, 0, n_images
            if behind(data, key, at, _URL) == text:
                url, url_end = text, at
            elif behind(data, key, at, _ALT) == text:
                alt, alt_end = text, at
            elif behind(data, key, at, _TITLE) == text:
                title, title_end = text, at
            elif behind(data, key, at, _PATH) == text or _has_escape(data, key, text):
                return UNSURE, 0, 0, n_images
            at += 1
        if at >= end or data[at] != _CLOSING:
            return UNSURE, 0, 0, n_images
        if known < 0 or url == url_end:
            continue
        if alt == alt_end and title == title_end:
            wordless += 1
            continue
        kind = SRCSET
        if known >= n_srcsets:
            kind, url_end = url_kind(data, url, url_end)
        out[to] = 0x30 + kind
        out[to + 1] = 0
        to = _copied(data, url, url_end, out, to + 2)
        to = _copied(data, alt, alt_end, out, to) if to >= 0 else to
        to = _copied(data, title, title_end, out, to) if to >= 0 else to
        if to < 0:
            return UNSURE, 0, 0, n_images
        n_links += 1


@compiled(types.UniTuple(_I, 4)(_BYTES, _I, _I, _I, _BYTES, _BYTES, _I, _OUT))
def cut(
    data: np.ndarray,
    start: int,
    end: int,
    metas: int,
    names: np.ndarray,
    paths: np.ndarray,
    n_srcsets: int,
    out: np.ndarray,
) -> tuple[int, int, int, int]:
    """Cut out of a document, data[start:end], its links to pictures of which something is said, and its meta elements.

    metas      offset of the list of meta elements; -1 for none
    names      lower-case names of meta elements that matter, each with a quote behind it
    paths      as names, of the attributes that hold a picture's address
    n_srcsets  so many of the paths, the first, hold a srcset
    out        longer than the document by LANES: takes kind (a digit), address, alt and title of each link, then
               name and content of each meta element, a NUL behind each. UTF-8 is not checked
    returns    bytes written, or UNSURE; the number of links written, of those of which nothing is said, of all of img
    """
    to, n_links, wordless, n_images = _image_links(data, start, end, paths, n_srcsets, out)
    if to >= 0 and metas >= 0:
        to = _metas(data, metas, end, names, out, to)
    return to, n_links, wordless, n_images

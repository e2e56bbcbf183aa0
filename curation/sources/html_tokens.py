"""HTML's tokenizer in the parts that loops over markup need (HTML, 13.2.5), compiled into those loops.

Where something here changes, html_kernel.py is to be touched (lanes.py says why).
"""

from __future__ import annotations

import numpy as np

from curation.compiled import part
from curation.lanes import LANES, between, first, next_byte, table

LT, GT, SLASH, BANG, QUESTION, AND = (np.uint8(each) for each in b"<>/!?&")
_DASH, _EQUAL, _QUOTE, _APOSTROPHE = (np.uint8(each) for each in b"-=\"'")
COMMENT, CDATA = (np.frombuffer(each, np.uint8) for each in (b"<!--", b"<![cdata["))
_COMMENT_END, _OTHER_END, _ABRUPT = (np.frombuffer(each, np.uint8) for each in (b"-->", b"--!>", b"->"))
IS_SPACE, ENDS_TAG_NAME, _ENDS_NAME, _ENDS_VALUE = map(
    table, (b"\t\n\f\r ", b"\t\n\f\r />", b"\t\n\f\r />=", b"\t\n\f\r >")
)


def named(name: str) -> np.uint64:
    """As name_number gives it."""
    return np.uint64(int.from_bytes(name[:8].encode(), "big") ^ (len(name) > 8) << 63)


@part
def begins(data: np.ndarray, at: int, text: np.ndarray) -> bool:
    """Whether the text, in lower case, stands here in any case."""
    n = 0
    while n < len(text) and at + n < len(data) and _lower(data[at + n]) == text[n]:
        n += 1
    return n == len(text)


@part
def _lower(byte: np.uint8) -> np.uint8:
    return byte | np.uint8(0x20) if 0x41 <= byte <= 0x5A else byte


@part
def holds(data: np.ndarray, start: int, end: int, text: np.ndarray) -> bool:
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
        if begins(data, at, text):
            return True
        at += 1
    return False


@part
def name_number(data: np.ndarray, at: int, end: int) -> np.uint64:
    """Name of a tag in lower case, as a number; of more than eight letters the first ones and a bit that says so."""
    name = np.uint64(0)
    for n in range(at, min(end, at + 8)):
        name = name << np.uint64(8) | np.uint64(_lower(data[n]))
    return name ^ np.uint64(1 << 63) if end - at > 8 else name


@part
def tag_end(data: np.ndarray, at: int) -> tuple[int, bool]:
    """Offset of the ">" that ends the tag whose attributes may begin here, -1 for none, and whether it closes itself.

    HTML, 13.2.5.32 to 13.2.5.40.
    """
    end = len(data)
    while True:
        behind = at
        while at < end and (IS_SPACE[data[at]] or data[at] == SLASH):
            at += 1
        if at >= end:
            return -1, False
        if data[at] == GT:
            return at, at > behind and data[at - 1] == SLASH
        _, at = attribute(data, at, end)


@part
def attribute(data: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """Offsets behind the name and behind the whole of the attribute that begins here; past `end` if it does not end."""
    at += 1  # "=" as well, at the start of a name
    while at < end and not _ENDS_NAME[data[at]]:
        at += 1
    name_end = at
    while at < end and IS_SPACE[data[at]]:
        at += 1
    if at >= end or data[at] != _EQUAL:
        return name_end, name_end
    at += 1
    while at < end and IS_SPACE[data[at]]:
        at += 1
    if at < end and (data[at] == _QUOTE or data[at] == _APOSTROPHE):
        return name_end, next_byte(data, at + 1, end, data[at]) + 1
    while at < end and not _ENDS_VALUE[data[at]]:
        at += 1
    return name_end, at


@part
def text_end(data: np.ndarray, at: int, name: int, name_end: int) -> int:
    """Offset of the end tag of that name, data[name:name_end], from here; -1 for none."""
    end, length = len(data), name_end - name
    while True:
        at = next_byte(data, at, end, LT)
        behind = at + 2 + length
        if behind >= end:
            return -1
        if data[at + 1] == SLASH and ENDS_TAG_NAME[data[behind]]:
            n = 0
            while n < length and _lower(data[at + 2 + n]) == _lower(data[name + n]):
                n += 1
            if n == length:
                return at
        at += 1


@part
def comment_end(data: np.ndarray, at: int) -> int:
    """Offset behind the comment whose content begins here; -1 for none."""
    if at < len(data) and data[at] == GT:
        return at + 1
    if begins(data, at, _ABRUPT):
        return at + 2
    while at < len(data):
        at = next_byte(data, at, len(data), _DASH)
        if begins(data, at, _COMMENT_END):
            return at + 3
        if begins(data, at, _OTHER_END):
            return at + 4
        at += 1
    return -1

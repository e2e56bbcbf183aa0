"""Gzip members inflated and the heads of their records read, many at once, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from curation.compiled import compiled, part
from curation.lanes import LANES, behind, between, first

N_COLUMNS = 10
OFFSET, END, URL, URL_END, KIND, KIND_END, TYPE, TYPE_END, CONTENT, CONTENT_END = range(N_COLUMNS)
"""Columns of a row: where the member lies in the archive's bytes, and each part in what is inflated."""
CUT, FULL, TOO_LARGE, UNSURE = range(4)
"""Why no more were read: the next may be cut, no room is left, none would be enough, it is not surely one record."""

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_I = types.intp
_INSUFFICIENT_SPACE = 3  # of enum libdeflate_result
_MAX_DIGITS = 10
_BRACE, _NUL, _LAST_CONTROL, _DELETE = (np.uint8(each) for each in b"{\0\x1f\x7f")
_GZIP, _VERSION, _BLANK = (np.frombuffer(each, np.uint8) for each in (b"\x1f\x8b\x08", b"WARC/1.", b"\r\n\r\n"))
_NAMES = np.frombuffer(b"WARC-Target-URI:WARC-Type:Content-Type:Content-Length:", np.uint8)
_NAME_ENDS = np.array([0, 16, 26, 39, 54])


@intrinsic  # type: ignore[untyped-decorator]
def _call(_: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    """Call the C function at an address with seven arguments as large as addresses."""

    def build(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [word] * 7)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int32(*[types.int64] * 8), build


@part
def _line_end(data: np.ndarray, at: int, end: int) -> int:
    """Offset of the CR LF behind a value, printable and without spaces around it; -1 if this is none."""
    start = at
    while at + LANES <= end:
        found = between(data, at, _NUL, _LAST_CONTROL) | between(data, at, _DELETE, _DELETE)
        at += first(found) if found else LANES
        if found:
            break
    while at < end and data[at] > _LAST_CONTROL and data[at] != _DELETE:
        at += 1
    if at == start or at + 2 > end or data[at] != 0x0D or data[at + 1] != 0x0A:
        return -1
    return at if 0x21 <= data[start] <= 0x7E and 0x21 <= data[at - 1] <= 0x7E else -1


@part
def _column(data: np.ndarray, at: int, colon: int) -> int:
    """Column of the field of this name, 0 for one that doesn't matter; -1 if it matters and is spelt another way."""
    for n in range(len(_NAME_ENDS) - 1):
        start = _NAME_ENDS[n]
        if colon - at != _NAME_ENDS[n + 1] - start - 1:
            continue
        same = alike = True
        for k in range(colon - at):
            same = same and data[at + k] == _NAMES[start + k]
            alike = alike and data[at + k] | 0x20 == _NAMES[start + k] | 0x20
        if alike:
            return URL + 2 * n if same else -1
    return 0


@part
def _read_record(data: np.ndarray, start: int, end: int, row: np.ndarray) -> bool:
    """Whether data[start:end] surely is one record; then its parts are in the row.

    Each field that matters at most once and in the standard's spelling: of others readers take this or that.
    """
    row[URL:] = 0
    at = start + len(_VERSION) + 3
    if at > end or behind(data, start, end, _VERSION) < 0 or data[at - 3] | 1 != 0x31:
        return False
    if data[at - 2] != 0x0D or data[at - 1] != 0x0A:
        return False
    while at < end and data[at] != 0x0D:
        colon = at
        while colon < end and (0x41 <= (data[colon] & 0xDF) <= 0x5A or (data[colon] == 0x2D and colon > at)):
            colon += 1
        if colon == at or colon + 2 > end or data[colon] != 0x3A or data[colon + 1] != 0x20:
            return False
        column, line_end = _column(data, at, colon), _line_end(data, colon + 2, end)
        if column < 0 or line_end < 0 or (column and row[column]):
            return False
        if column:
            row[column], row[column + 1] = colon + 2, line_end
        at = line_end + 2
    for n in range(row[KIND], row[KIND_END]):
        if not 0x61 <= data[n] <= 0x7A:
            return False
    length = 0
    for n in range(row[CONTENT], row[CONTENT_END]):
        if not 0x30 <= data[n] <= 0x39:
            return False
        length = length * 10 + data[n] - 0x30
    if not row[KIND] or not 0 < row[CONTENT_END] - row[CONTENT] <= _MAX_DIGITS:
        return False
    row[CONTENT] = at + 2
    row[CONTENT_END] = at + 2 + length
    ends_there = bool(row[CONTENT_END] + 4 == end)
    return ends_there and behind(data, at, end, _BLANK[2:]) >= 0 and behind(data, end - 4, end, _BLANK) >= 0


@part
def _holds(data: np.ndarray, start: int, end: int, text: np.ndarray) -> bool:
    """Whether the text, of two bytes or more, stands in data[start:end]."""
    at = start
    while at < end:
        if at + LANES < end:
            found = between(data, at, text[0], text[0]) & between(data, at + 1, text[1], text[1])
            at += first(found) if found else LANES
            if not found:
                continue
        if behind(data, at, end, text) >= 0:
            return True
        at += 1
    return False


@compiled(types.UniTuple(_I, 4)(_BYTES, _I, types.boolean, _I, _I, types.uint8[::1], _I, _BYTES, types.int64[:, ::1]))
def read_members(
    raw: np.ndarray,
    at: int,
    is_all: bool,
    function: int,
    decompressor: int,
    out: np.ndarray,
    max_bytes: int,
    mark: np.ndarray,
    rows: np.ndarray,
) -> tuple[int, int, int, int]:
    """Inflate members from an offset of the archive's bytes and read the heads of their records.

    raw        uint8, from where `at` counts
    is_all     the archive ends where raw does
    function, decompressor  of libdeflate.Decompressor
    out        uint8, takes what is inflated, one behind the other
    max_bytes  a member that inflates to more is not taken
    mark       uint8, two or more, or none: a content that begins with "{" is passed over if this is not in it
    rows       int64 (n, N_COLUMNS), takes a row for each record
    returns    rows written, where in raw the last member ends, why there are no more, and how many were passed over
    """
    counts = np.zeros(2, np.uint64)
    read, written = counts.ctypes.data, counts[1:].ctypes.data
    source, target = raw.ctypes.data, out.ctypes.data
    to = n_rows = n_passed = 0
    while n_rows < len(rows) and 2 * to <= len(out):
        if at + 4 > len(raw):
            return n_rows, at, CUT, n_passed
        if behind(raw, at, len(raw), _GZIP) < 0 or raw[at + 3]:
            return n_rows, at, UNSURE, n_passed
        room = min(len(out) - to, max_bytes)
        result = _call(function, decompressor, source + at, len(raw) - at, target + to, room, read, written)
        if result:
            why = CUT if result != _INSUFFICIENT_SPACE else FULL if room < min(len(out), max_bytes) else TOO_LARGE
            return n_rows, at, why, n_passed
        end, out_end = at + int(counts[0]), to + int(counts[1])
        if behind(raw, end, len(raw), _GZIP) < 0 and not (is_all and end == len(raw)):
            return n_rows, at, CUT if end + len(_GZIP) > len(raw) else UNSURE, n_passed
        row = rows[n_rows]
        if not _read_record(out, to, out_end, row):
            return n_rows, at, UNSURE, n_passed
        row[OFFSET], row[END] = at, end
        at = end
        if len(mark) and out[row[CONTENT]] == _BRACE and not _holds(out, row[CONTENT], row[CONTENT_END], mark):
            n_passed += 1
        else:
            n_rows += 1
            to = out_end
    return n_rows, at, FULL, n_passed

"""An index of many small pieces, taken in few passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

_PASS_ROWS = 1_000_000


def gathered(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The pieces in their order, small ones joined to at least so many rows, and to a million.

    Each pass over a piece of an index groups the rows of the block again: of a thousand small generations that would be
    most of the time. What is held stays bounded by the block and the largest piece.
    """
    held: list[pa.Table] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= max(rows, _PASS_ROWS):
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()

"""One page of a list of samples: in the order of the tables, or by a measure."""

from __future__ import annotations

from typing import Any, NamedTuple

from curation.ui.browse import PAGE, Filter, Place, page, sort
from curation.ui.counting import WAIT_S, counted
from curation.ui.pages import plain
from curation.ui.sources import Source


class Listing(NamedTuple):
    """Rows, where the next page begins (empty: there is none), and how many parts of how many are looked through."""

    rows: list[dict[str, Any]]
    next: str
    done: int
    of: int


def asked(text: str, language: str, at_least: str, below: str, reason: str = "") -> Filter:
    """The filter that a form's fields ask for."""
    low, high = (float(bound) if bound else None for bound in (at_least, below))
    return Filter(plain(text).strip(), plain(language).strip(), low, high, reason)


def listed(source: Source, wanted: Filter, by: str, start: str) -> Listing:
    """A page.

    by     a measure, with - before it for the largest first; empty: as the tables have them
    start  PART-ROW as a Place, or for a sorted list 0-N with the number of the first row
    """
    part, row = (int(number) for number in start.split("-"))
    if not by:
        rows, following = page(source, Place(part, row), wanted)
        return Listing(rows, str(following) if following else "", source.n_parts, source.n_parts)
    key = ("sorted", source.identity, by, wanted)
    column = by.removeprefix("-")
    state = counted(key, lambda: sort(source, column, ascending=by == column, wanted=wanted), WAIT_S)
    rows = (state.value or [])[row : row + PAGE]
    more = len(state.value or []) > row + PAGE
    return Listing(rows, f"0-{row + PAGE}" if more else "", state.done, state.of)

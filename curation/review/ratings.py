"""Ratings: what each person said of each sample, append-only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import ConfigError
from curation.review.sets import ReviewSet, folder_of
from curation.store import Store

_READERS = 16


class Dimension(NamedTuple):
    """What is rated, and what 1, 3 and 5 mean."""

    name: str
    question: str
    low: str  # 1
    middle: str  # 3
    high: str  # 5


DIMENSIONS = (
    Dimension(
        "accuracy",
        "Is what the caption says true of the picture?",
        "It speaks of another picture, or most of what it says is wrong.",
        "The main thing is right; a detail is wrong or can't be seen.",
        "All that it says can be seen in the picture, nothing is invented.",
    ),
    Dimension(
        "completeness",
        "Does the caption name what matters in the picture?",
        "What the picture is about is not named.",
        "The main thing is named; something else of importance is left out.",
        "Main things, their relations and the setting are named.",
    ),
    Dimension(
        "detail",
        "How closely does the caption describe what it names?",
        "Bare names: 'a car'.",
        "Some properties: colour, number, place or action.",
        "Properties throughout, so that a similar picture could be told apart.",
    ),
    Dimension(
        "relevance",
        "Is the caption about the picture, and free of what is not?",
        "Advertising, file names, keywords or page furniture.",
        "About the picture, with words that do not belong to it.",
        "Every part is about the picture.",
    ),
)
"""The four questions. A rating is 1 to 5; 2 and 4 lie between what is described; none: can't be judged."""
NAMES = tuple(dimension.name for dimension in DIMENSIONS)


class Rating(BaseModel):
    """What one person said of one item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rater: str = Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f.][^\x00-\x1f\x7f]*$")
    item: int = Field(ge=0)
    accuracy: int | None = Field(None, ge=1, le=5)
    completeness: int | None = Field(None, ge=1, le=5)
    detail: int | None = Field(None, ge=1, le=5)
    relevance: int | None = Field(None, ge=1, le=5)
    comment: str = Field("", max_length=2000)
    created_at: str = ""


def rate(store: Store, found: ReviewSet, rating: Rating | Mapping[str, Any]) -> Rating:
    """Keep a rating as an object of its own: nobody's is overwritten, and a rater's later one of an item counts.

    rating   plain data is checked: rater, item, the four dimensions (1 to 5, or None: can't be judged), comment
    raises   ConfigError naming the field that is wrong
    """
    try:
        checked = Rating.model_validate(rating)
    except ValidationError as err:
        first = err.errors()[0]
        raise ConfigError(f"rating: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if checked.item >= len(found.items):
        raise ConfigError(f"rating: item: review set {found.name} has items 0 to {len(found.items) - 1}")
    checked = checked.model_copy(update={"created_at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    folder = f"{_folder(found)}{quote(checked.rater, safe='@+')}/{checked.item:05d}/"
    number = sum(1 for _ in store.entries(folder))
    data = checked.model_dump_json().encode()
    while not store.write_bytes(f"{folder}{number:05d}.json", data, if_absent=True):
        number += 1  # the same person in two windows
    return checked


def rated(store: Store, found: ReviewSet) -> dict[str, set[int]]:
    """Items that each rater has rated; one listing, no object is read."""
    done: dict[str, set[int]] = {}
    for rater, item, _ in _keys(store, found):
        done.setdefault(rater, set()).add(item)
    return done


def read_ratings(store: Store, found: ReviewSet) -> list[Rating]:
    """The ratings that count: of each rater the last one of each item, in order of item and rater."""
    last = {(item, rater): key for rater, item, key in _keys(store, found)}
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda at: Rating.model_validate_json(store.read_bytes(last[at])), sorted(last)))


def next_item(store: Store, found: ReviewSet, rater: str) -> int | None:
    """Number of the next item for a rater: the first that he has not rated and that still lacks raters; None: done.

    All go through the items in the same order, so that early items soon have all their raters and agreement shows.
    """
    done = rated(store, found)
    mine = done.get(rater, set())
    for item in found.items:
        if item.number not in mine and _raters_of(done, item.number) < found.sampling.raters:
            return item.number
    return None


def progress(store: Store, found: ReviewSet) -> dict[str, Any]:
    """How far the rating is.

    returns  items, wanted_ratings, ratings, complete (items with all their raters), raters ({name: items rated})
    """
    done = rated(store, found)
    counts = [_raters_of(done, item.number) for item in found.items]
    return {
        "items": len(counts),
        "wanted_ratings": len(counts) * found.sampling.raters,
        "ratings": sum(counts),
        "complete": sum(count >= found.sampling.raters for count in counts),
        "raters": {rater: len(items) for rater, items in sorted(done.items())},
    }


def _raters_of(done: dict[str, set[int]], item: int) -> int:
    return sum(item in items for items in done.values())


def _keys(store: Store, found: ReviewSet) -> Iterator[tuple[str, int, str]]:
    """Rater, item and key of every rating, an item's in the order they were given."""
    folder = _folder(found)
    for entry in store.entries(folder):
        rater, item, _ = entry.key.removeprefix(folder).split("/")
        yield unquote(rater), int(item), entry.key


def _folder(found: ReviewSet) -> str:
    return f"{folder_of(found.recipe, found.version, found.name)}/ratings/"

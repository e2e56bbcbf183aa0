"""What the pages on a version tell: its difference from another, and how its raters agree."""

from __future__ import annotations

from collections.abc import Iterator

from curation.publish.diff import diff
from curation.review.ratings import progress, read_ratings
from curation.review.report import report
from curation.review.sets import ReviewSet
from curation.store import Store
from curation.ui.counting import Counted, counted


def difference(store: Store, recipe: str, old: str, new: str) -> Counted:
    """`diff`: of versions, which never change, it is told once."""

    def count() -> Iterator[Counted]:
        yield Counted(diff(store, recipe, old, new), 1, 1)

    return counted(("diff", store.root, recipe, old, new), count)


def agreement(store: Store, drawn: ReviewSet) -> Counted:
    """`report` of the ratings so far."""
    ratings = progress(store, drawn)["ratings"]

    def count() -> Iterator[Counted]:
        yield Counted(report(drawn, read_ratings(store, drawn)), 1, 1)

    return counted(("ratings", store.root, drawn.recipe, drawn.version, drawn.name, ratings), count)

"""How far each dump is, what dropped its samples, how fast it goes and what it has cost: for the overview."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from curation.errors import ConfigError
from curation.reports.cost import Prices, cost
from curation.reports.funnel import Funnel, StageCounts, funnel
from curation.store import Store
from curation.ui.counting import WAIT_S, Counted, counted
from curation.ui.sources import SHARDS, Dump, done_tables, open_dump

DUMPS = 10  # on a page of the overview
_PIECE = 8  # shards that a funnel is counted by


class Standing(NamedTuple):
    """A dump and a recipe on the overview."""

    dump: str
    recipe: str
    n_shards: int
    done: dict[str, int]  # shards by stage
    counted: Counted  # its Funnel, of shards that are done
    cost: dict[str, Any] | None  # of the shards that are counted; None: no prices, or nothing counted
    problem: str  # why nothing can be told


def standing(store: Store, dump: str, recipe: str, wait_s: float) -> Standing:
    """One line of the overview: a listing for each stage, and what is counted of the funnel."""
    try:
        opened = open_dump(store, dump, recipe)
        done = {name: len(done_tables(store, opened.recipe, dump, name)) for name in opened.recipe.stage_names}
        found = counted_funnel(opened, wait_s)
    except ConfigError as err:
        return Standing(dump, recipe, 0, {}, Counted(None, 0, 0), None, str(err))
    price = None
    if found.value is not None and (prices := prices_of_environment()) is not None:
        price = cost(found.value, opened.recipe, prices)
    return Standing(dump, recipe, opened.n_shards, done, found, price, "")


def standings(store: Store, planned: Sequence[tuple[str, str]]) -> list[Standing]:
    """Lines of the overview; for what is not counted yet the page waits once, not for each."""
    return [standing(store, *one, WAIT_S / len(planned)) for one in planned]


def counted_funnel(opened: Dump, wait_s: float) -> Counted:
    """Funnel of the shards that are done, at most 64 evenly drawn ones, as far as it is counted."""
    return counted(("funnel", opened.identity), lambda: _funnels(opened, opened.even(SHARDS)), wait_s)


def prices_of_environment() -> Prices | None:
    """Prices that CURATION_PRICE_CPU_HOUR, _GPU_HOUR, _GB_MONTH and _GB_FETCHED name; None where none does.

    raises  ConfigError naming a setting that is no price
    """
    named = {field: os.environ.get(f"CURATION_PRICE_{field.upper()}", "") for field in Prices.model_fields}
    try:
        prices = Prices.model_validate({field: value for field, value in named.items() if value})
    except ValidationError as err:
        raise ConfigError(f"CURATION_PRICE_{str(err.errors()[0]['loc'][0]).upper()}: {err.errors()[0]['msg']}") from err
    return prices if any(prices.model_dump().values()) else None


def _funnels(opened: Dump, shards: Sequence[int]) -> Iterator[Counted]:
    total: Funnel | None = None
    for start in range(0, len(shards), _PIECE):
        piece = funnel(opened.store, opened.recipe, opened.dump, shards[start : start + _PIECE])
        total = piece if total is None else _sum(total, piece)
        yield Counted(total, len(total.shards), len(shards))
    if total is None:
        yield Counted(
            Funnel(opened.recipe.name, opened.dump, [StageCounts(n) for n in opened.recipe.stage_names], {}), 0, 0
        )


def _sum(first: Funnel, second: Funnel) -> Funnel:
    stages = []
    for one, other in zip(first.stages, second.stages, strict=True):
        stages.append(
            StageCounts(
                one.stage,
                one.shards_done + other.shards_done,
                one.rows_in + other.rows_in,
                one.reasons + other.reasons,
                one.seconds + other.seconds,
                max(one.peak_memory_bytes, other.peak_memory_bytes),
                one.bytes + other.bytes,
                one.tally + other.tally,
            )
        )
    return Funnel(first.recipe, first.dump, stages, first.shards | second.shards)

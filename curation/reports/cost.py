"""What a dump has cost so far: seconds of receipts times prices of yours, by stage and per million samples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from curation.errors import ConfigError
from curation.recipe import Recipe
from curation.reports.funnel import Funnel


class Prices(BaseModel):
    """Prices in any one currency. A task's slot: a machine's price divided by the tasks that it runs at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_hour: float = Field(0.0, ge=0, allow_inf_nan=False, description="an hour of a slot of the queue default")
    gpu_hour: float = Field(0.0, ge=0, allow_inf_nan=False, description="an hour of a slot of the queue gpu")
    gb_month: float = Field(0.0, ge=0, allow_inf_nan=False, description="1e9 bytes kept in the store for a month")
    gb_fetched: float = Field(0.0, ge=0, allow_inf_nan=False, description="1e9 bytes fetched from the web")


def cost(found: Funnel, recipe: Recipe, prices: Prices) -> dict[str, Any]:
    """Price every stage of a funnel.

    returns  stages (stage, hours, bytes, cost), cost (work: hours and traffic), a_month (keeping all tables), both also
             per million samples: seen (that extract found) and kept (that every gate let through); null where none is
    raises   ConfigError when every price is 0
    source   Receipt.seconds is the wall time of one task: waiting in a queue costs nothing, retries that failed are
             not in it
    """
    if not any(prices.model_dump().values()):
        raise ConfigError("cost: give a price: --cpu-hour, --gpu-hour, --gb-month or --gb-fetched")
    rows: list[dict[str, Any]] = []
    for counts in found.stages:
        stage = recipe.stage(counts.stage)
        assert stage is not None
        hours = counts.seconds / 3600
        work = hours * (prices.gpu_hour if stage.resource == "gpu" else prices.cpu_hour)
        traffic = counts.tally["bytes_fetched"] / 1e9 * prices.gb_fetched
        rows.append({"stage": counts.stage, "hours": hours, "bytes": counts.bytes, "cost": work + traffic})
    total = sum(row["cost"] for row in rows)
    month = sum(row["bytes"] for row in rows) / 1e9 * prices.gb_month
    millions = {"seen": found.samples / 1e6, "kept": found.kept / 1e6}
    return {
        "stages": rows,
        "cost": total,
        "a_month": month,
        "cost_per_million": {name: total / of if of else None for name, of in millions.items()},
        "a_month_per_million": {name: month / of if of else None for name, of in millions.items()},
    }

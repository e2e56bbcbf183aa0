from collections import Counter

import pytest

from curation.errors import ConfigError
from curation.recipe import load_recipe
from curation.reports.cost import Prices, cost
from curation.reports.funnel import Funnel, StageCounts

RECIPE = load_recipe("demo")


def found(rows: int = 2_000_000, kept: int = 500_000) -> Funnel:
    extract = StageCounts("extract", 1, rows, seconds=7200, bytes=10**9)
    fetched = Counter(bytes_fetched=3 * 10**9)
    download = StageCounts("download", 1, rows, seconds=36_000, bytes=10**10, tally=fetched)
    score = StageCounts("score", 1, rows, Counter(similarity_low=rows - kept), seconds=1800, bytes=10**9)
    return Funnel("demo", "crawl", [extract, download, score], {0: "score"})


def test_seconds_bytes_and_traffic_times_prices() -> None:
    priced = cost(found(), RECIPE, Prices(cpu_hour=0.5, gpu_hour=4, gb_month=0.25, gb_fetched=1))
    assert {row["stage"]: row["cost"] for row in priced["stages"]} == {
        "extract": 1.0,
        "download": 5.0 + 3.0,
        "score": 2.0,
    }
    assert priced["cost"] == 11.0
    assert priced["a_month"] == 3.0
    assert priced["cost_per_million"] == {"seen": 5.5, "kept": 22.0}
    assert priced["a_month_per_million"] == {"seen": 1.5, "kept": 6.0}


def test_nothing_kept_has_no_price_a_sample() -> None:
    priced = cost(found(rows=1000, kept=0), RECIPE, Prices(cpu_hour=1))
    assert priced["cost_per_million"]["kept"] is None


def test_no_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cpu-hour"):
        cost(found(), RECIPE, Prices())

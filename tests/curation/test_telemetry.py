from collections import Counter

import pytest

from curation import telemetry
from curation.runner import run_stage
from tests.curation.conftest import World


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[telemetry.Made]:
    told: list[telemetry.Made] = []
    monkeypatch.setattr(telemetry, "listeners", [told.append])
    return told


def test_a_table_is_told_of_once_and_counters_count_each_sample_where_it_fell(
    world: World, heard: list[telemetry.Made]
) -> None:
    recipe, _ = world.recipe()
    world.run(recipe)
    assert [made.receipt.stage for made in heard] == list(recipe.stage_names)
    total: Counter[str] = Counter()
    for made in heard:
        total.update({count.name: count.value for count in telemetry.counts(made)})
    samples = {name: value for name, value in total.items() if name.startswith("samples.")}
    assert samples == {
        "samples.extract.measured": 5,
        "samples.download.measured": 3,
        "samples.download.http_404": 1,
        "samples.download.text_too_short": 1,
        "samples.safety.measured": 2,
        "samples.safety.too_small": 1,
        "samples.leakage.measured": 2,
    }
    assert total["pictures.download"] == 3
    assert total["bytes_fetched.download"] == made_bytes(heard)
    assert heard[1].inputs == [heard[0].output]
    assert heard[0].output.startswith(f"{world.store.root}/dumps/crawl/extract-")

    heard.clear()
    run_stage(world.store, recipe, "crawl", 0, "extract")
    assert heard == []


def made_bytes(heard: list[telemetry.Made]) -> int:
    return heard[1].receipt.tally["bytes_fetched"]

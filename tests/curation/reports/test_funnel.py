import io

from rich.console import Console

from curation.reports.funnel import funnel, render
from curation.runner import run_stage
from tests.curation.conftest import World


def test_counts_of_each_stage_add_up(world: World) -> None:
    recipe, shards = world.recipe()
    for shard in shards:
        world.run(recipe, shard)
    found = funnel(world.store, recipe, "crawl", shards)
    assert [(c.stage, c.rows_in, c.kept, dict(c.reasons)) for c in found.stages] == [
        ("extract", 10, 8, {"text_too_short": 2}),
        ("download", 8, 4, {"http_404": 2, "too_small": 2}),
        ("safety", 4, 4, {}),
        ("leakage", 4, 4, {}),
    ]
    assert found.to_json()["kept"] == 4
    out = io.StringIO()
    Console(file=out, width=120).print(render(found))
    assert "4 of 10 samples kept" in out.getvalue()
    assert "http_404 2" in out.getvalue()


def test_a_block_half_done(world: World) -> None:
    recipe, shards = world.recipe()
    run_stage(world.store, recipe, "crawl", 0, "extract")
    found = funnel(world.store, recipe, "crawl", shards)
    assert found.shards == {0: "extract", 1: ""}
    assert [c.shards_done for c in found.stages] == [1, 0, 0, 0]

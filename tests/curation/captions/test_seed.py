import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from curation.captions.seed import choose_seed, make_seed_set
from curation.cli import app
from curation.errors import ConfigError
from tests.curation.conftest import World


def crowd(sizes: list[int], dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction per group, and the group of each."""
    rng = np.random.default_rng(1)
    directions = np.eye(dim)[: len(sizes)]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    vectors = directions[groups] + 0.05 * rng.standard_normal((len(groups), dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), groups


def test_rare_kinds_are_in_it_which_the_first_n_would_leave_out() -> None:
    vectors, groups = crowd([2000, 40, 40, 40])
    rows, clusters = choose_seed(vectors, np.ones(len(vectors)), 40, clusters=16)
    assert len(set(rows.tolist())) == 40
    assert set(groups[rows]) == {0, 1, 2, 3}
    assert set(groups[:40]) == {0}
    assert len(clusters) == 40


def test_it_covers_the_space_better_than_chance() -> None:
    vectors, _ = crowd([900, 60, 20, 20])

    def uncovered(rows: np.ndarray) -> float:
        return float((1 - (vectors @ vectors[rows].T).max(axis=1)).max())

    rows, _ = choose_seed(vectors, np.ones(len(vectors)), 30, clusters=8)
    draws = [np.random.default_rng(s).permutation(len(vectors))[:30] for s in range(20)]
    assert uncovered(rows) < np.mean([uncovered(draw) for draw in draws])


def test_copies_are_taken_last_and_the_best_of_a_cluster_first() -> None:
    one = np.zeros((10, 4))
    one[:, 0] = 1
    one[7] = [0, 1, 0, 0]
    quality = np.arange(10) == 4
    rows, _ = choose_seed(one, quality.astype(float), 2, clusters=1)
    assert rows.tolist() == [4, 7]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=25)
def test_as_many_as_asked_each_once_and_the_same_again(n: int, count: int, clusters: int, seed: int) -> None:
    vectors = np.random.default_rng(n).integers(0, 2, (n, 3)).astype(float)
    rows, labels = choose_seed(vectors, np.arange(n, dtype=float), count, clusters=clusters, seed=seed)
    assert len(set(rows.tolist())) == len(rows) == len(labels) == min(n, count)
    assert (
        choose_seed(vectors, np.arange(n, dtype=float), count, clusters=clusters, seed=seed)[0].tolist()
        == rows.tolist()
    )


def test_a_dump_gives_a_table_and_the_command_the_same(world: World) -> None:
    pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")
    recipe, shards = world.recipe({"stages.score": {}})
    for shard in shards:
        world.run(recipe, shard)
    made = make_seed_set(world.store, recipe, "crawl", shards, "first", 1, bars={"similarity": -1})
    assert made.chosen == 1 < made.eligible
    with world.store.open_parquet(made.key) as table:
        kept = table.read()
    assert json.loads(kept.schema.metadata[b"curation.seed_set"])["bars"] == {"similarity": -1}
    assert kept.schema.field("sample_id").type == pa.string()
    with pytest.raises(ConfigError, match="similarity from 2 on"):
        make_seed_set(world.store, recipe, "crawl", shards, "none", 1, bars={"similarity": 2})

    for column in ("aesthetic", "text"):  # not measured by this recipe; no number
        with pytest.raises(ConfigError, match=rf"bar {column}: .* it has .*similarity"):
            make_seed_set(world.store, recipe, "crawl", shards, "none", 1, bars={column: 2})

    asked = ["captions", "seed", "second", "--dump", "crawl", "--count", "1", "--at-least", "similarity=-1"]
    told = CliRunner().invoke(app, [*asked, "--store", world.store.root, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["chosen"] == 1
    with world.store.open_parquet("captions/seeds/second.parquet") as table:
        assert table.read().to_pylist() == kept.to_pylist()
    with pytest.raises(ConfigError, match="no column quality"):
        CliRunner().invoke(app, [*asked[:-1], "quality=1"], catch_exceptions=False)

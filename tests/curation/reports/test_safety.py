import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from curation.errors import ConfigError
from curation.reports.safety import evaluate, held
from tests.curation.conftest import World

QUARANTINE = {
    "gates.quarantined": {"column": "safety_tag", "none_of": ["unsure"]},
    "stages.safety.unsafe_words": ["coffee"],
}


def test_what_is_held_can_be_cleared_and_comes_back(world: World, tmp_path: Path) -> None:
    recipe, shards = world.recipe(QUARANTINE)
    for shard in shards:
        world.run(recipe, shard)
    rows = list(held(world.store, recipe, "crawl", shards))
    assert [(row["shard"], row["verdict"], row["safety_reason"]) for row in rows] == [
        (0, "quarantined", "word 'coffee'"),
        (1, "quarantined", "word 'coffee'"),
    ]
    assert json.dumps(rows)

    cleared = tmp_path / "cleared.txt"
    cleared.write_text(f"{rows[0]['sample_id']}\n")
    again, shards = world.recipe(QUARANTINE | {"stages.safety.cleared": str(cleared)})
    for shard in shards:
        world.run(again, shard)
    assert [row["shard"] for row in held(world.store, again, "crawl", shards)] == [1]


def test_without_the_stage_nothing_is_held_and_that_is_said(world: World) -> None:
    recipe, shards = world.recipe({"stages.safety": None, "gates.known_hash": []})
    with pytest.raises(ConfigError, match="no safety stage"):
        list(held(world.store, recipe, "crawl", shards))


def test_precision_and_recall_at_each_threshold(tmp_path: Path) -> None:
    path = tmp_path / "labelled.parquet"
    pq.write_table(pa.table({"label": [True, True, False, False], "punsafe": [0.9, 0.4, 0.6, 0.1]}), path)
    found = evaluate(path, thresholds=(0.5,))
    (point,) = found["points"]
    assert (found["samples"], found["unsafe"], found["auc"]) == (4, 2, 0.75)
    assert (point["precision"], point["recall"], point["false_positive_rate"]) == (0.5, 0.5, 0.5)


def test_a_head_on_labelled_embeddings(tmp_path: Path) -> None:
    path, head = tmp_path / "labelled.parquet", tmp_path / "head.safetensors"
    save_file({"weight": np.array([[9, 0]], np.float32), "bias": np.zeros(1, np.float32)}, head, {"output": "sigmoid"})
    vectors = pa.array([[1.0, 0.0], [-1.0, 0.0]], pa.list_(pa.float32(), 2)).cast(pa.list_(pa.float16(), 2))
    pq.write_table(pa.table({"label": [1, 0], "img_emb": vectors}), path)
    found = evaluate(path, str(head), "mine")
    assert found["auc"] == 1
    assert {point["precision"] for point in found["points"]} == {1.0}
    save_file({"weight": np.ones((1, 3), np.float32), "bias": np.zeros(1, np.float32)}, head, {"output": "sigmoid"})
    with pytest.raises(ConfigError, match="takes vectors of 3"):
        evaluate(path, str(head), "mine")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"punsafe": [0.5]}, "a column label"),
        ({"label": [True]}, "a column punsafe"),
        ({"label": [2], "punsafe": [0.5]}, "something else"),
        ({"label": [None], "punsafe": [0.5]}, "without nulls"),
        ({"label": pa.array([], pa.bool_()), "punsafe": pa.array([], pa.float32())}, "no rows"),
        ({"label": [True, False], "punsafe": [0.5, float("nan")]}, "something else than 0 to 1"),
        ({"label": [True, False], "punsafe": [0.5, 50.0]}, "something else than 0 to 1"),
    ],
)
def test_a_bad_file_names_the_column(columns: dict, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match=message):
        evaluate(tmp_path / "f.parquet")
    (tmp_path / "g.parquet").write_bytes(b"no table")
    with pytest.raises(ConfigError, match="expected a Parquet file"):
        evaluate(tmp_path / "g.parquet")

"""What the safety stage holds back, and how well a punsafe head tells on samples that people labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.errors import BadShardError, ConfigError
from curation.recipe import Recipe
from curation.reports.intervals import Labelled
from curation.runner import read_outcomes
from curation.store import Store
from curation.verdicts import Verdict

HELD = (Verdict.QUARANTINED, Verdict.UNSAFE, Verdict.KNOWN_HASH)
THRESHOLDS = (0.1, 0.3, 0.45, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # LAION's 0.5, Re-LAION-5B's 0.45 and 0.95 among them


def held(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Samples that safety holds back, with what a reviewer needs to judge them; of shards that are done.

    yields   shard, sample_id, verdict, safety_reason, punsafe where measured, url, text
    raises   ConfigError where the recipe has no safety stage
    """
    safety = recipe.stages.safety
    if safety is None:
        raise ConfigError(f"recipe {recipe.name} has no safety stage: nothing is held back")
    punsafe = ["punsafe"] if recipe.stages.score and "punsafe" in recipe.stages.score.heads else []
    columns = ["safety_reason", "known_hash", *punsafe, "url", "text"]
    for shard in shards:
        try:
            for batch in read_outcomes(store, recipe, dump, shard, columns):
                wanted = pc.is_in(batch.column("reason"), pa.array([str(verdict) for verdict in HELD]))
                for row in batch.filter(wanted).to_pylist():
                    yield {"shard": shard, "verdict": row.pop("reason"), **row}
        except BadShardError:  # not done yet
            continue


def evaluate(path: Path, head: str = "", space: str = "", thresholds: Sequence[float] = THRESHOLDS) -> dict[str, Any]:
    """Precision and recall of punsafe at each threshold, on a Parquet file of labelled samples.

    path     columns label (bool or 0/1: is it unsafe) and punsafe; or img_emb, where a head is given
    returns  samples, unsafe, auc, points (threshold, precision, recall, 95 % intervals, false positive rate)
    raises   ConfigError naming the column that is missing or holds something else
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: expected a Parquet file: {error}") from error
    column = "img_emb" if head else "punsafe"
    for name in ("label", column):
        if name not in table.column_names or table[name].null_count:
            raise ConfigError(f"{path}: expected a column {name} without nulls; it has {', '.join(table.column_names)}")
    labels = np.asarray(table["label"].to_pylist())
    if not len(labels):
        raise ConfigError(f"{path}: it has no rows")
    if labels.dtype.kind not in "biu" or not set(np.unique(labels).tolist()) <= {0, 1}:
        raise ConfigError(f"{path}: label holds something else than true, false, 0 and 1")
    scores = _scores(path, table, head, space) if head else table["punsafe"].to_numpy().astype(float)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ConfigError(f"{path}: {'the head gives' if head else 'punsafe holds'} something else than 0 to 1")
    labelled = Labelled(scores, labels.astype(bool))
    return {
        "samples": len(labels),
        "unsafe": int(labels.sum()),
        "auc": labelled.auc,
        "points": [labelled.at(threshold).to_json() for threshold in thresholds],
    }


def _scores(path: Path, table: pa.Table, head: str, space: str) -> np.ndarray:
    from curation.models.heads import load_head

    loaded = load_head(head, "punsafe", space)
    vectors = np.array(table["img_emb"].to_pylist(), np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != loaded.dim:
        raise ConfigError(f"{path}: img_emb of shape {vectors.shape}; the head takes vectors of {loaded.dim}")
    return loaded(vectors)

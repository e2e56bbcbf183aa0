from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.stages.leakage import Leakage

EVALSET = pa.schema(
    [("item", pa.string()), ("sha256", pa.string()), ("phash", pa.string()), ("phash_spread", pa.float32())]
)


def test_names_set_and_item_by_bytes_and_by_look(tmp_path: Path) -> None:
    path = tmp_path / "coco" / "0123.parquet"
    path.parent.mkdir()
    items = [["a.jpg", "flat.png"], ["aa", "bb"], ["00000000000000ff", "8000000000000000"], [60.0, 0.1]]
    pq.write_table(pa.table(items, schema=EVALSET), path)
    stage = Leakage(evalsets=(str(path),), phash_radius=2)
    rows = [
        {"sha256": "aa", "phash": "f" * 16, "phash_spread": 50.0},
        {"sha256": "zz", "phash": "00000000000000fc", "phash_spread": 50.0},
        {"sha256": "zz", "phash": "00000000000000f0", "phash_spread": 50.0},
        {"sha256": "zz", "phash": "8000000000000000", "phash_spread": 0.1},
    ]
    (answer,) = stage(iter([pa.RecordBatch.from_pylist(rows, schema=stage.consumes)]), Counter())
    assert answer.schema == stage.produces
    assert [tuple(row.values()) for row in answer.to_pylist()] == [
        ("sha256", "coco", "a.jpg", 0.0),
        ("phash", "coco", "a.jpg", 2.0),
        (None, None, None, None),
        (None, None, None, None),
    ]


def test_no_sets_no_hits() -> None:
    rows = [{"sha256": "aa", "phash": "f" * 16, "phash_spread": 50.0}]
    (answer,) = Leakage()(iter([pa.RecordBatch.from_pylist(rows, schema=Leakage.consumes)]), Counter())
    assert answer["leak_kind"].to_pylist() == [None]

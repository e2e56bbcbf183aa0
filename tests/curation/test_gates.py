import pyarrow as pa
import pytest
from pydantic import ValidationError

from curation.gates import Gate, judge
from curation.schema import schema
from curation.verdicts import Verdict


def table(**columns: list) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns, schema=schema(*columns))


def test_bound_is_met_by_equality_in_the_columns_own_type() -> None:
    batch = table(similarity=[0.26, 0.2599, 0.3, None])
    assert Gate(column="similarity", at_least=0.26).passes(batch).to_pylist() == [True, False, True, False]


def test_bound_by_another_column() -> None:
    gate = Gate(column="similarity", by="partition", at_least={"en": 0.28, "multi": 0.26})
    batch = table(similarity=[0.27, 0.27, 0.9, 0.9], partition=["en", "multi", "nolang", None])
    assert gate.passes(batch).to_pylist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ({"one_of": ("ok",)}, [True, False, False]),
        ({"none_of": ("blocked",)}, [True, False, True]),
        ({"none_of": ("blocked",), "if_null": "drop"}, [True, False, False]),
        ({"one_of": (), "if_null": "keep"}, [False, False, True]),
    ],
)
def test_lists_and_nulls(rule: dict, met: list[bool]) -> None:
    assert Gate(column="url_class", **rule).passes(table(url_class=["ok", "blocked", None])).to_pylist() == met


def test_first_gate_missed_names_the_verdict() -> None:
    gates = [
        (Verdict.TOO_SMALL, Gate(column="min_side", at_least=64)),
        (Verdict.ASPECT_EXTREME, Gate(column="aspect", at_most=3)),
    ]
    batch = table(min_side=[10, 100, 100], aspect=[9.0, 9.0, 1.0])
    assert judge(batch, gates).to_pylist() == ["too_small", "aspect_extreme", None]


def test_empty_batch() -> None:
    assert judge(table(min_side=[]), [(Verdict.TOO_SMALL, Gate(column="min_side", at_least=64))]).to_pylist() == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "similarty", "at_least": 1}, "unknown column 'similarty'"),
        ({"column": "similarity"}, "give one of"),
        ({"column": "similarity", "at_least": 0.3, "by": "partition"}, "for each of its values"),
        ({"column": "similarity", "at_least": {"en": 0.3}}, "for each of its values"),
        ({"column": "similarity", "at_least": 7}, "7.0 is out of range: similarity goes from -1 to 1"),
        ({"column": "similarity", "at_least": float("nan")}, "nan is out of range"),
        ({"column": "aesthetic", "at_least": float("inf")}, "inf is out of range"),
        ({"column": "similarity", "by": "partition", "at_least": {"en": 28}}, "28.0 is out of range"),
        ({"column": "punsafe", "at_most": -0.1}, "-0.1 is out of range: punsafe goes from 0 to 1"),
        ({"column": "min_side", "at_least": -64}, "-64.0 is out of range: min_side goes from 0 to 2.14748e"),
        ({"column": "min_side", "at_most": 1e12}, "out of range"),
        ({"column": "min_side", "at_least": 64.5}, "64.5 is no whole number"),
        ({"column": "url", "at_least": 3}, "at_least: url holds string"),
        ({"column": "img_emb", "at_least": 0.3}, "at_least: img_emb holds list"),
        ({"column": "similarity", "one_of": ["high"]}, "one_of: similarity holds float"),
        ({"column": "image", "none_of": ["x"]}, "none_of: image holds binary"),
        ({"column": "similarity", "equals": True}, "equals: similarity holds float"),
        ({"column": "duplicate_kind", "none_of": ["sha265"]}, "duplicate_kind is never 'sha265'; its values: pair"),
        ({"column": "similarity", "by": "partition", "at_least": {"eng": 0.3}}, "partition is never 'eng'"),
        ({"column": "similarity", "by": "min_side", "at_least": {"64": 0.3}}, "by: min_side holds int32"),
    ],
)
def test_bad_gates_say_what_is_wrong(rule: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gate(**rule)

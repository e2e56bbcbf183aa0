"""Receipts: what is written is read again, keys and digests are stable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.receipt import Receipt, digest, table_key

counts = st.dictionaries(st.text(max_size=12), st.integers(0, 2**40), max_size=4)


@given(rows=st.integers(0, 2**40), dropped=counts, faults=counts, host=st.text(), seconds=st.floats(0, 1e9))
def test_a_receipt_survives_its_json(
    rows: int, dropped: dict[str, int], faults: dict[str, int], host: str, seconds: float
) -> None:
    receipt = Receipt(
        object_id="a" * 32,
        stage="score",
        stage_version=1,
        fingerprint="b" * 32,
        recipe="demo",
        dump="CC-MAIN-2026-05",
        shard=7,
        rows=rows,
        measured=rows,
        dropped=dropped,
        faults=faults,
        host=host,
        seconds=seconds,
    )
    assert Receipt.model_validate_json(receipt.model_dump_json()) == receipt
    assert receipt.key == "dumps/CC-MAIN-2026-05/score-bbbbbbbb/00007.parquet"


def test_a_receipt_does_not_change_and_has_no_holes() -> None:
    with pytest.raises(ValidationError):
        Receipt.model_validate({"stage": "score"})


def test_a_key_keeps_its_order_beyond_five_digits() -> None:
    assert table_key("d", "s", "0123456789", 99_999) == "dumps/d/s-01234567/99999.parquet"


def test_a_digest_tells_its_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest("a")
    assert len(digest()) == 32

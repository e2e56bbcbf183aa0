import runpy
from pathlib import Path

import pytest

from curation.errors import ConfigError
from curation.schema import COLUMNS, schema
from curation.verdicts import REASONS, Fault, Verdict

ROOT = Path(__file__).resolve().parents[2]


def test_page_of_columns_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "column_docs.py"))
    assert page["PAGE"].read_text() == page["render"](), "run: python scripts/column_docs.py"


def test_unknown_column_is_named() -> None:
    with pytest.raises(ConfigError, match="'similarty'"):
        schema("similarty")


def test_every_column_says_what_it_means() -> None:
    assert not [name for name, column in COLUMNS.items() if len(column.doc) < 10]


def test_a_reason_is_either_a_fault_or_a_verdict() -> None:
    assert len(REASONS) == len(Fault) + len(Verdict)

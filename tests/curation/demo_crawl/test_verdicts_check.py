import json
from pathlib import Path

import pytest

from curation.demo_crawl.verdicts_check import compare


def truth(tmp_path: Path, *pairs: dict) -> Path:
    path = tmp_path / "truth.jsonl"
    full = [{"text": "t", "page_url": "p", "group": None, "note": ""} | pair for pair in pairs]
    path.write_text("\n".join(map(json.dumps, full)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return truth(
        tmp_path,
        {"url": "a", "expect": ["kept", "duplicate_phash"], "group": "g"},
        {"url": "b", "expect": ["kept", "duplicate_phash"], "group": "g"},
        {"url": "c", "expect": ["http_404"]},
        {"url": "d", "expect": ["similarity_low"]},
    )


def outcomes(**by_url: str) -> list[tuple[str, str, str, str]]:
    return [(url, "t", "p", outcome) for url, outcome in by_url.items()]


def test_all_right(pairs: Path) -> None:
    found = compare(pairs, outcomes(a="kept", b="duplicate_phash", c="http_404", d="similarity_low"))
    assert found.good
    assert found.right == {"kept": 1, "duplicate_phash": 1, "http_404": 1, "similarity_low": 1}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"c": "timeout"}, "timeout, expected http_404"),
        ({"c": "kept"}, "kept, expected http_404"),
        ({"b": "kept"}, "group g: 2 kept"),
        ({"e": "kept"}, "the truth knows no such pair"),
    ],
)
def test_what_is_wrong_is_named(pairs: Path, changed: dict[str, str], problem: str) -> None:
    right = {"a": "kept", "b": "duplicate_phash", "c": "http_404", "d": "similarity_low"}
    found = compare(pairs, outcomes(**(right | changed)))
    assert not found.good
    assert problem in found.render()


def test_a_missing_sample_is_named(pairs: Path) -> None:
    assert "0 samples, expected one" in compare(pairs, outcomes(a="kept")).render()


def test_models_may_err_and_it_is_counted(pairs: Path) -> None:
    found = compare(pairs, outcomes(a="kept", b="duplicate_phash", c="http_404", d="kept"))
    assert found.good
    assert (found.wrong["kept"], found.missed["similarity_low"]) == (1, 1)

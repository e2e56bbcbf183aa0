import json
from pathlib import Path

import pytest

from curation.demo_crawl.verdicts_check import compare

PAGE = "http://p.test/"


def truth(folder: Path, *pairs: dict) -> Path:
    path = folder / "truth.jsonl"
    whole = [{"page_url": PAGE, "text": "a text", "group": None, "via": "both"} | pair for pair in pairs]
    path.write_text("\n".join(map(json.dumps, whole)), "utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    copies = {"expect": ["duplicate_phash", "kept"], "group": "g", "stage": "dedup"}
    return truth(
        tmp_path,
        {"url": "a", "expect": "kept", "stage": "publish"},
        {"url": "b", "expect": "http_404", "stage": "download"},
        {"url": "c", "expect": "similarity_low", "stage": "score"},
        {"url": "d"} | copies,
        {"url": "e"} | copies,
    )


def outcomes(**by_url: str) -> list[tuple[str, str, str, str]]:
    right = {"a": "kept", "b": "http_404", "c": "similarity_low", "d": "kept", "e": "duplicate_phash"}
    return [(url, "a text", PAGE, outcome) for url, outcome in (right | by_url).items()]


def test_all_as_it_should_be(small: Path) -> None:
    result = compare(small, outcomes())
    assert result.good
    assert result.groups == 1
    assert result.right == {"kept": 2, "http_404": 1, "similarity_low": 1, "duplicate_phash": 1}
    assert result.precision("kept") == result.recall("http_404") == 1.0
    assert "1.000" in result.render()


def test_a_wrong_verdict_counts_against_both(small: Path) -> None:
    result = compare(small, outcomes(b="timeout"))
    assert not result.good
    assert result.recall("http_404") == 0.0
    assert result.precision("timeout") == 0.0
    assert "b" in result.problems[0]


def test_what_the_model_misjudges_is_counted_but_no_problem(small: Path) -> None:
    result = compare(small, outcomes(a="similarity_low", c="kept", d="similarity_low", e="kept"))
    assert result.good
    assert len(result.misjudged) == 3
    assert result.precision("similarity_low") == 0.0


@pytest.mark.parametrize("outcome", ["kept", "duplicate_phash"])
def test_of_a_group_exactly_one_is_kept(small: Path, outcome: str) -> None:
    assert not compare(small, outcomes(d=outcome, e=outcome)).good


def test_absent_and_unknown_pairs_are_problems(small: Path) -> None:
    assert not compare(small, outcomes()[1:]).good
    assert not compare(small, [*outcomes(), ("x", "a text", PAGE, "kept")]).good


def test_the_same_pair_twice_on_a_page(tmp_path: Path) -> None:
    twice = {"url": "a", "expect": ["duplicate_pair", "kept"], "group": "g", "stage": "extract"}
    path = truth(tmp_path, twice, twice)
    given = [("a", "a text", PAGE, outcome) for outcome in ("kept", "duplicate_pair")]
    assert compare(path, given).good
    assert compare(path, reversed(given)).good


def test_texts_are_compared_as_they_are_read(tmp_path: Path) -> None:
    path = truth(tmp_path, {"url": "a", "text": "one  two\u200b\ufffd", "expect": "kept", "stage": "publish"})
    assert compare(path, [("a", "one two", PAGE, "kept")]).good


def test_pairs_of_the_other_archive_are_left_out(tmp_path: Path) -> None:
    path = truth(tmp_path, {"url": "a", "expect": "kept", "stage": "publish", "via": "warc"})
    assert not compare(path, []).good
    assert compare(path, [], archive="wat").good

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.text.concepts import Concepts, read_concepts, wordnet_nouns

WORDS = st.text(st.sampled_from("ab ,.!`\t\n\0éA"), max_size=12)


def by_metaclips_rule(text: str, concepts: list[str]) -> list[int]:
    """The rule as it is described, entry by entry; NUL, which parts our texts, is a space."""
    padded = f" {text} ".replace("\0", " ")
    for mark in ",.;:?!`":
        padded = padded.replace(mark, f" {mark} ")
    for space in "\t\r\n":
        padded = padded.replace(space, " ")
    return [number for number, concept in enumerate(concepts) if f" {concept} " in padded]


@given(st.lists(WORDS, max_size=5), st.lists(WORDS.filter(bool), min_size=1, max_size=6, unique=True))
def test_matches_are_those_of_the_rule(texts: list[str], concepts: list[str]) -> None:
    assert Concepts(concepts).match(texts) == [by_metaclips_rule(text, concepts) for text in texts]


def test_words_stand_between_spaces_and_case_counts() -> None:
    concepts = ["dog", "hot dog", "cat", "St", "new york"]
    texts = ["A hot dog, and a cat!", "dogs", "Dog", "new  york", "St. new york: dog"]
    assert Concepts(concepts).match(texts) == [[0, 1, 2], [], [], [], [0, 3, 4]]
    assert Concepts(concepts, ignore_case=True).match(["Dog NEW York"]) == [[0, 4]]
    assert Concepts(["犬", "猫"], spaces=False).match(["黒い犬がいる", "空"]) == [[0], []]


def test_lists_are_text_or_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("dog\n\n cat \ndog\n", "utf-8")
    (tmp_path / "a.gz").write_bytes(gzip.compress("Füße\n犬\n".encode()))
    assert read_concepts(tmp_path / "a.txt") == ["dog", "cat"]
    assert read_concepts(tmp_path / "a.gz") == ["Füße", "犬"]
    for name, content in {"cut": b"\x1f\x8bxx", "latin": "Füße".encode("latin-1")}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            read_concepts(tmp_path / name)


def test_the_built_in_list_names_things(tmp_path: Path) -> None:
    (tmp_path / "wordnet").write_bytes(wordnet_nouns())
    concepts = read_concepts(tmp_path / "wordnet")
    assert {"organism", "tabby", "coffee"} <= set(concepts)
    assert len(concepts) > 20_000

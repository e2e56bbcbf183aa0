import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.errors import ConfigError
from curation.recipe import load_recipe
from curation.stages.safety import Safety


def measure(stage: Safety, *rows: tuple[str, str, str], punsafe: list[float | None] | None = None) -> list[dict]:
    columns = [
        {"sample_id": f"{number:032x}", "sha256": row[0], "phash": row[1], "text": row[2]}
        for number, row in enumerate(rows)
    ]
    if punsafe is not None:
        columns = [column | {"punsafe": p} for column, p in zip(columns, punsafe, strict=True)]
    tally = Counter[str]()
    (answer,) = stage(iter([pa.RecordBatch.from_pylist(columns, schema=stage.consumes)]), tally)
    assert answer.schema == stage.produces
    assert tally.total() == len(rows)
    return answer.to_pylist()


def test_known_hashes_by_bytes_and_by_look(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt"
    listed.write_text(f"# operator's list\n{'AB' * 32}  case 17\n00000000000000ff\n")
    exact, near, far = measure(
        Safety(known_hashes=str(listed), known_radius=2),
        ("ab" * 32, "f" * 16, "a boat"),
        ("cd" * 32, "00000000000000fc", "a boat"),
        ("cd" * 32, "00000000000000f8", "a boat"),
    )
    assert exact["known_hash"] == "ab" * 32
    assert exact["safety_tag"] == "unsafe"
    assert near["known_hash"] == "00000000000000ff"
    assert far["known_hash"] is None
    assert far["safety_tag"] == "safe"


def test_words_are_whole_words() -> None:
    hit, miss = measure(Safety(), ("a" * 64, "0" * 16, "NSFW picture"), ("a" * 64, "0" * 16, "denuded hills"))
    assert (hit["safety_tag"], hit["safety_reason"]) == ("unsure", "word 'nsfw'")
    assert miss["safety_tag"] == "safe"


@pytest.mark.parametrize(
    ("word", "text", "tag"),
    [
        ("裸体", "公园里的裸体雕像", "unsure"),  # no spaces between words: anywhere in the text
        ("ヌード", "美しいヌード写真", "unsure"),
        ("#nsfw", "a cat #nsfw", "unsure"),  # the mark before it ends no word
        ("nude", "nudes", "safe"),
        ("nue", "une femme nue, debout", "unsure"),
    ],
)
def test_words_of_scripts_without_spaces_and_beside_marks(word: str, text: str, tag: str) -> None:
    (told,) = measure(Safety(unsafe_words=(word,)), ("a" * 64, "0" * 16, text))
    assert told["safety_tag"] == tag


def test_an_empty_word_would_hit_every_text_and_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 character"):
        Safety(unsafe_words=("nude", " "))
    (told,) = measure(Safety(unsafe_words=()), ("a" * 64, "0" * 16, "nsfw"))
    assert told["safety_tag"] == "safe"


def test_a_list_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt.gz"
    listed.write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="known_hashes: expected a list"):
        Safety(known_hashes=str(listed)).check()


def test_a_bad_list_is_refused_with_its_line(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt"
    listed.write_text("# fine\nnot-a-hash\n")
    with pytest.raises(ConfigError, match="line 2: 'not-a-hash'"):
        measure(Safety(known_hashes=str(listed)), ("a" * 64, "0" * 16, "x"))
    with pytest.raises(ConfigError, match=r"safety\.cleared: line 2: 'not-a-hash' is no sample_id"):
        Safety(cleared=str(listed)).check()


PLAIN = ("a" * 64, "0" * 16, "a boat")
WORD = ("a" * 64, "0" * 16, "nude descending a staircase")


def test_tiers_of_punsafe() -> None:
    stage = Safety(unsafe_above=0.5, unsure_above=0.45)
    rows = measure(stage, *[PLAIN] * 5, *[WORD] * 3, punsafe=[0.51, 0.5, 0.46, 0.45, None, 0.9, 0.46, 0.1])
    tags = [row["safety_tag"] for row in rows]
    # the bound itself is met, as in LAION's p > 0.5; a word and a doubt together are no longer a doubt
    assert tags == ["unsafe", "unsure", "unsure", "safe", "safe", "unsafe", "unsafe", "unsure"]
    assert rows[0]["safety_reason"] == "punsafe 0.510"
    assert rows[6]["safety_reason"] == "punsafe 0.460; word 'nude'"
    with pytest.raises(ValidationError, match="swap them"):
        Safety(unsafe_above=0.4, unsure_above=0.45)


def test_what_a_reviewer_cleared_is_safe_unless_its_hash_is_known(tmp_path: Path) -> None:
    cleared, listed = tmp_path / "cleared.txt", tmp_path / "known.txt"
    cleared.write_text(f"{0:032x} reviewed in March\n{1:032x}\n")
    listed.write_text("b" * 64 + "\n")
    first, second, third = measure(
        Safety(cleared=str(cleared), known_hashes=str(listed)), WORD, ("b" * 64, "0" * 16, "a boat"), WORD
    )
    assert (first["safety_tag"], first["safety_reason"]) == ("safe", "cleared by a reviewer")
    assert second["safety_tag"] == "unsafe"
    assert third["safety_tag"] == "unsure"


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40),
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
    st.integers(0, 8),
)
def test_the_nearest_entry_within_the_radius(listed: list[int], seen: list[int], radius: int) -> None:
    seen = [*seen, listed[0] ^ 0b111]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known.txt"
        path.write_text("\n".join(f"{value:016x}" for value in listed))
        rows = measure(
            Safety(known_hashes=str(path), known_radius=radius), *(("a" * 64, f"{v:016x}", "x") for v in seen)
        )
    for value, row in zip(seen, rows, strict=True):
        bits, nearest = min(((entry ^ value).bit_count(), entry) for entry in listed)
        assert row["known_hash"] == (f"{nearest:016x}" if bits <= radius else None)


def test_no_rows() -> None:
    assert measure(Safety()) == []


def test_a_threshold_needs_the_head() -> None:
    with pytest.raises(ConfigError, match=r"stages\.safety\.unsafe_above.*stages\.score\.heads\.punsafe"):
        load_recipe("demo", {"stages.safety.unsafe_above": 0.5})

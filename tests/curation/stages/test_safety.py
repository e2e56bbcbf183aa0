from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from curation.errors import ConfigError
from curation.stages.safety import Safety


def measure(stage: Safety, *rows: tuple[str, str, str]) -> list[dict]:
    batch = pa.RecordBatch.from_pylist(
        [dict(zip(("sha256", "phash", "text"), row, strict=True)) for row in rows], schema=stage.consumes
    )
    (answer,) = stage(iter([batch]), Counter())
    assert answer.schema == stage.produces
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


def test_a_bad_list_is_refused_with_its_line(tmp_path: Path) -> None:
    listed = tmp_path / "known.txt"
    listed.write_text("# fine\nnot-a-hash\n")
    with pytest.raises(ConfigError, match="line 1: 'not-a-hash'"):
        measure(Safety(known_hashes=str(listed)), ("a" * 64, "0" * 16, "x"))

import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.publish.writers import JsonWriter, TarWriter, read_lines

FORMS = ["json", "jsonl", "json.gz", "jsonl.gz"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(st.integers(0, 10**12 - 1), st.binary(max_size=1500)), max_size=5, unique_by=lambda one: one[0])
)
def test_tarfile_reads_what_was_written_and_would_write_the_same_header(members: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        with TarWriter(path) as out:
            for number, content in members:
                out.add(f"{number:012d}.jpg", content)
        with tarfile.open(path) as tar:
            found = [(int(member.name[:12]), tar.extractfile(member).read()) for member in tar]
            headers = [member.tobuf(tarfile.USTAR_FORMAT) for member in tar.getmembers()]
            places = [member.offset for member in tar.getmembers()]
        assert found == members
        assert [path.read_bytes()[at : at + 512] for at in places] == headers


def test_a_name_without_room_is_refused(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as out, pytest.raises(ValueError, match="no room"):
        out.add("x" * 101, b"")


@pytest.mark.parametrize("form", FORMS)
@given(captions=st.lists(TEXTS, max_size=4))
def test_records_come_back_whatever_strangers_wrote(form: str, captions: list[str]) -> None:
    records = [{"caption": caption, "score": 0.5} for caption in captions]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        with JsonWriter(path, form) as out:
            for record in records:
                out.add(record)
        content = path.read_bytes()
    plain = gzip.decompress(content) if form.endswith(".gz") else content
    lines = [line for line in plain.split(b"\n") if line]
    parsed = json.loads(plain) if form.startswith("json") and "l" not in form else [json.loads(line) for line in lines]
    assert parsed == records
    assert [json.loads(line) for line in read_lines(io.BytesIO(content), form)] == records


def test_gz_has_no_clock_and_no_name_and_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with JsonWriter(tmp_path / name, "jsonl.gz") as out:
            out.add({"score": float("nan")})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b'{"score":null}\n'

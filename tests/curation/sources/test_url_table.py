"""Tables as the published sets have them, cut into shards, and what is no table."""

import gzip
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import BadShardError, ConfigError, OutageError
from curation.sources import url_table
from curation.sources.archives import list_archives, open_archive
from curation.sources.url_table import Columns, Row, read_rows, shard_locations

SHA = "ab" * 32
URL = "https://a.example/1.jpg"


def parquet(columns: dict[str, Any], **kwargs: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **kwargs)
    return out.getvalue()


def read(data: bytes, location: str = "t", columns: Columns = Columns()) -> tuple[list[Row], Counter[str]]:  # noqa: B008
    tally: Counter[str] = Counter()
    return list(read_rows(io.BytesIO(data), location, tally, columns)), tally


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (parquet({"SAMPLE_ID": [7], "URL": [URL], "TEXT": ["dog"], "NSFW": ["UNLIKELY"]}), (URL, "dog", "", "")),
        (parquet({"uid": ["0"], "url": [URL], "text": ["dog"], "sha256": [SHA]}), (URL, "dog", SHA, "")),
        (parquet({"url": [URL], "text": ["dog"], "image_phash": ["0" * 16]}), (URL, "dog", "", "")),
        (parquet({"url": [URL], "caption": ["dog"], "phash": ["f" * 16]}), (URL, "dog", "", "f" * 16)),
        (
            parquet({"url": [URL], "text": ["dog"], "sha256": pa.array([b"\xab" * 32], pa.binary(32))}),
            (URL, "dog", SHA, ""),
        ),
        (
            parquet({"url": pa.array([URL]).dictionary_encode(), "text": pa.array(["dog"], pa.large_string())}),
            (URL, "dog", "", ""),
        ),
        (f"{URL}\tdog\n".encode(), (URL, "dog", "", "")),
        (f'say "dog\t{URL}\n'.encode(), (URL, 'say "dog', "", "")),
        (f'url,caption\n{URL},"a dog,\nrunning"\n'.encode(), (URL, "a dog,\nrunning", "", "")),
        (b"\xef\xbb\xbfimage_url,alt\r\n" + f"{URL},dog\r\n".encode(), (URL, "dog", "", "")),
        (gzip.compress(f"url\ttext\n{URL}\td\u00f6g \xff\n".encode("latin-1")), (URL, "d\ufffdg \ufffd", "", "")),
    ],
    ids=["laion", "datacomp", "coyo", "ours", "binary", "dictionary", "cc12m", "cc3m", "csv", "bom", "gzip"],
)
def test_columns_of_published_sets(data: bytes, expected: tuple[str, ...]) -> None:
    rows, tally = read(data)
    assert rows == [(0, *expected)]
    assert tally == {"records": 1, "records_bad": 0}


def test_columns_by_setting() -> None:
    data = parquet({"url": ["x"], "src": [URL], "text": ["y"], "n": [5], "image_phash": ["0" * 16]})
    assert read(data, columns=Columns("src", "n", "", "image_phash"))[0] == [(0, URL, "5", "", "0" * 16)]
    three = f"7,{URL},dog\n".encode()
    assert read(three, columns=Columns(text="2"))[0] == [(0, URL, "dog", "", "")]
    with pytest.raises(BadShardError, match=r"column pic, found url, src, .*: stages\.extract\.url_column"):
        read(data, columns=Columns("pic"))
    with pytest.raises(BadShardError, match=r"column text or caption.*: stages\.extract\.text_column"):
        read(three)


def test_rows_without_a_url_and_lines_of_another_width_are_counted() -> None:
    rows, tally = read(f"url,text\n{URL},a\n,b\n{URL},c,d\n{URL},\n".encode())
    assert rows == [(0, URL, "a", "", ""), (2, URL, "", "", "")]
    assert tally == {"records": 3, "records_without_url": 1, "records_bad": 1}
    rows, tally = read(parquet({"url": [None, URL], "text": ["a", None]}))
    assert rows == [(1, URL, "", "", "")]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv.gz"])
def test_a_table_is_cut_into_shards(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_table, "SHARD_ROWS", 40)
    monkeypatch.setattr(url_table, "_BATCH_ROWS", 7)
    monkeypatch.setattr(url_table, "_BLOCK_BYTES", 300)
    urls, texts = [f"http://a.example/{i}" for i in range(100)], [f"text {i}" for i in range(100)]
    path = tmp_path / f"part.{suffix}"
    if suffix == "parquet":
        path.write_bytes(parquet({"url": urls, "text": texts}, row_group_size=30))
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = "\n".join(["url" + mark + "text", *map(mark.join, zip(urls, texts, strict=True)), ""]).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    (tmp_path / "notes.txt").touch()
    shards = list_archives(str(tmp_path), "url_table")
    assert shards == [f"{path}#rows=0-40", f"{path}#rows=40-80", f"{path}#rows=80-100"]
    found: list[Row] = []
    for shard in shards:
        with open_archive(shard) as stream:
            rows = list(read_rows(stream, shard, Counter(), Columns()))
        assert rows[0].number == len(found)
        found += rows
    assert [(row.number, row.url, row.text) for row in found] == list(zip(range(100), urls, texts, strict=True))


def test_a_table_that_lost_rows_since_is_a_bad_shard() -> None:
    data = parquet({"url": [URL] * 5, "text": ["dog"] * 5})
    with pytest.raises(BadShardError, match="5 rows where 9 were"):
        read(data, "t#rows=0-9")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no first line"),
        (b"\n", "no first line"),
        (b"\x00\x01\x02", "binary"),
        (b"PAR1 and no more", "Parquet"),
        (gzip.compress(b"url,text\n" + b"x" * 3000)[:40], "end-of-stream"),
        (b"<html>", "column url"),
    ],
    ids=["empty", "blank", "binary", "parquet", "cut", "html"],
)
def test_what_is_no_table_is_said(data: bytes, found: str, tmp_path: Path) -> None:
    with pytest.raises(BadShardError, match=f"(?i){found}"):
        read(data)
    if found != "column url":
        (tmp_path / "t.csv").write_bytes(data)
        with pytest.raises(ConfigError, match=f"(?is)source: .*{found}"):
            list_archives(str(tmp_path), "url_table")


def test_outage_of_the_stream_is_not_a_bad_table() -> None:
    class Broken(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.inner = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return self.inner.seek(offset, whence)

        def tell(self) -> int:
            return self.inner.tell()

        def readinto(self, buffer: Any) -> int:
            if 0 < self.tell() < 1_000_000:
                raise OutageError("reset")
            return self.inner.readinto(buffer)

    data = parquet({"url": [f"{URL}{i}" for i in range(50_000)], "text": ["dog"] * 50_000}, compression="none")
    with pytest.raises(OutageError, match="reset"):
        list(read_rows(io.BufferedReader(Broken(data)), "t", Counter(), Columns()))


@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.sampled_from([*'\t",\n\r', URL, "url", "text", "\0", "é"])).map(
            lambda parts: "".join(parts).encode()
        ),
    )
)
def test_hostile_tables_raise_nothing_else(data: bytes) -> None:
    try:
        count = sum(1 for _ in shard_locations(io.BytesIO(data), "t"))
        rows, tally = read(data)
        assert len(rows) + tally["records_without_url"] == tally["records"]
        assert bool(count) == bool(tally["records"])
    except BadShardError:
        pass

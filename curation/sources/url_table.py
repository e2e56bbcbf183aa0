"""Tables of URLs and texts that others published (LAION, DataComp, COYO, CC12M): Parquet, CSV, TSV.

A table is read by columns. Their names are found among those that the published sets use, unless the recipe names
them. Without a header line (CC3M, CC12M) the column that begins with a URL is `url`, of two the other is `text`, and
more go by their numbers from 0. In TSV quotes are text, as CC12M has them.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from curation.errors import BadShardError

SHARD_ROWS = 50_000
"""Rows of a shard at most, about what a WAT gives; a table with more is several shards."""
SUFFIXES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")

# in lower case, best first: LAION, DataComp, COYO, CC12M, Wukong and our own exports
_NAMES = {
    "url": ("url", "image_url", "img_url", "image_link"),
    "text": ("text", "caption", "alt_text", "alt", "top_caption"),
    "sha256": ("sha256",),
    # COYO's image_phash comes from another program, whose bits are not ours: only who knows better names it
    "phash": ("phash",),
}
_ROWS = re.compile(r"#rows=(\d+)-(\d+)$")
_BATCH_ROWS = 4096
_BLOCK_BYTES = 4 << 20  # a line of CSV must fit
_HEAD_BYTES = 64 << 10
_DAMAGE = (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error)


class Columns(NamedTuple):
    """Names of a table's columns; "" is found by the names in use."""

    url: str = ""
    text: str = ""
    sha256: str = ""
    phash: str = ""


class Row(NamedTuple):
    """One row that has a URL: its number in the file, from 0, and its cells as they stand there."""

    number: int
    url: str
    text: str
    sha256: str
    phash: str


def split_location(location: str) -> tuple[str, range | None]:
    """File and rows of a shard's location; None for a location that names no rows."""
    found = _ROWS.search(location)
    return (location[: found.start()], range(int(found[1]), int(found[2]))) if found else (location, None)


def shard_locations(stream: BinaryIO, path: str) -> list[str]:
    """Locations of a table's shards, "path#rows=first-end"; none for a table without rows.

    stream  the file, seekable. Of Parquet the footer is read, of CSV all of it
    raises  BadShardError for a file that is no table
    """
    try:
        rows = open_table(stream).count()
    except _DAMAGE as error:
        raise _no_table(path, error) from error
    return [f"{path}#rows={first}-{min(first + SHARD_ROWS, rows)}" for first in range(0, rows, SHARD_ROWS)]


def check_columns(stream: BinaryIO, location: str, columns: Columns) -> None:
    """Raise BadShardError, naming the field to set, when the table lacks a column; reads its head alone."""
    path, _ = split_location(location)
    try:
        _named(columns, open_table(stream).names, path)
    except _DAMAGE as error:
        raise _no_table(path, error) from error


def read_rows(stream: BinaryIO, location: str, tally: Counter[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of a shard in order, but for those without a URL.

    stream  the file, seekable
    tally   gets records (rows), records_without_url, records_bad (CSV lines of another number of cells, in no count)
    raises  BadShardError when it is no table, ends early or lacks a column; what the stream raises
    """
    path, wanted = split_location(location)
    wanted = wanted or range(1 << 62)
    try:
        table = open_table(stream)
        named = _named(columns, table.names, path)
        for first, batch in table.batches(list(named.values()), wanted):
            columns_of = {role: strings(batch.column(name), table.encoding) for role, name in named.items()}
            cells = [columns_of.get(role, [""] * batch.num_rows) for role in _NAMES]
            tally["records"] += batch.num_rows
            for number, (url, text, sha256, phash) in enumerate(zip(*cells, strict=True), first):
                if url:
                    yield Row(number, url, text, sha256, phash)
                else:
                    tally["records_without_url"] += 1
        tally["records_bad"] += table.bad_lines
    except _DAMAGE as error:
        raise _no_table(path, error) from error


class _Parquet:
    bad_lines = 0
    encoding = "utf-8"

    def __init__(self, stream: BinaryIO) -> None:
        self._file = pq.ParquetFile(stream, buffer_size=1 << 20)  # a column of a row group is read in steps
        self.names: list[str] = self._file.schema_arrow.names

    def count(self) -> int:
        return int(self._file.metadata.num_rows)

    def bytes_column(self, name: str) -> str:
        """Path of a column that holds files: itself, or `bytes` in a structure as `datasets` writes it; "" for none."""
        kind = self._file.schema_arrow.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{name}.bytes"
        return name if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else ""

    def largest_group(self, path: str) -> int:
        """Bytes of a column's largest row group, uncompressed."""
        groups = (self._file.metadata.row_group(at) for at in range(self._file.num_row_groups))
        columns = (group.column(at) for group in groups for at in range(group.num_columns))
        return max((column.total_uncompressed_size for column in columns if column.path_in_schema == path), default=0)

    def batches(self, names: list[str], wanted: range) -> Iterator[tuple[int, pa.RecordBatch]]:
        end = 0
        groups: list[int] = []
        first = 0
        for group in range(self._file.num_row_groups):
            start, end = end, end + self._file.metadata.row_group(group).num_rows
            if start < wanted.stop and end > wanted.start:
                first = first if groups else start
                groups.append(group)
        return _within(wanted, first, self._file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names))


class _Csv:
    encoding = "latin-1"  # takes every byte: pyarrow cannot report a line that is no UTF-8

    def __init__(self, stream: BinaryIO, names: list[str], header: bool, delimiter: str) -> None:
        self._stream, self._header, self._delimiter = stream, header, delimiter
        self.names = names
        self.bad_lines = 0

    def bytes_column(self, name: str) -> str:
        """None holds files."""
        return ""

    def largest_group(self, path: str) -> int:
        """There are no row groups."""
        return 0

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._read(self.names[:1]))

    def batches(self, names: list[str], wanted: range) -> Iterator[tuple[int, pa.RecordBatch]]:
        return _within(wanted, 0, self._read(names))

    def _read(self, names: list[str]) -> Any:
        quoted = self._delimiter != "\t"
        return pyarrow.csv.open_csv(
            self._stream,
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=self.names,
                skip_rows=int(self._header),
                encoding=self.encoding,
            ),
            pyarrow.csv.ParseOptions(
                delimiter=self._delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=self._passed_over,
            ),
            pyarrow.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.binary())),
        )

    def _passed_over(self, _: Any) -> str:
        self.bad_lines += 1
        return "skip"


def open_table(stream: BinaryIO) -> _Parquet | _Csv:
    """A table: names, count(), batches(names, rows). Raises what pyarrow does for a file that is none."""
    magic = stream.read(4)
    stream.seek(0)
    if magic == b"PAR1":
        return _Parquet(stream)
    if magic.startswith(b"\x1f\x8b"):
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    line = stream.read(_HEAD_BYTES).decode("utf-8-sig", "replace").partition("\n")[0].rstrip("\r")
    stream.seek(0)
    if "\0" in line:
        raise pa.ArrowInvalid("binary data")
    delimiter = "\t" if "\t" in line else ","
    cells = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    if not cells:
        raise pa.ArrowInvalid("no first line")
    urls = [cell.startswith(("http://", "https://")) for cell in cells]
    if any(urls):
        rest = "text" if len(cells) == 2 else ""
        return _Csv(stream, ["url" if is_url else rest or str(i) for i, is_url in enumerate(urls)], False, delimiter)
    return _Csv(stream, cells, True, delimiter)


def _within(wanted: range, first: int, batches: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The wanted part of consecutive batches, of which the first begins with row `first`, each with its first row."""
    for batch in batches:
        start, stop = max(wanted.start - first, 0), min(wanted.stop - first, batch.num_rows)
        if start < stop:
            yield first + start, batch.slice(start, stop - start)
        first += batch.num_rows
        if first >= wanted.stop:
            return
    if wanted.stop < 1 << 62:
        raise pa.ArrowInvalid(f"{first} rows where {wanted.stop} were, when the dump was registered")


def _named(columns: Columns, names: Sequence[str], path: str) -> dict[str, str]:
    """Column of the table by role. Raises BadShardError where one that is needed is not there."""
    lower = {name.lower(): name for name in reversed(names)}
    named: dict[str, str] = {}
    for role, choice in zip(_NAMES, columns, strict=True):
        found = [choice] if choice else [lower[name] for name in _NAMES[role] if name in lower]
        if found and found[0] in names:
            named[role] = found[0]
        elif choice or role in ("url", "text"):
            raise BadShardError(
                f"{path}: expected a column {choice or ' or '.join(_NAMES[role])}, found {', '.join(names)[:300]};"
                f" name it: stages.extract.{role}_column"
            )
    return named


def strings(column: pa.Array, encoding: str) -> list[str]:
    """Cells as text, "" for null; their bytes are UTF-8, which whoever wrote the table may not have checked."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    elif pa.types.is_fixed_size_binary(column.type):
        return [value.hex() if value else "" for value in column.to_pylist()]
    elif not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.string()).cast(pa.binary())
    cells = [value or b"" for value in column.to_pylist()]
    if encoding != "utf-8":
        cells = [cell if cell.isascii() else cell.decode().encode(encoding) for cell in cells]
    return [cell.decode("utf-8", "replace") for cell in cells]


def _no_table(path: str, error: Exception) -> BadShardError:
    return BadShardError(f"{path}: expected a table of URLs (Parquet, CSV or TSV), whole, found: {error}")

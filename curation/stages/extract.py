"""extract: an archive of a crawl, or a table of URLs, to candidate rows: each a picture's URL with a text."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, BinaryIO, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from curation import schema
from curation.sources import annotated, url_table
from curation.sources.candidates import Chosen, Page, TextKind, choose_texts
from curation.stages.base import Pin, Resource, Stage, Tally, runtime
from curation.text.clean import clean_text, text_class
from curation.text.language import detect_languages, partition
from curation.web.blocklist import Blocklist, read_blocklist
from curation.web.urls import canonical, hostname, sample_id

_COLUMNS = tuple(name for name, column in schema.COLUMNS.items() if column.producer == "extract")
_BATCH_ROWS = 4096

# Pictures that are there to count or to be cut up, told by their address. Conservative: a whole file name, or the host
# of a counter; what the size gates catch anyway is left to them.
_COUNTER_HOST = re.compile(
    r"(?:.*\.)?(?:google-analytics\.com|doubleclick\.net|statcounter\.com|scorecardresearch\.com|quantserve\.com)"
    r"|pixel\.wp\.com|stats\.wp\.com|counter\.yadro\.ru|top-fwz1\.mail\.ru|mc\.yandex\.ru|counter\.rambler\.ru"
    r"|px\.ads\.linkedin\.com|bat\.bing\.com|hit\.gemius\.pl|whos\.amung\.us|www\.facebook\.com"
)
# www.facebook.com serves its pixel at /tr; its pictures come from other hosts
_PATTERN_NAME = re.compile(
    r"(?:pixel|spacer|blank|clear|transparent|trans|dot|empty|1x1|1px|px|grey|placeholder|loading|loader|lazy|lazyload"
    r"|ajax-loader|tracking|beacon)(?:[_-]?(?:1x1|1px|pixel|gif|trans))?\.(?:gif|png|jpe?g|webp)"
)
_SPRITES = re.compile(r"(?:.*[_.-])?sprites?(?:[_.-].*)?\.(?:png|gif|webp|jpe?g)")


_RAW_CHARS = 8  # of a text for each that is kept: the rest of a book sent as a caption is not even cleaned
_NO_PAGE = Page("", None, frozenset(), [], 0)


class Extract(Stage):
    """Read an archive and measure each picture-text pair.

    A row is a picture of a page with a text; pictures without any text are counted, they are no samples. One picture
    gives one row a page and occurrence, with its best text by the order of `kinds`: see sources/candidates.py.
    """

    name: ClassVar[str] = "extract"
    version: ClassVar[int] = 8  # 7: annotated sets and their provenance; 8: their conversations
    resource: ClassVar[Resource] = "cpu"
    consumes: ClassVar[pa.Schema] = pa.schema([])

    archive: Literal["wat", "warc", "url_table"] = Field(
        "wat",
        description="wat: links from the metadata, fast; warc: pages from the HTML, more kinds of text; "
        "url_table: Parquet, CSV or TSV lists of URL and text, such as LAION's, DataComp's, COYO's, CC12M's",
    )
    url_column: str = Field("", description="url_table: column of the URLs; empty: url, image_url, img_url, image_link")
    text_column: str = Field(
        "", description="url_table: column of the texts; empty: text, caption, alt_text, alt, top_caption"
    )
    sha256_column: str = Field("", description="url_table: column of what the bytes' sha256 was; empty: sha256")
    phash_column: str = Field(
        "",
        description="url_table: column of what imagehash.phash was; empty: phash. COYO's image_phash is another hash",
    )
    kinds: tuple[TextKind, ...] = Field(
        ("alt", "figcaption", "title", "aria-label", "og", "json-ld"),
        min_length=1,
        description="kinds of text that count, best first; LAION: alt alone",
    )
    blocklist: Annotated[tuple[str, ...], Pin("file")] = Field(
        (),
        description="files or URLs of lists of domains, host suffixes, path tokens and regexes, gzip or not: pictures "
        "there are blocked; see web/blocklist.py",
    )
    refused_extensions: tuple[str, ...] = Field(
        ("svg", "svgz", "ico", "js", "css", "mp4", "webm", "swf", "pdf"),
        description="file extensions of url_class extension; LAION refuses gif too, of which we decode the first frame",
    )
    max_url_chars: int = Field(2000, ge=100, description="longer URLs are of class length and cut; LAION cuts at 2000")
    max_host_chars: int = Field(60, ge=4, description="longer hosts are of class host; LAION-400M, ccpp.py")
    max_text_chars: int = Field(2000, ge=1, description="texts are cut here [code points]; LAION, ccpp.py")
    boilerplate_over: int = Field(
        4, ge=1, description="a text under more than this many different pictures of a page is boilerplate"
    )
    language_reliable: float = Field(
        0.4, ge=0, le=1, description="probability from which a language counts, else nolang; see text/language.py"
    )
    opt_out: tuple[str, ...] = Field(
        ("noai", "noimageai"), description="directives of a page's meta robots that refuse use for AI"
    )
    max_record_bytes: int = runtime(64 << 20, ge=1 << 16, description="records that declare more are counted, not read")
    max_page_bytes: int = runtime(16 << 20, ge=1 << 16, description="HTML that inflates to more is counted, not read")

    @field_validator("blocklist", mode="before")
    @classmethod
    def _one_list_or_several(cls, lists: object) -> object:
        return ([lists] if lists else []) if isinstance(lists, str) else lists

    @property
    def produces(self) -> pa.Schema:
        """Every column whose producer is extract."""
        return schema.schema(*_COLUMNS)

    @property
    def table_columns(self) -> url_table.Columns:
        """Columns of a URL table that the settings name."""
        return url_table.Columns(self.url_column, self.text_column, self.sha256_column, self.phash_column)

    def read(self, stream: BinaryIO, location: str, tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yield the archive's candidates in batches of at most 4,096 rows.

        stream    the archive as stored, from its first byte
        location  where it lies: goes into warc_filename and error messages
        tally     gets records, records_bad(_*), pages, links_seen, links_without_text, archive_truncated, bytes_read
        raises    BadShardError when nothing can be read as what it should be; what the stream raises
        """
        if annotated.is_location(location):
            yield from self._read_annotated(stream, annotated.parse_location(location), tally)
            return
        if self.archive == "url_table":
            yield from self._read_table(stream, location, tally)
            return
        rows = _Rows(self, location)
        for page in self._pages(stream, location, tally):
            chosen = choose_texts(page.pictures, self.kinds, self.max_text_chars, self.boilerplate_over)
            seen = len(page.pictures) + page.wordless
            tally["links_seen"] += seen
            tally["links_without_text"] += seen - len(chosen)
            refuses = not page.robots.isdisjoint(self.opt_out)
            for each in chosen:
                rows.add(page, each, refuses)
                if len(rows) == _BATCH_ROWS:
                    yield rows.batch()
        if len(rows):
            yield rows.batch()

    def _read_table(self, stream: BinaryIO, location: str, tally: Tally) -> Iterator[pa.RecordBatch]:
        path, _ = url_table.split_location(location)
        rows = _Rows(self, path)
        for number, url, raw, sha256, phash in url_table.read_rows(stream, location, tally, self.table_columns):
            tally["links_seen"] += 1
            text = clean_text(raw, self.max_text_chars)
            if not text:
                tally["links_without_text"] += 1
                continue
            chosen = Chosen(canonical(url), raw, text, "table", text_class(text))
            rows.add(_NO_PAGE._replace(offset=number), chosen, False, _digest(sha256, 64), _digest(phash, 16))
            if len(rows) == _BATCH_ROWS:
                yield rows.batch()
        if len(rows):
            yield rows.batch()

    def _read_annotated(
        self, stream: BinaryIO, shard: annotated.AnnotatedShard, tally: Tally
    ) -> Iterator[pa.RecordBatch]:
        one = shard.annotated
        rows = _Rows(self, shard.path)
        for record in annotated.read_records(stream, shard, tally):
            tally["links_seen"] += 1
            raw = record.text[: _RAW_CHARS * self.max_text_chars]
            text = clean_text(raw, self.max_text_chars)
            if not text:
                tally["links_without_text"] += 1
                continue
            url = canonical(annotated.picture_url(one.name, record.picture))
            licence = _sendable(record.licence or one.licence)[: self.max_text_chars] or None
            provenance = _Provenance(
                annotated.place_json(shard, record), one.name, _sendable(record.item)[:200], licence, one.origin,
                record.conversation.to_json() if record.conversation else None,
            )  # fmt: skip
            chosen = Chosen(url, raw, text, "annotated", text_class(text))
            rows.add(_NO_PAGE._replace(offset=record.number), chosen, False, provenance=provenance)
            if len(rows) == _BATCH_ROWS:
                yield rows.batch()
        if len(rows):
            yield rows.batch()

    def _pages(self, stream: BinaryIO, location: str, tally: Tally) -> Iterator[Page]:
        from curation.sources import (
            warc,
            wat,
        )  # compiled loops: half a second and 100 MiB that other tasks need not have

        if self.archive == "wat":
            return wat.read_pages(stream, location, tally, max_record_bytes=self.max_record_bytes)
        return warc.read_pages(
            stream, location, tally, max_record_bytes=self.max_record_bytes, max_page_bytes=self.max_page_bytes
        )


def url_class(url: str, settings: Extract, blocked: Blocklist | None) -> str:
    """Class of a canonical URL: ok, or the first that holds of scheme, length, host, blocked, extension, pattern."""
    local = url.startswith(annotated.SCHEME)
    if not local and not url.startswith(("http://", "https://")):
        return "scheme"
    if len(url) > settings.max_url_chars:
        return "length"
    if local:
        return "ok"
    host, counts = _host(url[: url.find("/", 8)])
    if not host or len(host) > settings.max_host_chars:
        return "host"
    if blocked is not None and (_blocks_host(blocked, host) or blocked.blocks_url(url)):
        return "blocked"
    path = url.partition("?")[0]
    name = path[path.rfind("/") + 1 :].lower()
    _, dot, extension = name.rpartition(".")
    if dot and extension in settings.refused_extensions:
        return "extension"
    sprites = "sprite" in name and _SPRITES.fullmatch(name)
    return "pattern" if counts or sprites or _PATTERN_NAME.fullmatch(name) else "ok"


@lru_cache(maxsize=65536)
def _host(origin: str) -> tuple[str, bool]:
    """Host of "scheme://authority" and whether it is one that counts visits."""
    host = hostname(origin)
    return host, _COUNTER_HOST.fullmatch(host) is not None


@lru_cache(maxsize=65536)
def _blocks_host(blocked: Blocklist, host: str) -> bool:
    return blocked.blocks_host(host)


class _Provenance(NamedTuple):
    """Where a pair comes from, and where its picture lies when it is not on the web."""

    picture_ref: str | None = None
    annotated_set: str | None = None
    annotated_item: str | None = None
    licence: str | None = None
    text_origin: str = "web"
    conversation: str | None = None


_WEB = _Provenance()


class _Rows:
    """The rows of the batch at hand, and the identities of all rows of the shard, 8 bytes of each."""

    _FIELDS = (
        *("sample_id", "url", "text", "alt", "text_kind", "page_url", "page_language", "page_opt_out"),
        *("warc_record_offset", "url_class", "text_class", "n_chars", "n_words"),
        *("expected_sha256", "expected_phash"),
        *_Provenance._fields,
    )

    def __init__(self, settings: Extract, location: str) -> None:
        self._settings = settings
        self._location = location
        self._blocked = read_blocklist(*settings.blocklist) if settings.blocklist else None
        self._seen: list[np.ndarray] = []  # each sorted, and shorter than half of the one before
        self._rows: list[tuple[object, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        page: Page,
        chosen: Chosen,
        refuses: bool,
        sha256: str | None = None,
        phash: str | None = None,
        provenance: _Provenance = _WEB,
    ) -> None:
        settings = self._settings
        url, raw, text, kind, class_ = chosen
        identity = sample_id(url, text)
        row = (
            *(identity, url[: settings.max_url_chars], text, _sendable(raw[: settings.max_text_chars]), kind),
            *(_sendable(page.url[: settings.max_url_chars]) or None, page.language, refuses, page.offset),
            *(url_class(url, settings, self._blocked), class_, len(text), text.count(" ") + 1),
            *(sha256, phash, *provenance),
        )
        self._rows.append(row)

    def batch(self) -> pa.RecordBatch:
        columns: dict[str, list[object]] = dict(
            zip(self._FIELDS, map(list, zip(*self._rows, strict=True)), strict=True)
        )
        self._rows = []
        codes, confidences = detect_languages(columns["text"])  # type: ignore[arg-type]
        reliable = self._settings.language_reliable
        languages = [code if sure >= reliable else "" for code, sure in zip(codes, confidences, strict=True)]
        columns["language"] = list(languages)
        columns["language_confidence"] = list(confidences)
        columns["partition"] = [partition(code) for code in languages]
        columns["warc_filename"] = [self._location] * len(codes)
        columns["duplicate_pair"] = self._seen_before(columns["sample_id"])  # type: ignore[arg-type]
        produces, pool = self._settings.produces, pa.system_memory_pool()  # Arrow's own keeps 15 MiB more
        arrays = [pa.array(columns[field.name], type=field.type, memory_pool=pool) for field in produces]
        return pa.RecordBatch.from_arrays(arrays, schema=produces)

    def _seen_before(self, identities: list[str]) -> list[object]:
        """For each identity whether an earlier row of the shard has it, by its first 64 bits."""
        short = np.frombuffer(bytes.fromhex("".join(each[:16] for each in identities)), ">u8").astype(np.uint64)
        ordered, first = np.unique(short, return_index=True)
        is_new = np.ones(len(ordered), bool)
        for earlier in self._seen:
            at = np.searchsorted(earlier, ordered)
            is_new &= earlier[np.minimum(at, len(earlier) - 1)] != ordered
        before = np.ones(len(short), bool)
        before[first[is_new]] = False
        added = ordered[is_new]
        while self._seen and 2 * len(added) >= len(self._seen[-1]):
            added = np.sort(np.concatenate([self._seen.pop(), added]), kind="stable")
        if len(added):
            self._seen.append(added)
        return list(before.tolist())


def _sendable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 column takes."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()


def _digest(cell: str, digits: int) -> str | None:
    """A table's digest in lower case; None when it is none of so many hex digits."""
    cell = cell.strip().lower()
    return cell if len(cell) == digits and not cell.strip("0123456789abcdef") else None

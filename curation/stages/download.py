"""Download: fetch each picture once, with manners, and keep it decoded, resized and hashed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import pyarrow as pa
from pydantic import Field, PrivateAttr, field_validator, model_validator

from curation import __version__
from curation.errors import BadShardError
from curation.images.ahead import Ahead, Waiting
from curation.images.phash import PHASH
from curation.images.spool import Spool
from curation.schema import COLUMNS, schema
from curation.sources.annotated import SCHEME
from curation.stages.base import Resource, Stage, Tally, runtime
from curation.verdicts import HEALS, Fault
from curation.web.consent import UNREACHABLE
from curation.web.room import FIRST_SHARE

if TYPE_CHECKING:  # libcurl is for a task that downloads
    from curation.images.decoders import Decoders
    from curation.web.client import Fetcher, Response

log = logging.getLogger(__name__)

_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.producer == "download")
_SPOOLED = ("image", "same_on_host")  # known when the shard is whole
_AHEAD_ROWS = 8192  # in batches that are not whole yet: one slow URL does not hold up thousands
_LOG_S = 10.0
# what the rest takes, measured (docs/benchmarks.md): this process with its tables, and a decoder with a small picture
_OWN_BYTES = 320 << 20
_DECODER_BYTES = 100 << 20

Row = dict[str, Any]


class _Plan(NamedTuple):
    decoders: int
    room_bytes: int


class Download(Stage):
    """Fetch, decode once, resize, re-encode, hash. Consent is respected by default and a refusal keeps its evidence."""

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 4  # 3: libcurl; exif, same_on_host; 4: shrunk by halvings and bilinear
    resource: ClassVar[Resource] = "io"
    consumes: ClassVar[pa.Schema] = schema(*("url", "page_opt_out", "expected_sha256", "expected_phash", "picture_ref"))

    side_px: int = Field(
        256, ge=16, le=4096, description="pictures are shrunk until the shorter side has this; never enlarged"
    )
    resize: Literal["keep_ratio", "center_crop", "none"] = "keep_ratio"
    image_format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(92, ge=1, le=100)
    exif_fields: tuple[str, ...] = Field(
        (), description="EXIF tags whose values go into column exif: DateTimeOriginal, Copyright, Model, ..."
    )
    max_bytes: int = Field(20 << 20, ge=1, description="bytes of a body, also after decompression")
    max_pixels: int = Field(89_478_484, ge=1, description="width x height by the header; LAION's worker, dbdl.py")
    max_redirects: int = Field(5, ge=0, le=20)
    timeout_s: float = Field(10.0, gt=0, description="a request, from resolving the name to the last byte")
    attempts: int = Field(2, ge=1, le=10, description="requests for a URL whose failure may heal")
    decode_timeout_s: float = Field(30.0, gt=0, description="a picture whose decoder takes longer is bad_image")
    decoder_memory_bytes: int = Field(
        384 << 20,
        ge=64 << 20,
        description="a picture whose decoding takes more is image_too_large; 89 megapixels of PNG take 360 MB",
    )
    user_agent: str = Field(
        f"curation/{__version__} (image-text datasets; to refuse: robots.txt, X-Robots-Tag: noai)",
        description="who we are; its first word is the robots.txt token. Name your page: docs/crawler.md",
    )
    respect_robots: bool = True
    respect_headers: bool = True
    respect_tdm: bool = True
    respect_page: bool = Field(True, description="the page's own meta robots: its pictures are not requested")
    directives: tuple[str, ...] = Field(
        ("noai", "noimageai", "noml", "noindex", "noimageindex", "none"), description="X-Robots-Tag values that refuse"
    )
    connections: int = runtime(
        512, ge=1, le=8192, description="most requests in flight; how many there are adapts to what the network carries"
    )
    per_host: int = runtime(8, ge=1, description="requests in flight to one host")
    min_delay_s: float = runtime(0.0, ge=0, description="between two requests to one host")
    memory_bytes: int = runtime(
        1 << 30,
        ge=1 << 20,
        description="ceiling of the task's memory, decoder processes included; requests wait for it",
    )
    decoders: int | None = runtime(
        None, ge=1, description="decoder processes; by default one a core, as many as memory_bytes holds"
    )
    ahead_bytes: int = runtime(
        1 << 30,
        ge=0,
        description="bytes of bodies that may wait for decoders on disk, so that the last slow hosts are waited for "
        "while decoders are busy; what goes beyond waits in memory_bytes",
    )
    deadline_s: float | None = runtime(None, gt=0, description="URLs that had no turn by then get the fault deadline")
    budget_bytes: int | None = runtime(
        None, gt=0, description="bytes to receive for a shard; URLs that had no turn by then get byte_budget"
    )
    proxy: str | None = runtime(None, description="http proxy; it resolves the names, so it must guard addresses too")
    ca_file: str | None = runtime(None, description="file of trusted certificates instead of the usual authorities")
    connect_to: dict[str, str] = runtime(
        {}, description='host glob -> address:port to connect to instead, {"*.test": "127.0.0.1:8099"}; not guarded'
    )

    _earlier: Iterator[Row] | None = PrivateAttr(None)

    @field_validator("connect_to")
    @classmethod
    def _addresses(cls, targets: dict[str, str]) -> dict[str, str]:
        for target in targets.values():
            address, _, port = target.rpartition(":")
            if not address or not port.isdigit():
                raise ValueError(f"{target!r}: give address:port, such as 127.0.0.1:8099")
        return targets

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self._plan().decoders < (self.decoders or 1):
            least = self.memory_bytes + (self.decoders or 1) * _DECODER_BYTES - self._spare_bytes()
            raise ValueError(
                f"memory_bytes: {self.memory_bytes} holds no {self.decoders or 1} decoders beside "
                f"{self.connections} connections and a body of max_bytes: give at least {least}, or lower connections, "
                "max_bytes or decoder_memory_bytes"
            )
        return self

    @property
    def produces(self) -> pa.Schema:
        """Every column whose producer is download, and the fault."""
        return schema(*_COLUMNS, "fault")

    @property
    def models(self) -> dict[str, str]:
        """The hash's algorithm: values of another are not comparable."""
        return {"phash": PHASH}

    def healing(self, earlier: Iterator[pa.RecordBatch]) -> Download:
        """This stage for a shard that was downloaded before: only what may heal is fetched, the rest is taken over.

        earlier  the rows of the earlier table that entered, in order, with the columns of `produces`
        """
        again = self.model_copy()
        again._earlier = (row for batch in earlier for row in batch.to_pylist())
        return again

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Fetch many batches at a time; yield them in order when the last is there."""
        with Spool() as spool:
            copies = _Copies()
            for place in self._fetched(batches, spool, copies, tally):
                with pa.ipc.open_stream(spool.read(*place)) as stored:
                    yield self._with_pictures(stored.read_all(), spool, copies)

    def recheck(self, urls: Iterable[str]) -> Iterator[tuple[str, str | None, str | None]]:
        """Ask hosts whether pictures may still be used, by the rules of the download; no body is fetched.

        Pictures of annotated sets have no host to ask.

        yields  url; None, or the reason (a consent fault: it is refused now; another: it could not be asked, or is
                gone); the evidence
        """
        with _Loop() as loop:
            fetcher = loop.wait(self._started())
            asked: deque[tuple[str, Future[Response]]] = deque()

            def answer() -> tuple[str, str | None, str | None]:
                url, future = asked.popleft()
                response = future.result()
                return url, response.fault and str(response.fault), response.consent

            try:
                for url in urls:
                    if url.startswith(SCHEME):
                        continue
                    asked.append((url, loop.submit(fetcher.ask(url))))
                    if len(asked) >= _AHEAD_ROWS:
                        yield answer()
                while asked:
                    yield answer()
            finally:
                loop.wait(fetcher.__aexit__())

    def _fetched(
        self, batches: Iterator[pa.RecordBatch], spool: Spool, copies: _Copies, tally: Tally
    ) -> list[tuple[int, int]]:
        """Where in the spool each batch lies, with its URLs; its pictures lie there for themselves."""
        from curation.images.decoders import Decoders

        with (
            Ahead(self.ahead_bytes) as on_disk,
            _Loop() as loop,
            Decoders(self._plan().decoders, **self._decoding()) as decoders,
        ):
            fetcher = loop.wait(self._started())
            task = _Task(self, fetcher, decoders, spool, on_disk)
            report = _Reporter(fetcher)
            ahead: dict[Future[list[Row]], tuple[int, pa.Array]] = {}
            whole: dict[int, tuple[int, int]] = {}

            def collect() -> None:
                done, _ = wait(ahead, timeout=_LOG_S, return_when=FIRST_COMPLETED)
                for future in done:
                    rows = future.result()
                    number, urls = ahead.pop(future)
                    table = self._table(rows, tally)
                    copies.add(urls.to_pylist(), table.column("sha256"))
                    whole[number] = spool.put(_stored(table.append_column("url", urls)))
                    report.add(rows)
                report.tell()

            try:
                for number, batch in enumerate(batches):
                    coming = loop.submit(task.rows(batch.to_pylist(), self._before(batch.num_rows, spool)))
                    ahead[coming] = number, batch.column("url")
                    while sum(len(urls) for _, urls in ahead.values()) >= _AHEAD_ROWS:
                        collect()
                while ahead:
                    collect()
                fetcher.check_reached()
            finally:
                loop.wait(fetcher.__aexit__())
            tally["decoder_deaths"] += decoders.deaths
            return [whole[number] for number in range(len(whole))]

    async def _started(self) -> Fetcher:
        from curation.web.client import Fetcher, Limits

        own: dict[str, Any] = {
            "agent": self.user_agent,
            "directives": frozenset(self.directives),
            "room_bytes": self._plan().room_bytes,
        }
        rest: dict[str, Any] = {name: getattr(self, name) for name in Limits._fields if name not in own}
        limits = Limits(**own, **rest)
        return await Fetcher(limits).__aenter__()

    def _decoding(self) -> dict[str, Any]:
        names = ("side_px", "resize", "image_format", "quality", "max_pixels", "exif_fields")
        settings = {name: getattr(self, name) for name in names}
        return {"settings": settings, "memory_bytes": self.decoder_memory_bytes, "seconds": self.decode_timeout_s}

    def _spare_bytes(self) -> int:
        """What is left for decoders when the least room for bodies is set aside."""
        room = 2 * self.connections * FIRST_SHARE + 2 * self.max_bytes
        return self.memory_bytes - _OWN_BYTES - self.decoder_memory_bytes - room

    def _plan(self) -> _Plan:
        fitting = max(0, self._spare_bytes() // _DECODER_BYTES)
        decoders = min(self.decoders or os.cpu_count() or 1, fitting)
        others = _OWN_BYTES + self.decoder_memory_bytes + decoders * _DECODER_BYTES
        return _Plan(decoders, self.memory_bytes - others)

    def _before(self, n_rows: int, spool: Spool) -> list[Row | None]:
        """For each row what an earlier generation found, None where there is none or it may heal."""
        if self._earlier is None:
            return [None] * n_rows
        rows = list(islice(self._earlier, n_rows))
        if len(rows) < n_rows:
            raise BadShardError("the earlier table has fewer rows than enter now")
        for row in rows:
            row |= {"place": spool.put(row.pop("image") or b""), "again": True}
        return [None if row["fault"] in HEALS or row["consent"] == UNREACHABLE else row for row in rows]

    def _table(self, rows: list[Row], tally: Tally) -> pa.Table:
        for row in rows:
            if "place" not in row:
                row["place"] = (0, 0)
            if not row.pop("again", False):
                tally["bytes_fetched"] += row.get("body_bytes") or 0
            tally["pictures"] += row["fault"] is None
            tally["healed"] += row.pop("healed", False)
        fields = [field for field in self.produces if field.name not in _SPOOLED]
        fields.append(pa.field("place", pa.list_(pa.int64(), 2)))
        return pa.Table.from_pylist(rows, schema=pa.schema(fields))

    def _with_pictures(self, table: pa.Table, spool: Spool, copies: _Copies) -> pa.RecordBatch:
        places = table.column("place").to_pylist()
        images = [spool.read(offset, length) if length else None for offset, length in places]
        columns = {field.name: table.column(field.name) for field in table.schema}
        same = copies.of(table.column("url").to_pylist(), table.column("sha256"))
        columns |= {"image": pa.array(images, pa.binary()), "same_on_host": pa.array(same, pa.int32())}
        arranged = pa.table({field.name: columns[field.name] for field in self.produces}, schema=self.produces)
        batches = arranged.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=self.produces)


class _Task:
    """Rows of one task: fetched, decoded, spooled."""

    def __init__(self, settings: Download, fetcher: Fetcher, decoders: Decoders, spool: Spool, ahead: Ahead) -> None:
        self._settings, self._fetcher, self._decoders, self._spool = settings, fetcher, decoders, spool
        self._ahead, self._waiting, self._enough = ahead, 0, 2 * settings._plan().decoders
        self._reading = asyncio.Semaphore(settings._plan().decoders + 1)
        self._asked: WeakValueDictionary[str, asyncio.Task[Row]] = WeakValueDictionary()

    async def rows(self, entering: list[Row], before: list[Row | None]) -> list[Row]:
        retrying = self._settings._earlier is not None

        async def one(row: Row, found: Row | None) -> Row:
            if found is not None:
                return found
            if self._settings.respect_page and row["page_opt_out"]:
                return {"fault": str(Fault.OPT_OUT_META), "consent": "the page's meta robots"}
            # several texts of one picture stand near each other: it is fetched once
            task = self._asked.get(row["url"])
            again = task is not None
            if task is None:
                task = asyncio.create_task(self._row(row["url"], row["picture_ref"]))
                self._asked[row["url"]] = task
            measured = await task
            healed = retrying and measured["fault"] is None
            return measured | _identity(measured, row) | {"again": again, "healed": healed}

        return list(await asyncio.gather(*(one(row, found) for row, found in zip(entering, before, strict=True))))

    async def _row(self, url: str, picture_ref: str | None) -> Row:
        if picture_ref is not None:
            return await self._local(picture_ref)
        self._decoders.start()
        response = await self._fetcher.fetch(url)
        row: Row = {
            "fault": response.fault and str(response.fault),
            "http_status": response.status,
            "final_url": response.final_url,
            "etag": response.etag,
            "consent": response.consent,
            "fetch_ms": response.fetch_ms,
        }
        share, body = response.share, response.body
        if share is not None:
            del response
            try:
                row |= _measured(body)
                if self._waiting >= self._enough and (stored := self._ahead.put(body)):
                    body = b""
                    share.release()
                    row |= await self._decoded(stored)
                else:
                    row |= await self._decoded(body)
            finally:
                share.release()
        return row

    async def _local(self, picture_ref: str) -> Row:
        """A picture of an annotated set, under the same limits; no more are in memory than decoders can take."""
        from curation.sources.annotated_pictures import Unreadable, read_picture

        async with self._reading:
            try:
                body = await asyncio.to_thread(read_picture, picture_ref, self._settings.max_bytes)
            except Unreadable as error:
                return {"fault": str(error.fault)}
            return {"fault": None} | _measured(body) | await self._decoded(body)

    async def _decoded(self, body: bytes | bytearray | Waiting) -> Row:
        self._waiting += 1
        try:
            found = await asyncio.wrap_future(self._decoders.submit(body))
        finally:
            self._waiting -= 1
        if "fault" in found:
            log.debug("%s: %s", found["fault"], found["reason"])
            return {"fault": found["fault"]}
        place = self._spool.put(found.pop("image"))
        sides = sorted((found["original_width"], found["original_height"]))
        shape = {"min_side": sides[0], "aspect": sides[1] / sides[0], "image_format": self._settings.image_format}
        return {"place": place} | found | shape


def _measured(body: bytes | bytearray) -> Row:
    return {"body_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


class _Copies:
    """How many URLs of a host gave the same bytes, counted over a shard."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._seen: set[int] = set()

    def add(self, urls: list[str], digests: pa.ChunkedArray) -> None:
        for url, digest in zip(urls, digests.to_pylist(), strict=True):
            if digest is not None and (mark := hash((url, digest))) not in self._seen:
                self._seen.add(mark)
                self._counts[self._key(url, digest)] += 1

    def of(self, urls: list[str], digests: pa.ChunkedArray) -> list[int | None]:
        pairs = zip(urls, digests.to_pylist(), strict=True)
        return [None if digest is None else self._counts[self._key(url, digest)] for url, digest in pairs]

    @staticmethod
    def _key(url: str, digest: str) -> int:
        return hash((urlsplit(url).netloc, digest))


class _Reporter:
    """A line in the log every ten seconds: what came in, how fast, and what went wrong."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._started = self._told = time.monotonic()
        self._faults: Counter[str] = Counter()
        self._rows = 0

    def add(self, rows: list[Row]) -> None:
        self._rows += len(rows)
        self._faults.update(row["fault"] for row in rows if row["fault"])

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= _LOG_S:
            self._told = now
            faults = ", ".join(f"{count} {fault}" for fault, count in self._faults.most_common(4)) or "no faults"
            rate = self._rows / (now - self._started)
            log.info(
                "%d rows, %.0f/s, %d of %d requests in flight; %s", self._rows, rate, *self._fetcher.in_flight, faults
            )


def _stored(table: pa.Table) -> bytes:
    """The table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _identity(measured: Row, row: Row) -> Row:
    """Whether the picture is the one that a URL table means, and how far its hash is off."""
    if measured.get("sha256") is None:
        return {}
    found: Row = {}
    if row["expected_sha256"]:
        found["identity"] = "same" if measured["sha256"] == row["expected_sha256"].lower() else "changed"
    if row["expected_phash"] and measured.get("phash"):
        found["phash_distance"] = (int(measured["phash"], 16) ^ int(row["expected_phash"], 16)).bit_count()
    return found


class _Loop:
    """An event loop in a thread of its own."""

    def __enter__(self) -> _Loop:
        import uvloop  # 7 to 18 % less CPU in this process than asyncio's own loop

        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="download")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def wait(self, coroutine: Any) -> Any:
        return self.submit(coroutine).result()

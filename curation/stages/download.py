"""Download: fetch each picture once, with manners, and keep it decoded, resized and hashed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from curation import __version__
from curation.images.decode import Resize, Undecodable, decode_picture
from curation.images.phash import PHASH
from curation.schema import COLUMNS, schema
from curation.stages.base import Resource, Stage, Tally, runtime
from curation.web.room import FIRST_SHARE

if TYPE_CHECKING:  # aiohttp takes 0.5 s to import, which only a task that downloads should pay
    from curation.web.client import Fetcher, Response

_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.producer == "download")
_AHEAD_BATCHES = 4  # so that one slow URL does not hold up thousands: bounded, since finished pictures wait in memory

Row = dict[str, Any]


class Download(Stage):
    """Fetch, decode once, resize, re-encode, hash. Consent is respected by default and a refusal keeps its evidence."""

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 2  # 2: JPEGs are scaled in the DCT domain
    resource: ClassVar[Resource] = "io"
    consumes: ClassVar[pa.Schema] = schema("url")

    side_px: int = Field(
        256, ge=16, le=4096, description="pictures are shrunk until the shorter side has this; never enlarged"
    )
    resize: Resize = "keep_ratio"
    image_format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(92, ge=1, le=100)
    max_bytes: int = Field(20 << 20, ge=1, description="bytes of a body, also after decompression")
    max_pixels: int = Field(89_478_484, ge=1, description="width x height by the header; LAION's worker, dbdl.py")
    max_redirects: int = Field(5, ge=0, le=20)
    timeout_s: float = Field(10.0, gt=0, description="a request, from connecting to the last byte")
    attempts: int = Field(2, ge=1, le=10, description="requests for a URL whose failure may heal")
    user_agent: str = Field(
        f"curation/{__version__} (image-text datasets; to refuse: robots.txt, X-Robots-Tag: noai)",
        description="who we are; its first word is the robots.txt token",
    )
    respect_robots: bool = True
    respect_headers: bool = True
    respect_tdm: bool = True
    directives: tuple[str, ...] = Field(
        ("noai", "noimageai", "noml", "noindex", "noimageindex", "none"), description="X-Robots-Tag values that refuse"
    )
    connections: int = runtime(128, ge=1, le=4096, description="requests in flight")
    per_host: int = runtime(8, ge=1, description="requests in flight to one host")
    min_delay_s: float = runtime(0.0, ge=0, description="between two requests to one host")
    memory_bytes: int = runtime(
        256 << 20,
        ge=1 << 20,
        description="room for bodies that are read or wait for a decoder; new requests wait for it",
    )
    deadline_s: float | None = runtime(None, gt=0, description="URLs that had no turn by then get the fault deadline")
    proxy: str | None = runtime(None, description="http proxy; it resolves the names, so it must guard addresses too")
    connect_to: dict[str, str] = runtime(
        {}, description='host glob -> address:port to connect to instead, {"*.test": "127.0.0.1:8099"}; not guarded'
    )

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
        least = self.connections * FIRST_SHARE + self.max_bytes
        if self.memory_bytes < least:
            raise ValueError(
                f"memory_bytes: {self.memory_bytes} holds no body of max_bytes beside {self.connections} connections: "
                f"give at least {least}, or lower connections or max_bytes"
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

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Fetch several batches at a time; yield them in order."""
        with _Loop() as loop, ThreadPoolExecutor(os.cpu_count()) as decoders:
            fetcher = loop.wait(self._started())
            try:
                ahead: deque[Future[list[Row]]] = deque()
                for batch in batches:
                    ahead.append(loop.submit(self._fetch_all(fetcher, decoders, batch.column("url").to_pylist())))
                    if len(ahead) >= _AHEAD_BATCHES:
                        yield self._table(ahead.popleft().result(), tally)
                while ahead:
                    yield self._table(ahead.popleft().result(), tally)
                fetcher.check_reached()
            finally:
                loop.wait(fetcher.__aexit__())

    async def _started(self) -> Fetcher:
        from curation.web.client import Fetcher, Limits

        limits = Limits(
            agent=self.user_agent,
            directives=frozenset(self.directives),
            **{name: getattr(self, name) for name in Limits._fields if name not in ("agent", "directives")},
        )
        return await Fetcher(limits).__aenter__()

    async def _fetch_all(self, fetcher: Fetcher, decoders: ThreadPoolExecutor, urls: list[str]) -> list[Row]:
        return list(await asyncio.gather(*(self._row(fetcher, decoders, url) for url in urls)))

    async def _row(self, fetcher: Fetcher, decoders: ThreadPoolExecutor, url: str) -> Row:
        response = await fetcher.fetch(url)
        row: Row = {
            "fault": response.fault and str(response.fault),
            "http_status": response.status,
            "final_url": response.final_url,
            "etag": response.etag,
            "consent": response.consent,
            "fetch_ms": response.fetch_ms,
        }
        if response.share is not None:
            try:
                row |= await asyncio.get_running_loop().run_in_executor(decoders, self._decoded, response)
            finally:
                response.share.release()
        return row

    def _decoded(self, response: Response) -> Row:
        row: Row = {"body_bytes": len(response.body), "sha256": hashlib.sha256(response.body).hexdigest()}
        try:
            picture = decode_picture(
                response.body,
                side_px=self.side_px,
                resize=self.resize,
                image_format=self.image_format,
                quality=self.quality,
                max_pixels=self.max_pixels,
            )
        except Undecodable as err:
            return row | {"fault": str(err.fault)}
        sides = sorted((picture.original_width, picture.original_height))
        return (
            row
            | picture._asdict()
            | {"image_format": self.image_format, "min_side": sides[0], "aspect": sides[1] / sides[0]}
        )

    def _table(self, rows: list[Row], tally: Tally) -> pa.RecordBatch:
        tally["bytes_fetched"] += sum(row.get("body_bytes") or 0 for row in rows)
        tally["pictures"] += sum(row["fault"] is None for row in rows)
        return pa.RecordBatch.from_pylist(rows, schema=self.produces)


class _Loop:
    """An event loop in a thread of its own, so that fetching goes on while tables are written."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="download")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._cancelled(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def wait(self, coroutine: Any) -> Any:
        return self.submit(coroutine).result()

    async def _cancelled(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

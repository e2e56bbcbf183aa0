"""Safety: known hashes, the punsafe head's probability and words in the text; it reads no picture."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from curation.errors import ConfigError
from curation.schema import schema
from curation.stages.base import PinnedFile, Resource, Stage, Tally


class Safety(Stage):
    """Tag samples as LAION does: unsafe, unsure, safe; and name the entry of a known-hash list that a picture equals.

    The list holds sha256 of files as fetched (64 hex digits) or perceptual hashes (16 hex digits), one a line, with
    an optional note after white space; perceptual ones match within `known_radius` bits.
    """

    name: ClassVar[str] = "safety"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "cpu"
    consumes: ClassVar[pa.Schema] = schema("sha256", "phash", "text")

    known_hashes: PinnedFile = Field("", description="list of sha256 or pHash of pictures that must not be published")
    known_radius: int = Field(4, ge=0, le=8, description="bits by which a pHash may differ from a listed one")
    unsafe_words: tuple[str, ...] = Field(
        ("porn", "xxx", "nsfw", "nude", "hentai", "sex video"),
        description="whole words of the text, any case, that make a sample unsure",
    )

    @property
    def produces(self) -> pa.Schema:
        """The list entry that was hit, the tag and what raised it."""
        return schema("known_hash", "safety_tag", "safety_reason")

    @cached_property
    def _known(self) -> tuple[dict[str, str], list[tuple[int, str]]]:
        exact: dict[str, str] = {}
        perceptual: list[tuple[int, str]] = []
        for number, line in enumerate(_lines(self.known_hashes), 1):
            value = line.split()[0].lower()
            if not re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", value):
                raise ConfigError(f"stages.safety.known_hashes: line {number}: {value[:70]!r} is no sha256 or pHash")
            if len(value) == 64:
                exact[value] = value
            else:
                perceptual.append((int(value, 16), value))
        return exact, perceptual

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return re.compile(r"\b(" + "|".join(map(re.escape, self.unsafe_words)) + r")\b", re.IGNORECASE)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Measure each sample on its own."""
        for batch in batches:
            rows = zip(*(batch.column(name).to_pylist() for name in self.consumes.names), strict=True)
            measured = [self._measure(*row) for row in rows]
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, pa.string()) for column in zip(*measured, strict=True)], schema=self.produces
            )

    def _measure(self, sha256: str, phash: str, text: str) -> tuple[str | None, str, str | None]:
        known = self._lookup(sha256, phash)
        if known:
            return known, "unsafe", f"known hash {known}"
        word = self._words.search(text) if self.unsafe_words else None
        return (None, "unsure", f"word {word[0].lower()!r}") if word else (None, "safe", None)

    def _lookup(self, sha256: str, phash: str) -> str | None:
        exact, perceptual = self._known
        if sha256 in exact:
            return exact[sha256]
        value = int(phash, 16)
        return next((name for bits, name in perceptual if (bits ^ value).bit_count() <= self.known_radius), None)


def _lines(path: str) -> list[str]:
    if not path:
        return []
    content = Path(path).read_bytes()
    text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8", "replace")
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]

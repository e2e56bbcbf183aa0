"""Safety: known hashes, the punsafe head's probability and words in the text; it reads no picture."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, StringConstraints, model_validator

from curation.errors import ConfigError
from curation.schema import schema
from curation.stages.base import PinnedFile, Resource, Stage, Tally

Tag = Literal["safe", "unsure", "unsafe"]
# Thai, Lao, Myanmar, Khmer, kana, Han
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_COMPARED = 1 << 22  # pairs of hashes at a time: 32 MB


class Safety(Stage):
    """Tag samples as LAION does: unsafe, unsure, safe; and name the entry of a known-hash list that a picture equals.

    Unsafe: on the list, or punsafe above `unsafe_above`, or a word beside a punsafe above `unsure_above`. Unsure: one
    of the last two alone. Nothing is deleted: a gate on safety_tag gives the verdict `unsafe` or `quarantined`,
    `curation quarantine` lists what is held, and the ids that a reviewer cleared go into `cleared`.

    The list holds sha256 of files as fetched (64 hex digits) or perceptual hashes (16 hex digits), one a line, with
    an optional note after white space; perceptual ones match within `known_radius` bits.
    """

    name: ClassVar[str] = "safety"
    version: ClassVar[int] = 3  # 2: punsafe, words; 3: words of scripts without spaces, and beside punctuation
    resource: ClassVar[Resource] = "cpu"

    known_hashes: PinnedFile = Field("", description="list of sha256 or pHash of pictures that must not be published")
    known_radius: int = Field(4, ge=0, le=8, description="bits by which a pHash may differ from a listed one")
    unsafe_above: float | None = Field(
        None,
        ge=0,
        le=1,
        description="punsafe that makes a sample unsafe; needs stages.score.heads.punsafe (LAION: 0.5)",
    )
    unsure_above: float | None = Field(
        None, ge=0, le=1, description="punsafe that makes it unsure (Re-LAION-5B research-safe: 0.45)"
    )
    unsafe_words: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...] = Field(
        ("porn", "xxx", "nsfw", "nude", "hentai", "sex video"),
        description="whole words of the text, any case, that make a sample unsure; where a script sets no spaces "
        "between words (Chinese, Japanese, Thai...) anywhere in it",
    )
    cleared: PinnedFile = Field(
        "", description="sample_ids that a reviewer found safe, one a line; a known hash stays unsafe"
    )

    @model_validator(mode="after")
    def _tiers_in_order(self) -> Safety:
        if self.unsafe_above is not None and self.unsure_above is not None and self.unsure_above > self.unsafe_above:
            raise ValueError(f"unsure_above {self.unsure_above} lies above unsafe_above {self.unsafe_above}: swap them")
        return self

    @property
    def reads_punsafe(self) -> bool:
        """Whether a threshold on the head's probability is set."""
        return self.unsafe_above is not None or self.unsure_above is not None

    @property
    def consumes(self) -> pa.Schema:
        """Hashes and text; the head's probability where a threshold on it is set."""
        return schema("sample_id", "sha256", "phash", "text", *(["punsafe"] if self.reads_punsafe else []))

    @property
    def produces(self) -> pa.Schema:
        """The list entry that was hit, the tag and what raised it."""
        return schema("known_hash", "safety_tag", "safety_reason")

    def check(self) -> None:
        """Read the lists, so that a bad line stops the run before any work."""
        assert self._exact is not None
        assert self._cleared is not None

    @cached_property
    def _known(self) -> list[str]:
        found = []
        for number, line in _lines(self.known_hashes, "known_hashes"):
            value = line.split()[0].lower()
            if not re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", value):
                raise ConfigError(f"stages.safety.known_hashes: line {number}: {value[:70]!r} is no sha256 or pHash")
            found.append(value)
        return found

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(value for value in self._known if len(value) == 64)

    @cached_property
    def _perceptual(self) -> np.ndarray:
        # sorted: of entries equally near the smallest is named, whatever the list's order
        return np.array(sorted({int(value, 16) for value in self._known if len(value) == 16}), np.uint64)

    @cached_property
    def _cleared(self) -> frozenset[str]:
        found = set()
        for number, line in _lines(self.cleared, "cleared"):
            value = line.split()[0].lower()
            if not re.fullmatch(r"[0-9a-f]{32}", value):
                raise ConfigError(f"stages.safety.cleared: line {number}: {value[:70]!r} is no sample_id")
            found.add(value)
        return frozenset(found)

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_whole, self.unsafe_words)), re.IGNORECASE)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Measure each sample on its own."""
        for batch in batches:
            known = self._lookup(batch.column("sha256").to_pylist(), batch.column("phash").to_pylist())
            punsafe = batch.column("punsafe").to_pylist() if self.reads_punsafe else [None] * batch.num_rows
            rows = zip(
                batch.column("sample_id").to_pylist(), known, punsafe, batch.column("text").to_pylist(), strict=True
            )
            measured = [(entry, *self._tag(sample_id, entry, p, text)) for sample_id, entry, p, text in rows]
            tally.update(f"tagged_{tag}" for _, tag, _ in measured)
            columns = zip(*measured, strict=True) if measured else ((), (), ())
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, pa.string()) for column in columns], schema=self.produces
            )

    def _tag(self, sample_id: str, known: str | None, punsafe: float | None, text: str) -> tuple[Tag, str | None]:
        """Tag and reason of one sample."""
        if known:
            return "unsafe", f"known hash {known}"
        if sample_id in self._cleared:
            return "safe", "cleared by a reviewer"
        word = self._words.search(text) if self.unsafe_words else None
        said = [f"word {word[0].lower()!r}"] if word else []
        if punsafe is not None and self.unsafe_above is not None and punsafe > self.unsafe_above:
            return "unsafe", "; ".join([f"punsafe {punsafe:.3f}", *said])
        if punsafe is not None and self.unsure_above is not None and punsafe > self.unsure_above:
            return "unsafe" if word else "unsure", "; ".join([f"punsafe {punsafe:.3f}", *said])
        return ("unsure", said[0]) if said else ("safe", None)

    def _lookup(self, sha256: list[str], phash: list[str]) -> list[str | None]:
        """Entry of the list that each picture equals: by bytes, else the nearest by look."""
        found: list[str | None] = [value if value in self._exact else None for value in sha256]
        if not len(self._perceptual) or not phash:
            return found
        values = np.array([int(value, 16) for value in phash], np.uint64)
        best, entry = np.full(len(values), 65, np.uint8), np.zeros(len(values), np.uint64)
        step = max(1, _COMPARED // len(values))
        for start in range(0, len(self._perceptual), step):
            part = self._perceptual[start : start + step]
            bits = np.bitwise_count(values[:, None] ^ part[None, :])
            nearest = bits.argmin(1)
            least = bits[np.arange(len(values)), nearest]
            entry = np.where(least < best, part[nearest], entry)
            best = np.minimum(best, least)
        return [
            exact or (f"{int(near):016x}" if bits <= self.known_radius else None)
            for exact, near, bits in zip(found, entry, best, strict=True)
        ]


def _whole(word: str) -> str:
    """Pattern of a word that stands alone; beside a letter of a script without spaces nothing tells where it ends."""
    before = "" if _SPACELESS.match(word[0]) else r"(?<!\w)"
    after = "" if _SPACELESS.match(word[-1]) else r"(?!\w)"
    return f"{before}{re.escape(word)}{after}"


def _lines(path: str, setting: str) -> list[tuple[int, str]]:
    """Lines that are neither empty nor comments, with their numbers."""
    if not path:
        return []
    content = Path(path).read_bytes()
    try:
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"stages.safety.{setting}: expected a list, gzip or not: {error}") from error
    stripped = enumerate(map(str.strip, text.splitlines()), 1)
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]

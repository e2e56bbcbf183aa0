"""What every stage is: typed settings, a declared input and output, one function over record batches."""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

Resource = Literal["cpu", "io", "gpu"]
Tally = Counter[str]
"""Counts that a stage wants in its receipt beside the verdicts: bytes_fetched, links_seen, ..."""


def runtime(default: Any, **kwargs: Any) -> Any:
    """Declare a setting that changes speed or surroundings, not results: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


class Pin:
    """Marks a setting that names outside data; `pipeline.pin` replaces it by a key in the store that names its bytes.

    kind "file": a path or URL of a list; "evalset": the name of an evaluation set in the store.
    """

    def __init__(self, kind: Literal["file", "evalset"]) -> None:
        self.kind = kind


PinnedFile = Annotated[str, Pin("file")]
PinnedEvalset = Annotated[str, Pin("evalset")]


class Stage(BaseModel):
    """A stage of the pipeline; the fields of a subclass are its settings.

    `__call__` takes batches that hold the columns of `consumes`, only rows that are still in, and yields for each
    batch one of the same length and order with the columns of `produces`; it may read ahead. A column `fault` may be
    among `produces`. No file, no clock, no unseeded randomness: what a stage needs from outside is a setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[int]
    resource: ClassVar[Resource]
    consumes: ClassVar[pa.Schema]

    @property
    def produces(self) -> pa.Schema:
        """Schema of the columns this stage adds."""
        raise NotImplementedError

    @property
    def models(self) -> dict[str, str]:
        """Identity of each model that the stage has used, by role; for the receipt."""
        return {}

    def check(self) -> None:
        """Read what the settings name (files are local here). Raises ConfigError before any work, naming the field."""

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Measure batches one by one, in order."""
        raise NotImplementedError

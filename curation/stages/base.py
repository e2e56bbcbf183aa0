"""What every stage is: typed settings, a declared input and output, one function over record batches."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from curation.errors import BadShardError
from curation.schema import schema

Resource = Literal["cpu", "io", "gpu"]
Tally = Counter[str]
"""Counts that a stage wants in its receipt beside the verdicts: bytes_fetched, links_seen, ..."""


def runtime(default: Any, **kwargs: Any) -> Any:
    """Declare a setting that changes speed or surroundings, not results: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"runtime": True}, **kwargs)


class Pin:
    """Marks a setting that names outside data; `pipeline.pin` replaces it by a key in the store that names its bytes.

    kind "file": a path or URL of a list; "evalset": the name of an evaluation set in the store; "captioner", "matcher":
    a model, of which registry:NAME becomes registry:NAME@VERSION and all else stays as it is.
    """

    def __init__(self, kind: Literal["file", "evalset", "captioner", "matcher"]) -> None:
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


class Join(Stage):
    """A stage that judges a sample by all others: emit keys shard by shard, match them, apply the decisions.

    Decisions are rows of `decisions`: the keys, the shard and what was found, for each sample that entered. They are at
    once the index of later blocks.
    """

    consumes: ClassVar[pa.Schema] = schema("sample_id")
    outcome: ClassVar[pa.Schema]

    index: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="name of the index of what earlier blocks kept, shared by all runs that name it; empty: one for "
        "each set of settings, so that a renewed blocklist begins a new one",
    )
    _applied: pa.Table | None = PrivateAttr(None)

    @property
    def produces(self) -> pa.Schema:
        """What matching found."""
        return self.outcome

    @property
    def reads(self) -> pa.Schema:
        """Columns of every sample that `emit` reads."""
        raise NotImplementedError

    @property
    def keys(self) -> pa.Schema:
        """What `emit` gives of every sample."""
        raise NotImplementedError

    @property
    def decisions(self) -> pa.Schema:
        """The keys of a sample, its shard and what was found."""
        return pa.schema([*self.keys, pa.field("shard", pa.int32()), *self.outcome])

    def emit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Keys of a batch of samples."""
        raise NotImplementedError

    def prepare(self, keys: pa.Table) -> pa.Table | None:
        """What the first block of an index decides for all later ones, if anything."""
        return None

    def match(self, keys: pa.Table, index: Iterable[pa.Table], prepared: pa.Table | None = None) -> pa.Table:
        """Decisions on a block: keys and shard of its samples against each other and what earlier blocks kept."""
        raise NotImplementedError

    def kept(self, decisions: pa.Table) -> pa.Table:
        """Those of the decisions that later blocks are matched against."""
        return decisions.filter(pc.is_null(decisions[self.outcome.names[0]]))

    def applying(self, decisions: pa.Table) -> Self:
        """The stage ready to apply the decisions on one shard, in the order of its samples."""
        ready = self.model_copy()
        ready._applied = decisions
        return ready

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Hand each sample its decision; they stand in the order in which the samples entered."""
        assert self._applied is not None
        start = 0
        for batch in batches:
            part = self._applied.slice(start, batch.num_rows).combine_chunks()
            start += batch.num_rows
            ids = pa.array([bytes.fromhex(i) for i in batch.column("sample_id").to_pylist()], pa.binary(16))
            if not part["pair"].combine_chunks().equals(ids):
                raise BadShardError(f"the {self.name} decisions are of other samples: run match again")
            yield part.select(self.outcome.names).to_batches()[0]
        tally["decisions"] = start

"""Gates: the rules of a recipe that turn measured columns into verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.schema import COLUMNS
from curation.verdicts import Verdict

Bound = float | dict[str, float]


class Gate(BaseModel):
    """One rule over one column; a row that does not meet it gets the verdict that names the gate.

    A bound may be a number, or with `by` one number for each value of another column (`by: partition`); a value
    without a bound of its own fails. Equality meets a bound: LAION drops on `<`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    at_least: Bound | None = None
    at_most: Bound | None = None
    one_of: tuple[str, ...] | None = None
    none_of: tuple[str, ...] | None = None
    equals: bool | None = None
    by: str | None = None
    if_null: Literal["drop", "keep"] | None = Field(
        None, description="what a null means; by default none_of keeps it, every other rule drops it"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Gate:
        if self.column not in COLUMNS:
            raise ValueError(f"unknown column {self.column!r}; docs/columns.md lists them")
        if self.by is not None and self.by not in COLUMNS:
            raise ValueError(f"by: unknown column {self.by!r}; docs/columns.md lists them")
        if self.by is not None and not pa.types.is_string(COLUMNS[self.by].type):
            raise ValueError(f"by: {self.by} holds {COLUMNS[self.by].type}; bounds go by a column of words")
        rules = [r for r in ("at_least", "at_most", "one_of", "none_of", "equals") if getattr(self, r) is not None]
        if not rules:
            raise ValueError("give one of at_least, at_most, one_of, none_of, equals")
        for rule in rules:
            if isinstance(getattr(self, rule), dict) != (self.by is not None):
                raise ValueError(
                    "`by` goes with a bound for each of its values, as in at_least: {en: 0.28, multi: 0.26}"
                )
            self._fits(rule)
        return self

    def _fits(self, rule: str) -> None:
        """Raise ValueError where the rule cannot be asked of its column, or no value of the column can meet it."""
        column, wanted = COLUMNS[self.column], getattr(self, rule)
        fits = {"one_of": pa.types.is_string, "none_of": pa.types.is_string, "equals": pa.types.is_boolean}
        numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        if not (fits[rule](column.type) if rule in fits else numeric):
            raise ValueError(f"{rule}: {self.column} holds {column.type}, of which this cannot be asked")
        if rule in ("one_of", "none_of"):
            _known(rule, self.column, wanted)
        if rule not in ("at_least", "at_most"):
            return
        if isinstance(wanted, dict):
            assert self.by is not None
            _known(rule, self.by, wanted)
        low, high = column.range
        if pa.types.is_integer(column.type):
            high = min(high, 2 ** (column.type.bit_width - 1) - 1)
        for bound in wanted.values() if isinstance(wanted, dict) else [wanted]:
            if not low <= bound <= high or math.isinf(bound):
                raise ValueError(f"{rule}: {bound} is out of range: {self.column} goes from {low:g} to {high:g}")
            if pa.types.is_integer(column.type) and bound != int(bound):
                raise ValueError(f"{rule}: {bound} is no whole number, and {self.column} counts {column.unit}")

    @property
    def columns(self) -> list[str]:
        """Columns that the gate reads."""
        return [self.column] if self.by is None else [self.column, self.by]

    def passes(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Which rows meet the rule: boolean, (n,), no nulls."""
        values = batch.column(self.column)
        met: pa.Array = pa.array([True] * batch.num_rows, pa.bool_())
        if self.at_least is not None:
            met = pc.and_(met, pc.greater_equal(values, self._bound(self.at_least, values, batch)))
        if self.at_most is not None:
            met = pc.and_(met, pc.less_equal(values, self._bound(self.at_most, values, batch)))
        if self.one_of is not None:
            met = pc.and_(met, pc.is_in(values, pa.array(self.one_of, values.type)))
        if self.none_of is not None:
            met = pc.and_(met, pc.invert(pc.is_in(values, pa.array(self.none_of, values.type))))
        if self.equals is not None:
            met = pc.and_(met, pc.equal(values, self.equals))
        keep_null = self.if_null == "keep" or (self.if_null is None and self.none_of is not None)
        return pc.if_else(pc.is_null(values), keep_null, pc.fill_null(met, False))

    def _bound(self, bound: Bound, values: pa.Array, batch: pa.RecordBatch) -> Any:
        # in the column's own type, so that a value stored as float32(0.26) meets the bound 0.26
        if isinstance(bound, dict):
            found = pc.index_in(batch.column(self.by), pa.array(list(bound), pa.string()))
            return pc.take(pa.array(list(bound.values()), values.type), found)
        return pa.scalar(bound, values.type)


def _known(rule: str, column: str, values: Iterable[str]) -> None:
    """Raise ValueError for a value that the column never takes: the gate would drop all or nothing in silence."""
    known = COLUMNS[column].values
    for value in values:
        if known and value not in known:
            raise ValueError(f"{rule}: {column} is never {value!r}; its values: {', '.join(known)}")


def judge(batch: pa.RecordBatch, gates: Iterable[tuple[Verdict, Gate]]) -> pa.StringArray:
    """Verdict of each row, null where every gate is met: string, (n,). The first gate that is not met names it."""
    verdicts = pa.nulls(batch.num_rows, pa.string())
    for verdict, gate in gates:
        missed = pc.and_(pc.is_null(verdicts), pc.invert(gate.passes(batch)))
        verdicts = pc.if_else(missed, str(verdict), verdicts)
    return verdicts

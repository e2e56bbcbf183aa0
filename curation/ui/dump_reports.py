"""What the pages on a dump tell, counted aside from at most 64 of its shards, evenly drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curation.block import runs
from curation.errors import ConfigError
from curation.gates import Gate
from curation.publish.card import spelt
from curation.reports import audit as audits
from curation.reports.duplicates import Duplicates, largest_groups
from curation.reports.leakage import leakage_report
from curation.reports.spread import Values, spread
from curation.ui.browse import shown
from curation.ui.counting import WAIT_S, Counted, counted
from curation.ui.sources import MEASURES, Dump

_CAPTIONS = 12
_SCANNED = 1 << 15
_CAPTION_COLUMNS = (
    *("text", "synthetic", "synthetics", "caption", "caption_source", "itm_text", "itm_synthetic", "text_origin"),
    *("similarity", "safety_tag", "punsafe"),
)


def threshold(dump: Dump, column: str, line: float | None) -> dict[str, Any]:
    """The spread of a measure, what a line at this value keeps, and the samples beside it.

    line     None: the recipe's own bound, or the middle
    returns  counted (its value is Values), told, line, above, gates, examples {below, above}, columns
    """
    columns = dump.columns(MEASURES)
    if column not in columns:
        raise ConfigError(f"recipe {dump.recipe.name} does not measure {column}; it has {', '.join(columns) or 'none'}")

    def count() -> Iterator[Counted]:
        shards, values = dump.even(), None
        for n, values in enumerate(spread(dump.store, dump.recipe, dump.dump, shards, column), 1):
            if n < len(shards):
                yield Counted(values, n, len(shards))
        if values is None:
            raise ConfigError(f"{dump.dump}: no shard has {column} yet")
        yield Counted(values, len(shards), len(shards))  # a million values are enough, be it of fewer shards

    gates = _gates(dump, column)
    above = not any(gate.at_most is not None for _, gate in gates) and column != "punsafe"
    state = counted(("spread", dump.identity, column), count, WAIT_S)
    page: dict[str, Any] = {"counted": state, "above": above, "columns": columns, "line": line, "told": None}
    page["gates"] = [(verdict, spelt(gate)) for verdict, gate in gates]
    if state.value is None:
        return page
    values: Values = state.value
    if line is None:
        bounds = [bound for _, gate in gates for bound in _bounds(gate)]
        line = bounds[0] if bounds else float(np.median(values.value)) if len(values.value) else 0.0
    looked = ("url", "text", "language", column, "safety_tag", "punsafe")
    examples = {}
    # beside a partial count stands what would not stand there later, and reading it would compete with the count
    below, over = values.beside(line) if state.complete else ([], [])
    for side, places in (("below", below), ("above", over)):
        rows = dump.rows(places[0][0], [row for _, row in places], looked) if places else []
        examples[side] = [row | {"part": shard, "row": at} for row, (shard, at) in zip(rows, places, strict=True)]
    return page | {"told": values.to_json(line, above=above), "line": line, "examples": examples}


def duplicates(dump: Dump) -> Counted:
    """The largest groups, as Duplicates, and what is told of their members by (shard, row), once all are read."""
    if dump.recipe.stage("dedup") is None:
        raise ConfigError(f"recipe {dump.recipe.name} has no stage dedup")
    shards = dump.even()

    def count() -> Iterator[Counted]:
        state = Duplicates(0, 0, {}, [])
        for state in largest_groups(dump.store, dump.recipe, dump.dump, shards):
            yield Counted((state, {}), min(state.shards, len(shards) - 1), len(shards))  # whole when it is described
        yield Counted((state, _described(dump, state)), len(shards), len(shards))

    return counted(("duplicates", dump.identity), count)


def _described(dump: Dump, found: Duplicates) -> dict[tuple[int, int], dict[str, Any]]:
    places: dict[int, list[int]] = {}
    for group in found.groups:
        for member in group.members:
            places.setdefault(member.shard, []).append(member.row)
    told: dict[tuple[int, int], dict[str, Any]] = {}
    for shard, rows in places.items():
        read = dump.rows(shard, rows, ["text", "safety_tag", "punsafe"])
        told |= {(shard, row): one for row, one in zip(rows, read, strict=True)}
    return told


def leakage(dump: Dump) -> Counted:
    """`leakage_report`; told when all shards are read."""
    shards = dump.even()
    if not shards:
        raise ConfigError(f"{dump.dump}: no shard of recipe {dump.recipe.name} is done yet")

    def count() -> Iterator[Counted]:
        yield Counted(leakage_report(dump.store, dump.recipe, dump.dump, shards), len(shards), len(shards))

    return counted(("leakage", dump.identity), count)


def audit(dump: Dump) -> Counted:
    """`Audit.to_json`, each time of twice as many shards."""
    shards = dump.even()

    def count() -> Iterator[Counted]:
        found = audits.Audit(dump.recipe)
        for n, shard in enumerate(shards, 1):
            audits.audit(dump.store, dump.recipe, dump.dump, [shard], found)
            if n & (n - 1) == 0 or n == len(shards):  # told at 1, 2, 4, ...: telling costs as much as counting a shard
                yield Counted(found.to_json(), n, len(shards))
        if not shards:
            raise ConfigError(f"{dump.dump}: no shard of recipe {dump.recipe.name} is done yet")

    return counted(("audit", dump.identity), count)


def captions(dump: Dump, start: str, beside: Dump | None) -> dict[str, Any]:
    """Samples that have a synthetic caption, a dozen from a place on, with another recipe's captions of the same.

    returns  rows, next (a Place, empty at the end), models, others (recipes that ran on the dump too), other
    """
    if dump.recipe.stage("caption") is None:
        raise ConfigError(f"recipe {dump.recipe.name} has no stage caption")
    part, offset = (int(number) for number in start.split("-"))
    rows: list[dict[str, Any]] = []
    following, scanned = "", 0
    while part < dump.n_parts and len(rows) < _CAPTIONS and scanned < _SCANNED:
        for at, batch in dump.batches(part, offset, _CAPTION_COLUMNS):
            there = pc.indices_nonzero(pc.is_valid(batch["synthetic"])).to_pylist()[: _CAPTIONS - len(rows)]
            rows += [shown(batch.slice(row, 1).to_pylist()[0]) | {"part": dump.done[part]} for row in there]
            scanned += batch.num_rows
            if len(rows) == _CAPTIONS or scanned >= _SCANNED:
                following = f"{part}-{at + there[-1] + 1 if len(rows) == _CAPTIONS else at + batch.num_rows}"
                break
        else:
            part, offset = part + 1, 0
    if beside is not None:
        _add_other(beside, rows)
    others = sorted({name for name_of, name in runs(dump.store) if name_of == dump.dump} - {dump.recipe.name})
    stage = dump.recipe.stage("caption")
    assert stage is not None
    return {
        "rows": rows,
        "next": following,
        "models": stage.models,
        "others": others,
        "other": beside.recipe.name if beside else "",
    }


def _add_other(beside: Dump, rows: list[dict[str, Any]]) -> None:
    """Put another recipe's caption of the same sample beside: shards have the same rows where both begin alike."""
    for row in rows:
        row["other"] = None
        if row["part"] in beside.done and beside.columns(["synthetic"]):
            (found,) = beside.rows(row["part"], [row["row"]], ["sample_id", "synthetic", "itm_synthetic"])
            if found.get("sample_id") == row["sample_id"]:
                row["other"] = found.get("synthetic")


def _gates(dump: Dump, column: str) -> list[tuple[str, Gate]]:
    return [
        (str(verdict), gate)
        for verdict, all_of in dump.recipe.gates.items()
        for gate in all_of
        if gate.column == column
    ]


def _bounds(gate: Gate) -> list[float]:
    found = gate.at_least if gate.at_least is not None else gate.at_most
    if found is None:
        return []
    return list(found.values()) if isinstance(found, dict) else [found]

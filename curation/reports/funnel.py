"""The funnel: for each stage how many samples came in, how many went on, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from curation.errors import BadShardError
from curation.pipeline import fingerprint
from curation.receipt import Receipt, table_key
from curation.recipe import Recipe
from curation.runner import read_outcomes, receipt_of
from curation.store import Store
from curation.verdicts import Fault

_DAMAGE = ("records_bad", "archive_truncated")  # tallies of the first stage: what was in an archive and is lost
_READERS = 16  # footers are small: on S3 the wait for one is the time it takes


@dataclass
class StageCounts:
    """One stage over all shards that have done it."""

    stage: str
    shards_done: int = 0
    rows_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # faults of the stage, and verdicts on what it measured
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    bytes: int = 0
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Samples that went on."""
        return self.rows_in - self.reasons.total()

    @property
    def faults(self) -> int:
        """Samples that could not be measured."""
        return sum(count for reason, count in self.reasons.items() if reason in set(Fault))

    @property
    def rows_per_second(self) -> float:
        """Rows measured in a second of one task, 0 where nothing was timed."""
        return self.rows_in / self.seconds if self.seconds else 0.0


@dataclass
class Funnel:
    """A block's stages in order, and the state of every shard: the last stage that is done, "" for none."""

    recipe: str
    dump: str
    stages: list[StageCounts]
    shards: dict[int, str]

    @property
    def samples(self) -> int:
        """Samples that extract found."""
        return self.stages[0].rows_in

    @property
    def kept(self) -> int:
        """Samples that every gate let through, of shards that are done."""
        return self.stages[-1].kept

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return {
            "recipe": self.recipe,
            "dump": self.dump,
            "samples": self.samples,
            "kept": self.kept,
            "stages": [
                vars(stage)
                | {
                    "reasons": dict(stage.reasons.most_common()),
                    "tally": dict(stage.tally),
                    "seconds": round(stage.seconds, 3),
                    "kept": stage.kept,
                    "faults": stage.faults,
                    "rows_per_second": round(stage.rows_per_second, 1),
                    "shards": len(self.shards),
                }
                for stage in self.stages
            ],
            "shards": self.shards,
        }


def funnel(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Funnel:
    """Count what became of the samples of these shards, from receipts; the last gates are evaluated here."""
    stages = {name: StageCounts(name) for name in recipe.stage_names}
    sizes = {name: _sizes(store, recipe, dump, name) for name in recipe.stage_names}
    done = receipts_by_shard(store, recipe, dump, shards, sizes)
    complete = [shard for shard, receipts in done.items() if len(receipts) == len(stages)]
    with ThreadPoolExecutor(_READERS) as pool:
        outcomes = dict(
            zip(complete, pool.map(lambda shard: outcome_counts(store, recipe, dump, shard), complete), strict=True)
        )
    for shard, receipts in done.items():
        for receipt in receipts:
            counts = stages[receipt.stage]
            counts.shards_done += 1
            counts.rows_in += receipt.rows - sum(receipt.dropped.values())
            counts.seconds += receipt.seconds
            counts.peak_memory_bytes = max(counts.peak_memory_bytes, receipt.peak_memory_bytes)
            counts.bytes += sizes[receipt.stage][shard]
            counts.tally.update(receipt.tally)
        for receipt, following in pairwise(receipts):
            _add_difference(stages[receipt.stage].reasons, following.dropped, receipt.dropped)
        if shard in outcomes:
            _add_difference(stages[receipts[-1].stage].reasons, outcomes[shard], receipts[-1].dropped)
        elif receipts:
            stages[receipts[-1].stage].reasons.update(receipts[-1].faults)  # its gates are not evaluated yet
    for counts in stages.values():
        counts.reasons.pop("kept", None)
        counts.reasons = +counts.reasons
    state = {shard: receipts[-1].stage if receipts else "" for shard, receipts in done.items()}
    return Funnel(recipe.name, dump, list(stages.values()), state)


def receipts_by_shard(
    store: Store,
    recipe: Recipe,
    dump: str,
    shards: Sequence[int],
    sizes: dict[str, dict[int, int]] | None = None,
) -> dict[int, list[Receipt]]:
    """Receipts of each shard's stages in order, as far as they are done and up to date.

    A table that was made from other tables than stand there now is not up to date, nor is what follows it.
    """
    standing = sizes or {name: _sizes(store, recipe, dump, name) for name in recipe.stage_names}

    def read(shard: int) -> list[Receipt]:
        there = [name for name in recipe.stage_names if shard in standing[name]]
        return list(_up_to_date(store, recipe, dump, shard, there))

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(shards, pool.map(read, shards), strict=True))


def outcome_counts(store: Store, recipe: Recipe, dump: str, shard: int) -> Counter[str]:
    """Samples of one shard by final reason, "kept" for those that stay."""
    counts: Counter[str] = Counter()
    for batch in read_outcomes(store, recipe, dump, shard):
        for pair in pc.value_counts(batch.column("reason")).to_pylist():
            counts[pair["values"] or "kept"] += pair["counts"]
    return counts


def render(found: Funnel) -> Group:
    """The funnel and what it cost, as tables for a terminal of 80 columns or more."""
    through = sum(state == found.stages[-1].stage for state in found.shards.values())
    title = f"{found.dump}, recipe {found.recipe}: {found.kept} of {found.samples} samples kept"
    if through < len(found.shards):
        title += f" so far; {through} of {len(found.shards)} shards are through"
    numbers = _table(title, "stage", "in", "dropped", "kept", "why")
    costs = _table("what it took", "stage", "shards", "task time", "rows/s", "stored", "peak memory")
    for counts in found.stages:
        why = ", ".join(f"{reason}:{n}" for reason, n in counts.reasons.most_common())
        numbers.add_row(counts.stage, str(counts.rows_in), str(counts.reasons.total()), str(counts.kept), Text(why))
        costs.add_row(
            counts.stage,
            f"{counts.shards_done}/{len(found.shards)}",
            f"{counts.seconds:.1f} s",
            f"{counts.rows_per_second:.3g}" if counts.rows_per_second < 100 else f"{counts.rows_per_second:.0f}",
            decimal(counts.bytes),
            decimal(counts.peak_memory_bytes),
        )
    damage = {name: n for name, n in sorted(found.stages[0].tally.items()) if n and name in _DAMAGE}
    told = ", ".join(f"{name}:{n}" for name, n in damage.items())
    return Group(numbers, *([Text(f"damage in the archives: {told}\n", style="yellow")] if damage else []), costs)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in headings:
        words = heading in ("stage", "why")
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != "why")
    return table


def _sizes(store: Store, recipe: Recipe, dump: str, stage: str) -> dict[int, int]:
    """Size of each shard's table of a stage, by one listing: a dump of 90,000 shards is not asked for one by one."""
    prefix = table_key(dump, stage, fingerprint(recipe, stage), 0).rpartition("/")[0]
    names = ((entry.key.rpartition("/")[2], entry.size) for entry in store.entries(f"{prefix}/"))
    return {int(name.removesuffix(".parquet")): size for name, size in names if name.endswith(".parquet")}


def _up_to_date(store: Store, recipe: Recipe, dump: str, shard: int, there: list[str]) -> Iterator[Receipt]:
    before: dict[str, str] = {}
    for name in recipe.stage_names:
        if name not in there:
            return
        try:
            receipt = store.read_receipt(table_key(dump, name, fingerprint(recipe, name), shard))
        except BadShardError:  # a damaged table is not done; running its stage says what is wrong with it
            return
        # a receipt names its inputs, so one read tells; only joins depend on something else: the newest generation
        if receipt is None or receipt.inputs != before:
            return
        if name in ("pairs", "dedup") and receipt_of(store, recipe, dump, shard, name) is None:
            return
        before[name] = receipt.object_id
        yield receipt


def _add_difference(into: Counter[str], later: dict[str, int], earlier: dict[str, int]) -> None:
    into.update(later)
    into.subtract(earlier)

"""The funnel: for each stage how many samples came in, how many went on, and why the others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from curation.recipe import Recipe
from curation.runner import read_outcomes, receipt_of
from curation.store import Store


@dataclass
class StageCounts:
    """One stage over all shards that have done it."""

    stage: str
    shards_done: int = 0
    rows_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    bytes: int = 0
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Samples that went on."""
        return self.rows_in - self.reasons.total()


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
            "stages": [vars(stage) | {"kept": stage.kept} for stage in self.stages],
            "shards": self.shards,
        }


def funnel(store: Store, recipe: Recipe, dump: str, shards: Sequence[int]) -> Funnel:
    """Count what became of the samples of these shards, from receipts; the last gates are evaluated here."""
    stages = {name: StageCounts(name) for name in recipe.stage_names}
    state: dict[int, str] = {}
    for shard in shards:
        state[shard] = ""
        receipts = []
        for name in recipe.stage_names:
            receipt = receipt_of(store, recipe, dump, shard, name)
            if receipt is None:
                break
            state[shard] = name
            receipts.append(receipt)
            counts = stages[name]
            counts.shards_done += 1
            counts.rows_in += receipt.rows - sum(receipt.dropped.values())
            counts.seconds += receipt.seconds
            counts.peak_memory_bytes = max(counts.peak_memory_bytes, receipt.peak_memory_bytes)
            counts.tally.update(receipt.tally)
        for receipt, following in pairwise(receipts):
            stages[receipt.stage].reasons.update(following.dropped)
            stages[receipt.stage].reasons.subtract(receipt.dropped)
        if receipts and state[shard] == recipe.stage_names[-1]:
            last = stages[state[shard]]
            last.reasons.update(outcome_counts(store, recipe, dump, shard))
            last.reasons.subtract(receipts[-1].dropped)
            last.reasons.pop("kept", None)
        elif receipts:
            stages[state[shard]].reasons.update(receipts[-1].faults)
    for counts in stages.values():
        counts.reasons = +counts.reasons
    return Funnel(recipe.name, dump, list(stages.values()), state)


def outcome_counts(store: Store, recipe: Recipe, dump: str, shard: int) -> Counter[str]:
    """Samples of one shard by final reason, "kept" for those that stay."""
    counts: Counter[str] = Counter()
    for batch in read_outcomes(store, recipe, dump, shard):
        for pair in pc.value_counts(batch.column("reason")).to_pylist():
            counts[pair["values"] or "kept"] += pair["counts"]
    return counts


def render(found: Funnel) -> Group:
    """The funnel as a table for a terminal."""
    table = Table(title=f"{found.dump}, recipe {found.recipe}: {found.kept} of {found.samples} samples kept")
    for heading, justify in (
        ("stage", "left"), ("shards", "right"), ("in", "right"), ("dropped", "right"), ("kept", "right"),
        ("rows/s", "right"), ("why", "left"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for counts in found.stages:
        why = ", ".join(f"{reason} {n}" for reason, n in counts.reasons.most_common())
        rate = f"{counts.rows_in / counts.seconds:.0f}" if counts.seconds else ""
        done = f"{counts.shards_done}/{len(found.shards)}"
        table.add_row(
            counts.stage, done, str(counts.rows_in), str(counts.reasons.total()), str(counts.kept), rate, Text(why)
        )
    return Group(table)

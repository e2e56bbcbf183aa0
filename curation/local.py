"""Run a block on this machine: the same graph as the DAGs, without Airflow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from curation import generations
from curation.block import Block, phases
from curation.errors import ConfigError, CurationError
from curation.publish.version import export_shard, finish_version, plan_version, select_version
from curation.recipe import Recipe
from curation.runner import run_stage
from curation.stages.base import Join
from curation.store import Store

MATCH_STEPS = {"pairs": "match pairs", "dedup": "match"}
Report = Callable[[int, int], None]
"""Called with rows done and rows in all (0 when not known)."""
Step = Callable[[int, Report], object]


class Watcher(Protocol):
    """Sees how far each step is."""

    def begin(self, step: str, shards: int) -> None:
        """A step begins that takes so many shards."""

    def move(self, step: str, shard: int, rows: int, of: int) -> None:
        """A shard has got so far in a step."""

    def finish(self, step: str, shard: int) -> None:
        """A shard has done a step."""


@dataclass
class Outcome:
    """What came of a run: the manifest of the version, "" for none, and what went wrong by shard."""

    manifest: str = ""
    failed: dict[int, str] = field(default_factory=dict)


def run_block(
    store: Store, recipe: Recipe, block: Block, watcher: Watcher, *, until: str = "", workers: int = 1
) -> Outcome:
    """Take the block's shards through all stages and publish them, or stop after one stage.

    A shard that fails is noted and the others go on, up to the next step that needs the whole block (match, publish):
    a block without one of its shards would be matched to other decisions than with it. Raises ConfigError at once.
    """
    wanted = recipe.stage_names[: recipe.stage_names.index(until) + 1] if until else recipe.stage_names
    outcome = Outcome()

    def through(names: Sequence[str]) -> None:
        steps = {name: _stage(store, recipe, block.dump, name) for name in names if name in wanted}
        _each_shard(steps, block.shards, watcher, workers, outcome.failed)

    for stages in phases(recipe):
        if outcome.failed or stages[0] not in wanted:
            break
        if isinstance(recipe.stage(stages[0]), Join):
            step = MATCH_STEPS[stages[0]]
            watcher.begin(step, 1)
            generations.match_block(store, recipe, block.dump, block.shards, stages[0])
            watcher.finish(step, 0)
        through(stages)
    if not outcome.failed and not until:
        version = plan_version(store, recipe, block.dump, block.shards)
        if recipe.publish.selects:
            watcher.begin("select", 1)
            select_version(store, recipe, version)
            watcher.finish("select", 0)

        def export(shard: int, _: Report) -> None:
            export_shard(store, recipe, version, block.dump, shard)

        _each_shard({"export": export}, block.shards, watcher, workers, outcome.failed)
        if not outcome.failed:
            watcher.begin("publish", 1)
            outcome.manifest = finish_version(store, recipe, version, block.dump, block.shards)
            watcher.finish("publish", 0)
    return outcome


def _stage(store: Store, recipe: Recipe, dump: str, name: str) -> Step:
    return lambda shard, report: run_stage(store, recipe, dump, shard, name, progress=report)


def _each_shard(
    steps: dict[str, Step], shards: Sequence[int], watcher: Watcher, workers: int, failed: dict[int, str]
) -> None:
    for name in steps:
        watcher.begin(name, len(shards))
    stop = threading.Event()  # wrong settings are wrong for every shard

    def take(shard: int) -> None:
        for name, step in steps.items():
            if stop.is_set():
                return
            try:
                step(shard, lambda rows, of, name=name: watcher.move(name, shard, rows, of))  # type: ignore[misc]
            except ConfigError:
                stop.set()
                raise
            except CurationError as problem:
                failed[shard] = str(problem)
                return
            watcher.finish(name, shard)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(take, shards))

"""Which shards of a dump are ready to be published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curation import dumps
from curation.errors import ConfigError
from curation.pipeline import fingerprint
from curation.recipe import Recipe
from curation.runner import receipt_of
from curation.store import Store


def finished_shards(store: Store, recipe: Recipe, dump: str) -> list[int]:
    """Shards of a dump whose last stage is done under this recipe. Raises ConfigError when none is."""
    last = recipe.stage_names[-1]
    count = len(dumps.archives_of(store, dump, recipe.stages.extract.archive))
    prefix = f"dumps/{dump}/{last}-{fingerprint(recipe, last)[:8]}/"
    standing = sorted(int(entry.key.rpartition("/")[2].removesuffix(".parquet")) for entry in store.entries(prefix))
    found = [shard for shard in standing if receipt_of(store, recipe, dump, shard, last) is not None]
    if not found:
        raise ConfigError(
            f"--dump {dump}: none of its {count} shards is done under recipe {recipe.name} as it last ran; "
            "run it on this dump with the same settings"
        )
    return found


def portions(sources: Mapping[str, Sequence[int]], most: int = 500) -> list[dict[str, Any]]:
    """The shards of the dumps in runs for as many tasks: {"dump", "shards", "label"}, at most `most` of them.

    90,000 tasks of seconds each would cost a scheduler more than the work.
    """
    size = max(1, -(-sum(map(len, sources.values())) // max(1, most - len(sources))))
    return [
        {"dump": dump, "shards": part, "label": f"{dump} {part[0]:05d} to {part[-1]:05d}"}
        for dump, shards in sources.items()
        for part in (list(shards[at : at + size]) for at in range(0, len(shards), size))
    ]

"""Fetch again what may heal in shards that were downloaded before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from curation.errors import ConfigError, CurationError
from curation.pipeline import fingerprint
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.runner import retry_download
from curation.store import Store


@dataclass
class Outcome:
    """Pictures healed, and what went wrong, by shard; shards that were never downloaded are in neither."""

    healed: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def retry_shards(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], *, workers: int = 1) -> Outcome:
    """Retry the downloads of these shards; one that fails does not stop the others. Raises ConfigError at once."""
    outcome = Outcome()
    folder = table_key(dump, "download", fingerprint(recipe, "download"), 0).rpartition("/")[0]
    standing = {entry.key for entry in store.entries(f"{folder}/")}
    wanted = [n for n in shards if table_key(dump, "download", fingerprint(recipe, "download"), n) in standing]

    def take(shard: int) -> None:
        try:
            receipt = retry_download(store, recipe, dump, shard)
            outcome.healed[shard] = receipt.tally["healed"] if receipt else 0
        except ConfigError:
            raise
        except CurationError as problem:
            outcome.failed[shard] = str(problem)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(take, wanted))
    return outcome

"""Which shards of a dump are ready to be published."""

from __future__ import annotations

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

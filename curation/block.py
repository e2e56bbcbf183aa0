"""A block: up to 1,000 consecutive shards of a dump, what one run takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from curation import dumps
from curation.errors import ConfigError
from curation.generations import check_index
from curation.pipeline import fingerprint, localise, pin, save_recipe
from curation.receipt import table_key
from curation.recipe import Recipe
from curation.stages.base import Join, Stage
from curation.store import Store

BLOCK_SHARDS = 1000


class Block(NamedTuple):
    """What a run works on: a dump, some of its shards, and the key of the pinned recipe in the store."""

    dump: str
    shards: list[int]
    recipe_key: str


def plan(
    store: Store, recipe: Recipe, dump: str, source: str = "", *, block: int = 0, shards: Sequence[int] | None = None
) -> Block:
    """Check everything a run needs before any work, pin the recipe and list the shards.

    source  folder, glob, s3:// prefix or Common Crawl id; empty: the dump's own name
    shards  numbers within the dump; None: the whole block
    raises  ConfigError that names the field and the fix
    """
    if block < 0:
        raise ConfigError(f"block {block}: blocks are numbered from 0")
    kind = recipe.stages.extract.archive
    count = dumps.register(store, dump, source or dump, kind)
    if kind == "url_table":
        dumps.check_table(store, dump, recipe.stages.extract.table_columns)
    if shards is None:
        wanted = list(range(block * BLOCK_SHARDS, min((block + 1) * BLOCK_SHARDS, count)))
        if not wanted:
            raise ConfigError(f"block {block}: {dump} has {count} shards, blocks 0 to {(count - 1) // BLOCK_SHARDS}")
    else:
        wanted = sorted(set(shards))
        if not wanted or wanted[0] < 0 or wanted[-1] >= count:
            raise ConfigError(f"shards {_spelt(wanted)}: {dump} has {count} shards, 0 to {count - 1}")
        if len(wanted) > BLOCK_SHARDS:
            raise ConfigError(f"shards: {len(wanted)} named, a run takes at most {BLOCK_SHARDS}; use one run a block")
    pinned = pin(recipe, store)
    for name in pinned.stage_names:
        settings = pinned.stage(name)
        if settings and type(settings).check is not Stage.check:  # else no file is fetched for nothing
            localise(pinned, name, store, models=False).check()
        if isinstance(settings, Join):
            check_index(store, pinned, name)
    key = save_recipe(pinned, store)
    store.write_bytes(_note_key(dump, recipe.name), json.dumps({"recipe": key}).encode())
    return Block(dump, wanted, key)


def parse_blocks(text: str | None, n_shards: int) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]; empty or None -> all blocks of so many shards. Raises ConfigError."""
    count = -(-n_shards // BLOCK_SHARDS)
    wanted = parse_shards(text)
    if wanted is None:
        return list(range(count))
    if beyond := [number for number in wanted if number >= count]:
        raise ConfigError(f"blocks: {beyond[0]} is beyond the dump's {n_shards} shards, blocks 0 to {count - 1}")
    return wanted


def unfinished(store: Store, recipe: Recipe, dump: str) -> list[int]:
    """Blocks of a registered dump of which a shard's last table is missing, by one listing, not a look at each.

    recipe  pinned
    """
    last = recipe.stage_names[-1]
    folder = table_key(dump, last, fingerprint(recipe, last), 0).rpartition("/")[0]
    done = {entry.key for entry in store.entries(f"{folder}/")}
    n_shards = len(dumps.archives_of(store, dump, recipe.stages.extract.archive))
    missing = (shard for shard in range(n_shards) if f"{folder}/{shard:05d}.parquet" not in done)
    return sorted({shard // BLOCK_SHARDS for shard in missing})


def recipe_key(store: Store, dump: str, recipe_name: str | None = None) -> str:
    """Key of the pinned recipe that last ran on the dump. Raises ConfigError when none did, or several and no name."""
    notes = {entry.key.rpartition("/")[2].removesuffix(".json"): entry.key for entry in store.entries(_notes(dump))}
    if recipe_name is None and len(notes) == 1:
        recipe_name = next(iter(notes))
    if recipe_name not in notes:
        if not notes:
            ran = ", ".join(sorted({one for one, _ in runs(store)})) or "nothing yet"
            raise ConfigError(f"dump {dump}: no recipe ran on it in {store.root}; what ran there: {ran}")
        asked = f"recipe {recipe_name}: it did not run on {dump}" if recipe_name else f"{dump}: name the recipe"
        raise ConfigError(f"{asked}; these ran on it: {', '.join(notes)}")
    key: str = json.loads(store.read_bytes(notes[recipe_name]))["recipe"]
    return key


def runs(store: Store) -> list[tuple[str, str]]:
    """Dump and recipe of everything that was ever planned in this store."""
    keys = (entry.key.split("/") for entry in store.entries("runs/"))
    return [(dump, name.removesuffix(".json")) for _, dump, name in keys]


def dumps_of(store: Store, recipe_name: str) -> list[str]:
    """Dumps that the recipe ran on, in order of name. Raises ConfigError when there is none."""
    planned = sorted(dump for dump, name in runs(store) if name == recipe_name)
    if not planned:
        raise ConfigError(f"recipe {recipe_name}: it never ran in {store.root}")
    return planned


def phases(recipe: Recipe) -> list[tuple[str, ...]]:
    """The stages in runs that each shard takes on its own; before a run that begins with a join, the block is matched.

    For instance extract | pairs, download, score | dedup, safety, leakage.
    """
    found: list[tuple[str, ...]] = [()]
    for name in recipe.stage_names:
        if isinstance(recipe.stage(name), Join):
            found.append(())
        found[-1] += (name,)
    return found


def parse_shards(text: str | None) -> list[int] | None:
    """ "0-3,7" -> [0, 1, 2, 3, 7]; empty or None -> None, the whole block. Raises ConfigError."""
    if text is None or not text.strip():
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ConfigError(f"shards {text!r}: give numbers and ranges, such as 0-3,7")
        if dash and int(last) - int(first) >= BLOCK_SHARDS:
            raise ConfigError(f"shards {text!r}: a run takes at most {BLOCK_SHARDS}")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def _spelt(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "(none)"


def _notes(dump: str) -> str:
    return f"runs/{dump}/"


def _note_key(dump: str, recipe_name: str) -> str:
    return f"{_notes(dump)}{recipe_name}.json"

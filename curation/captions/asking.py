"""Ask a teacher about a seed set and keep its captions as a table: captions/taught/NAME.parquet.

`taught_records` gives them with their pictures, as training reads them. A row a picture that was described:

    dump, shard, sample_id     the picture: a kept sample of that shard's tables
    caption                    what the teacher wrote
    model, prompt              the teacher, and the first 16 hex digits of the SHA-256 of what it was asked
    prompt_tokens, completion_tokens, price   of this answer; price in the currency of the settings

Its metadata `curation.taught` holds the settings; NAME.json beside it how many questions ended how and what they cost.
Answers stand in the store by content before they are counted: a job that is killed and started again pays for no
picture twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from curation.block import recipe_key
from curation.captions.answers import Answer, AnswerCache, Reason
from curation.captions.batch import BatchClient
from curation.captions.endpoint import Asker, Endpoint
from curation.captions.records import Record
from curation.errors import BadShardError, ConfigError
from curation.pipeline import saved_recipe
from curation.receipt import digest
from curation.recipe import Recipe
from curation.store import Store
from curation.tombstones import read_spared

log = logging.getLogger(__name__)
SCHEMA = pa.schema(
    {
        "dump": pa.string(), "shard": pa.int32(), "sample_id": pa.string(), "caption": pa.string(),
        "model": pa.string(), "prompt": pa.string(), "prompt_tokens": pa.int32(), "completion_tokens": pa.int32(),
        "price": pa.float64(),
    }
)  # fmt: skip
CAPTIONED = "captioned"
MISSING = "missing"
"""Pictures of the seed set that the dump no longer keeps, or that were taken down."""
NOT_ASKED = (Reason.OVER_BUDGET, Reason.UNANSWERED)
_ROWS = 1000


class SeedSet(NamedTuple):
    """Which pictures to ask about: sample ids by shard of a dump under a recipe."""

    dump: str
    recipe: str
    ids: dict[int, list[str]]

    def __len__(self) -> int:
        return sum(map(len, self.ids.values()))

    @property
    def version(self) -> str:
        """Digest of which samples they are."""
        return digest(self.dump, *(f"{shard}={','.join(sorted(ids))}" for shard, ids in self.ids.items()))[:16]


@dataclass(frozen=True)
class Taught:
    """What came of a job; outcomes: CAPTIONED, MISSING and reasons of answers. Money and tokens count all answers."""

    key: str
    outcomes: dict[str, int]
    money: float
    tokens: int
    pictures: int
    cached: int  # answers that stood in the store before

    @property
    def captions(self) -> int:
        """Rows of the table."""
        return self.outcomes.get(CAPTIONED, 0)

    @property
    def whole(self) -> bool:
        """Whether every picture got an answer: else the same job asks about the rest."""
        return not any(self.outcomes.get(reason) for reason in NOT_ASKED)

    @property
    def money_per_caption(self) -> float:
        """Money by captions of use: what refusals and truncations cost counts too."""
        return self.money / self.captions if self.captions else 0.0


def read_seed_set(store: Store, name: str) -> SeedSet:
    """A set that `curation captions seed` chose. Raises ConfigError where there is none of that name."""
    key = f"captions/seeds/{name}.parquet"
    try:
        with store.open_parquet(key) as table:
            rows = table.read(columns=["sample_id", "shard"])
            settings = json.loads(table.schema_arrow.metadata[b"curation.seed_set"])
    except FileNotFoundError:
        raise ConfigError(f"seed set {name!r}: no {key} in {store.root}; make it: curation captions seed") from None
    ids: dict[int, list[str]] = {}
    for row in rows.to_pylist():
        ids.setdefault(row["shard"], []).append(row["sample_id"])
    return SeedSet(settings["dump"], settings["recipe"], dict(sorted(ids.items())))


def ask_seed_set(
    store: Store, recipe: Recipe, seeds: SeedSet, endpoint: Endpoint, name: str, *, batch: bool = False,
    poll_s: float = 60, told: Callable[[Counter[str], Asker], None] = lambda outcomes, asker: None,
) -> Taught:  # fmt: skip
    """Ask about every picture of a seed set and write captions/taught/NAME.parquet, also when a cap was reached.

    batch    by the batch API: cheaper, within a day; poll_s seconds between two looks at it
    told     hears of every answer: outcomes so far, and the asker with its budget
    raises   ConfigError for a cap of money without prices, or an endpoint that refuses key or model; OutageError where
             it is down: answers until then are kept, the table is not written
    """
    require_prices(endpoint)
    asker = Asker(endpoint, AnswerCache(store))
    same = {"model": endpoint.model, "prompt": hashlib.sha256(endpoint.text.encode()).hexdigest()[:16]}
    settings = {"recipe": recipe.name, "endpoint": endpoint.model_dump(mode="json"), "batch": batch}
    schema = SCHEMA.with_metadata({"curation.taught": json.dumps(settings)})
    outcomes: Counter[str] = Counter()
    cached = 0
    with store.write_table(taught_key(name), schema) as writer:
        rows: list[dict[str, object]] = []
        for place, answer in _answers(store, recipe, seeds, asker, batch, poll_s):
            outcomes[str(answer.reason) or CAPTIONED] += 1
            cached += answer.cached
            if answer.text is not None:
                used = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
                price = answer.share * endpoint.money(*used.values())
                rows.append({**place._asdict(), **same, **used, "caption": answer.text, "price": price})
            if len(rows) == _ROWS:
                writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
                rows = []
            told(outcomes, asker)
        if rows:
            writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
    if missing := len(seeds) - outcomes.total():
        outcomes[MISSING] = missing
    made = Taught(
        taught_key(name), dict(outcomes), asker.budget.spent_money, asker.budget.spent_tokens, outcomes.total(), cached
    )
    store.write_bytes(f"captions/taught/{name}.json", json.dumps(asdict(made)).encode())
    return made


def require_prices(endpoint: Endpoint) -> None:
    """Raises ConfigError for a cap of money that no price counts against."""
    if endpoint.max_money is not None and not (endpoint.price_prompt or endpoint.price_completion):
        raise ConfigError("max_money: without price_prompt and price_completion nothing counts as money; set them, or "
                          "leave max_money empty for a teacher that costs none")  # fmt: skip


def taught_key(name: str) -> str:
    """Where the table of a job stands."""
    return f"captions/taught/{name}.parquet"


def read_taught(store: Store, name: str) -> tuple[Taught, Endpoint]:
    """What came of a job, and how was asked. Raises ConfigError where there is none of that name."""
    try:
        made = Taught(**json.loads(store.read_bytes(f"captions/taught/{name}.json")))
        with store.open_parquet(made.key) as table:
            settings = json.loads(table.schema_arrow.metadata[b"curation.taught"])
    except FileNotFoundError:
        raise ConfigError(f"captions {name!r}: no {taught_key(name)} in {store.root}") from None
    return made, Endpoint.model_validate(settings["endpoint"])


def taught_records(store: Store, name: str, recipe: Recipe | None = None) -> Iterator[Record]:
    """What a job described: pictures with their captions and original texts, in the order of the shards.

    recipe   pinned; left out: the one that the job ran under, as it last ran on the dump
    raises   ConfigError where there is no job of that name
    """
    try:
        with store.open_parquet(taught_key(name)) as table:
            rows = table.read(columns=["dump", "shard", "sample_id", "caption"])
            settings = json.loads(table.schema_arrow.metadata[b"curation.taught"])
    except FileNotFoundError:
        raise ConfigError(f"captions {name!r}: no {taught_key(name)} in {store.root}") from None
    for shard in rows["shard"].unique().to_pylist():
        part = rows.filter(pc.equal(rows["shard"], shard))
        dump = part["dump"][0].as_py()
        recipe = recipe or saved_recipe(store, recipe_key(store, dump, settings["recipe"]))
        captions = dict(zip(part["sample_id"].to_pylist(), part["caption"].to_pylist(), strict=True))
        for place, image, text in _pictures(store, recipe, SeedSet(dump, recipe.name, {shard: [*captions]})):
            yield Record(place.sample_id, image, (captions[place.sample_id],), text)


def seed_records(store: Store, name: str) -> Iterator[Record]:
    """Pictures of a seed set with the web's texts, which nobody has captioned yet: the web pairs of a bootstrap.

    raises   ConfigError where there is no set of that name
    """
    seeds = read_seed_set(store, name)
    recipe = saved_recipe(store, recipe_key(store, seeds.dump, seeds.recipe))
    for place, image, text in _pictures(store, recipe, seeds):
        yield Record(place.sample_id, image, (), text)


class _Place(NamedTuple):
    dump: str
    shard: int
    sample_id: str


def _answers(
    store: Store, recipe: Recipe, seeds: SeedSet, asker: Asker, batch: bool, poll_s: float
) -> Iterator[tuple[_Place, Answer]]:
    under_way: deque[tuple[_Place, str]] = deque()

    def pictures() -> Iterator[bytes]:
        for place, picture, _ in _pictures(store, recipe, seeds):
            under_way.append((place, asker.endpoint.key(picture) if batch else ""))
            yield picture

    asker.count_known(picture for _, picture, _ in _pictures(store, recipe, seeds))
    if batch:
        found = BatchClient(asker, store, poll_s=poll_s).ask_all(pictures())
        yield from ((place, found[key]) for place, key in under_way)
        return
    for answer in asker.ask_all(pictures()):
        yield under_way.popleft()[0], answer


def _pictures(store: Store, recipe: Recipe, seeds: SeedSet) -> Iterator[tuple[_Place, bytes, str]]:
    """Place, encoded picture and original text of the samples that are still kept and not taken down."""
    for shard, ids in seeds.ids.items():
        wanted = pa.array(ids)
        try:
            for rows in read_spared(store, recipe, seeds.dump, shard, ["image", "text"]):
                chosen = rows.filter(pc.is_in(rows.column("sample_id"), value_set=wanted))
                for row in chosen.to_pylist():
                    yield _Place(seeds.dump, shard, row["sample_id"]), row["image"], row["text"]
        except BadShardError as err:
            log.warning("seed set: %s shard %05d is left out: %s", seeds.dump, shard, err)

"""The loop of ShareGPT4V: a seed set, what a teacher says of it, a student that learns it, and whether it is promoted.

A teacher's answer is paid once, within caps, and a step that is killed goes on at the request, or the checkpoint, where
it was. The DAG train_captioner runs plan, teach, learn, examine, promote as tasks.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from curation import dumps
from curation.block import recipe_key
from curation.captions import registry
from curation.captions.answers import Answer, AnswerCache
from curation.captions.batch import BatchClient
from curation.captions.endpoint import Asker, Endpoint
from curation.captions.evaluation import Judges, Protocol, evaluate_version
from curation.captions.records import Record, Records, RecordSet, write_records
from curation.captions.seed import make_seed_set
from curation.captions.training import Job, Training, run_job
from curation.errors import BadShardError, ConfigError
from curation.pipeline import saved_recipe
from curation.receipt import digest
from curation.recipe import Recipe
from curation.runner import read_kept
from curation.schema import COLUMNS
from curation.store import Store

Settings = TypeVar("Settings", bound=BaseModel)
log = logging.getLogger(__name__)
_LOG_EVERY = 1000


class Lesson(NamedTuple):
    """Records of what the teacher described, and what came of every question.

    outcomes   "captioned" and reasons of answers without a caption; "missing": pictures that the dump no longer keeps
    seed_version   digest of which samples were asked about
    """

    records: RecordSet
    outcomes: dict[str, int]
    money: float
    tokens: int
    seed_version: str


def ask_teacher(
    store: Store, recipe: Recipe, dump: str, seed_key: str, endpoint: Endpoint, *, batch: bool = False,
    poll_s: float = 60,
) -> Lesson:  # fmt: skip
    """Ask about every picture of a seed set that was not asked about before, and keep the descriptions as records.

    An answer stands in the store before the next step counts on it: a task that is killed and started again asks only
    what has no answer yet, under the same caps.

    recipe   pinned; the one that the seed set was chosen under
    batch    by the batch API: half the price, within a day; poll_s seconds between two looks at it
    raises   ConfigError for a seed set that is not there, or a teacher that described nothing; OutageError
    """
    wanted = _seed(store, seed_key)
    asker = Asker(endpoint, AnswerCache(store))
    outcomes: Counter[str] = Counter()
    told: dict[str, Answer] = {}
    if batch:
        images = (image for _, image, _ in _pictures(store, recipe, dump, wanted))
        told = BatchClient(asker, store, poll_s=poll_s).ask_all(images)
    asked = Counter[str]()

    def answers() -> Iterator[tuple[str, bytes, str, Answer]]:
        if batch:
            for sample_id, image, alt in _pictures(store, recipe, dump, wanted):
                yield sample_id, image, alt, told[endpoint.key(image)]
            return
        under_way: deque[tuple[str, bytes, str]] = deque()

        def questions() -> Iterator[bytes]:
            for one in _pictures(store, recipe, dump, wanted):
                under_way.append(one)
                yield one[1]

        for answer in asker.ask_all(questions()):
            yield *under_way.popleft(), answer

    def records() -> Iterator[Record]:
        for sample_id, image, alt, answer in answers():
            asked["all"] += 1
            outcomes["captioned" if answer.text else str(answer.reason)] += 1
            if asked["all"] % _LOG_EVERY == 0:
                log.info("teacher: %d of %d pictures, %s", asked["all"], sum(map(len, wanted.values())), dict(outcomes))
            if answer.text:
                yield Record(sample_id, image, (answer.text,), alt)

    try:
        made = write_records(store, records())
    except ConfigError:
        raise ConfigError(f"teacher {endpoint.url}#{endpoint.model} described no picture: {dict(outcomes)}") from None
    outcomes["missing"] = sum(map(len, wanted.values())) - asked["all"]
    identity = digest(dump, *(f"{shard}={','.join(sorted(ids))}" for shard, ids in sorted(wanted.items())))[:16]
    return Lesson(made, dict(outcomes), asker.budget.spent_money, asker.budget.spent_tokens, identity)


def _seed(store: Store, key: str) -> dict[int, set[str]]:
    """Sample ids by shard."""
    try:
        with store.open_parquet(key) as table:
            rows = table.read(columns=["sample_id", "shard"]).to_pylist()
    except FileNotFoundError:
        raise ConfigError(f"seed set {key}: not in {store.root}; make it: curation captions seed") from None
    found: dict[int, set[str]] = {}
    for row in rows:
        found.setdefault(row["shard"], set()).add(row["sample_id"])
    return found


def _pictures(store: Store, recipe: Recipe, dump: str, wanted: dict[int, set[str]]) -> Iterator[tuple[str, bytes, str]]:
    """Sample id, encoded picture and original text of the seed set's samples, shard by shard, in the shards' order."""
    for shard, ids in sorted(wanted.items()):
        try:
            for batch in read_kept(store, recipe, dump, shard, ["image", "text"]):
                chosen = batch.filter(pc.is_in(batch["sample_id"], value_set=pa.array(sorted(ids))))
                for row in chosen.to_pylist():
                    yield row["sample_id"], row["image"], row["text"]
        except BadShardError as err:
            log.warning("teacher: %s shard %05d is left out: %s", dump, shard, err)


def plan(store: Store, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check every setting of a loop before any work, choose the seed set, and say what the later steps go by.

    params   as the DAG train_captioner has them
    returns  plain data for `teach`, `learn`, `examine` and `promote`
    raises   ConfigError that names the field and the fix
    """
    for name in ("dump", "teacher", "held_out"):
        if not params[name]:
            raise ConfigError(f"{name}: name one")
    url, _, model = params["teacher"].partition("#")
    known = ("prompt", "max_money", "max_total_tokens", "price_prompt", "price_completion")
    endpoint = _checked(Endpoint, {"url": url, "model": model} | {name: params[name] for name in known}, "teacher")
    settings = _checked(Training, params["training"], "training")
    if settings.student.startswith(registry.PREFIX):  # the run keeps the version that is promoted now
        student = registry.resolve(store, settings.student, "captioner", "training.student")
        settings = settings.model_copy(update={"student": student})
    protocol = _checked(Protocol, params["protocol"], "protocol")
    Records(store, params["held_out"])
    key = recipe_key(store, params["dump"], params["recipe"])
    recipe = saved_recipe(store, key)
    shards = range(len(dumps.archives_of(store, params["dump"], recipe.stages.extract.archive)))
    bars = parse_bars(params["at_least"], "at_least")
    made = make_seed_set(store, recipe, params["dump"], shards, params["name"], params["count"], bars=bars)
    kept = {name: params[name] for name in ("name", "dump", "batch", "held_out", "processes", "metric", "margin")}
    return kept | {
        "recipe": key,
        "seed_set": made.key,
        "endpoint": endpoint.model_dump(mode="json"),
        "training": settings.model_dump(mode="json"),
        "protocol": protocol.model_dump(mode="json"),
    }


def teach(store: Store, planned: Mapping[str, Any]) -> dict[str, Any]:
    """ask_teacher on a plan; what came of it as plain data."""
    recipe, endpoint = saved_recipe(store, planned["recipe"]), Endpoint.model_validate(planned["endpoint"])
    lesson = ask_teacher(store, recipe, planned["dump"], planned["seed_set"], endpoint, batch=planned["batch"])
    return lesson._asdict() | {"records": lesson.records._asdict()}


def learn(store: Store, planned: Mapping[str, Any], lesson: Mapping[str, Any]) -> str:
    """Train the student on a lesson; the version's name."""
    seed_set = registry.Data(
        kind="seed_set", name=planned["seed_set"], version=lesson["seed_version"], rows=lesson["records"]["rows"]
    )
    settings = Training.model_validate(planned["training"])
    job = Job(
        store=store.root, name=planned["name"], records=lesson["records"]["key"], data=(seed_set,), settings=settings
    )
    return run_job(job, planned["processes"]).version


def examine(store: Store, planned: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Measure a version and, where that was not done on this set yet, the promoted one; the version's metrics."""
    device = planned["training"]["device"]
    judges = Judges(Records(store, planned["held_out"]), Protocol.model_validate(planned["protocol"]), device=device)
    if (before := registry.promoted(store, planned["name"])) and before != version:
        evaluate_version(store, planned["name"], before, judges, untrained=False, device=device)
    return evaluate_version(store, planned["name"], version, judges, device=device).model_dump()


def promote(store: Store, planned: Mapping[str, Any], version: str, *, by: str) -> dict[str, Any]:
    """Promote a version if it is better by the plan's margin; `promoted`, and the reason why or why not."""
    name, held_out = planned["name"], Records(store, planned["held_out"]).digest
    asked = {"metric": planned["metric"], "margin": planned["margin"], "held_out": held_out}
    if registry.promoted(store, name) == version:
        return {"promoted": True, "reason": "promoted before"}
    found = registry.judge(store, name, version, **asked)
    if not found.better:
        return {"promoted": False, "reason": found.reason}
    return {"promoted": True, "reason": registry.promote(store, name, version, by=by, **asked).reason}


def parse_bars(texts: Sequence[str], place: str) -> dict[str, float]:
    """["similarity=0.3"] -> {"similarity": 0.3}. Raises ConfigError naming the place."""
    bars = {}
    for text in texts:
        column, _, value = text.partition("=")
        try:
            bars[column] = float(value)
        except ValueError:
            raise ConfigError(f"{place} {text}: expected COLUMN=NUMBER, such as similarity=0.3") from None
        if column not in COLUMNS:
            raise ConfigError(f"{place} {text}: there is no column {column}")
    return bars


def _checked(kind: type[Settings], given: Mapping[str, Any], place: str) -> Settings:
    try:
        return kind.model_validate(given)
    except ValidationError as err:
        told = "; ".join(f"{place}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ConfigError(told) from None

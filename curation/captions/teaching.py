"""The loop of ShareGPT4V: a seed set, what a teacher says of it, a student that learns it, and whether it is promoted.

A teacher's answer is paid once, within caps, and a step that is killed goes on at the request, or the checkpoint, where
it was. The DAG train_captioner runs plan, teach, learn, examine, promote as tasks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from curation import dumps
from curation.block import recipe_key
from curation.captions import registry
from curation.captions.asking import ask_seed_set, read_seed_set, require_prices, taught_records
from curation.captions.endpoint import Asker, Endpoint
from curation.captions.evaluation import Judges, Protocol, evaluate_version
from curation.captions.records import Records, write_records
from curation.captions.seed import make_seed_set
from curation.captions.training import Job, Training, run_job
from curation.errors import ConfigError
from curation.pipeline import saved_recipe
from curation.schema import COLUMNS
from curation.store import Store

Settings = TypeVar("Settings", bound=BaseModel)
log = logging.getLogger(__name__)
_LOG_EVERY = 1000


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
    require_prices(endpoint)
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


def teach(store: Store, planned: Mapping[str, Any], *, poll_s: float = 60) -> dict[str, Any]:
    """Ask about every picture of the plan's seed set that was not asked about before, and keep what is said as records.

    poll_s   seconds between two looks at a batch
    returns  what came of it as plain data: `records` (key, digest, rows), `seed_version`, and the fields of Taught
    raises   ConfigError for a seed set that is not there, or a teacher that described nothing; OutageError
    """
    recipe, endpoint = saved_recipe(store, planned["recipe"]), Endpoint.model_validate(planned["endpoint"])
    name, seeds = planned["name"], read_seed_set(store, planned["name"])
    made = ask_seed_set(
        store, recipe, seeds, endpoint, name, batch=planned["batch"], poll_s=poll_s, told=_log_progress(len(seeds))
    )
    if not made.captions:
        raise ConfigError(f"teacher {endpoint.url}#{endpoint.model} described no picture: {made.outcomes}")
    records = write_records(store, taught_records(store, name, recipe))
    return asdict(made) | {"records": records._asdict(), "seed_version": seeds.version}


def _log_progress(pictures: int) -> Callable[[Counter[str], Asker], None]:
    def told(outcomes: Counter[str], asker: Asker) -> None:
        if outcomes.total() % _LOG_EVERY == 0:
            log.info("teacher: %d of %d pictures, %s", outcomes.total(), pictures, dict(outcomes))

    return told


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

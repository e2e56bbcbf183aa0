"""Bootstrap as BLIP does: captioner and filter learn from people, clean the web's pairs, learn from what is left.

    captions/bootstrap/NAME/RUN/plan.json               settings and data versions; RUN is their digest
    captions/bootstrap/NAME/RUN/ROUND-STEP.json         what came of a step: where it stands, the step is done
    captions/bootstrap/NAME/RUN/ROUND-clean/PART.json   captions that were kept of PART_ROWS web pairs
    captions/bootstrap/NAME/RUN/table.json              the rounds beside each other

Round 0 learns from captions by people. Each later round cleans all web pairs with the best captioner and filter so far
(CapFilt), and trains both anew, from the models that the first round began from, on what was kept and on the captions
by people. A round's models are promoted only when they are better on the held-out set by the margin; if not, the next
round cleans with the same models and other draws. decisions/0029

source   Li et al. 2022 (BLIP), section 3.3; its table 8 for beginning anew in place of going on
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.captions import matching, registry, training
from curation.captions.evaluation import Judges, Protocol, evaluate_version
from curation.captions.matching import Matching
from curation.captions.policies import DEFAULT_THRESHOLDS
from curation.captions.records import Record, Records, write_records
from curation.captions.text import clean_caption
from curation.captions.training import Training
from curation.errors import ConfigError
from curation.receipt import digest
from curation.stages.caption import Caption
from curation.store import Store

Step = Literal["clean", "captioner", "filter", "judge"]
STEPS: tuple[Step, ...] = ("clean", "captioner", "filter", "judge")
PART_ROWS = 1000  # web pairs a part: what a kill costs of a cleaning
log = logging.getLogger(__name__)


class Cleaning(BaseModel):
    """How web pairs are captioned and filtered; CapFilt's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(
        DEFAULT_THRESHOLDS["both_above_threshold"], ge=0, le=1, description="score of the filter that a text must reach"
    )
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus")
    min_length: int = Field(5, ge=1, description="tokens")
    max_length: int = Field(20, ge=2, description="tokens")
    seed: int = Field(0, ge=0, description="of round 1; each round draws from another one")
    batch_size: int = Field(32, ge=1)


class Bootstrap(BaseModel):
    """Settings of a bootstrap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="of the captioner in the registry")
    filter: str = Field("", description="name of the filter in the registry; empty: NAME-filter")
    human: str = Field(description="key of records with captions by people to learn from")
    web: str = Field(description="key of records whose alt texts are cleaned; without one, their first caption is")
    held_out: str = Field(description="key of records with captions by people that every round is measured on")
    rounds: int = Field(2, ge=1, le=5, description="of cleaning and training anew, after the one on captions by people")
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    matching: Matching = Field(default_factory=lambda: Matching.model_validate({}))
    cleaning: Cleaning = Field(default_factory=lambda: Cleaning.model_validate({}))
    protocol: Protocol = Field(default_factory=lambda: Protocol.model_validate({}))
    metric: Literal["cider", "bleu4", "rouge_l", "clip_score", "itm_auc"] = "cider"
    margin: float = Field(registry.MARGINS["cider"], ge=0, description="least gain of a captioner in the metric")
    filter_margin: float = Field(registry.MARGINS["itm_auc"], ge=0, description="least gain of a filter in ITM AUC")
    processes: int = Field(1, ge=1, description="GPUs to train the captioner on")


class Plan(BaseModel):
    """A bootstrap whose settings were checked: models pinned, data by digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Bootstrap
    data: dict[str, registry.Data]  # human, web, held_out

    @property
    def folder(self) -> str:
        """Where the run stands in the store: the same plan is the same run, with more rounds it goes on."""
        kept = self.model_dump(mode="json")
        for field in ("rounds", "processes"):
            del kept["settings"][field]
        return f"captions/bootstrap/{self.settings.name}/{digest(json.dumps(kept, sort_keys=True))[:12]}"


def plan(store: Store, given: Mapping[str, Any]) -> Plan:
    """Check every setting before any work and keep the plan in the store.

    given    fields of Bootstrap, as plain data
    raises   ConfigError naming the field and the fix: also for one model in both roles, for held-out pictures among
             those that are learnt from, and for records that are not there
    """
    try:
        settings = Bootstrap.model_validate(given)
    except ValidationError as err:
        raise ConfigError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())) from None
    settings = settings.model_copy(update={"filter": settings.filter or f"{settings.name}-filter"})
    student, matcher = settings.training.student, settings.matching.matcher
    if settings.name == settings.filter or student == matcher != "embedded":
        field, found = ("filter", settings.name) if settings.name == settings.filter else ("matching.matcher", matcher)
        raise ConfigError(f"{field}: {found!r} is the captioner: a filter must not share its weights; name another one")
    if settings.cleaning.min_length > settings.cleaning.max_length:
        raise ConfigError("cleaning.min_length: it is above cleaning.max_length; set it to that or less")
    if settings.protocol.prompt != settings.training.prompt:
        raise ConfigError(f"protocol.prompt: it is not training.prompt: set it to {settings.training.prompt!r}")
    for field, name, role in (("name", settings.name, "captioner"), ("filter", settings.filter, "matcher")):
        registry.check_name(name)
        there = {registry.read(store, name, version).role for version in registry.versions(store, name)}
        if there - {role}:
            raise ConfigError(f"{field}: {name!r} is a {there.pop()} in {store.root}; name another one")
    for field, model, name in (
        ("training.student", student, settings.name),
        ("matching.matcher", matcher, settings.filter),
    ):
        if model == f"{registry.PREFIX}{name}":
            raise ConfigError(f"{field}: {model} changes with each round; name where to begin, {model}@VERSION")
    if student.startswith(registry.PREFIX):
        student = registry.resolve(store, student, "captioner", "training.student")
    if matcher.startswith(registry.PREFIX):
        matcher = registry.resolve(store, matcher, "matcher", "matching.matcher")
    settings = settings.model_copy(
        update={
            "training": settings.training.model_copy(update={"student": student}),
            "matching": settings.matching.model_copy(update={"matcher": matcher}),
        }
    )
    data = {field: _data(store, field, getattr(settings, field)) for field in ("human", "web", "held_out")}
    measured = {sha256(record.image).digest() for record in Records(store, settings.held_out)}
    for field in ("human", "web"):
        learnt = (sha256(record.image).digest() for record in Records(store, getattr(settings, field)))
        if met := sum(one in measured for one in learnt):
            raise ConfigError(f"held_out: {met} of its pictures are in {field}, too: take them out of one of the two")
    made = Plan(settings=settings, data=data)
    store.write_bytes(f"{made.folder}/plan.json", made.model_dump_json(indent=1).encode())
    return made


def read_plan(store: Store, folder: str) -> Plan:
    """The plan of a run by its folder. Raises ConfigError where there is none."""
    try:
        return Plan.model_validate_json(store.read_bytes(f"{folder}/plan.json"))
    except FileNotFoundError:
        raise ConfigError(f"bootstrap: no {folder}/plan.json in {store.root}: plan it first") from None


def run(store: Store, planned: Plan, *, by: str) -> list[dict[str, Any]]:
    """All steps of all rounds; what a run that was killed has done is not done again. Returns the table."""
    for number in range(planned.settings.rounds + 1):
        for name in STEPS:
            step(store, planned, number, name, by=by)
    return write_table(store, planned)


def step(store: Store, planned: Plan, number: int, name: Step, *, by: str) -> dict[str, Any]:
    """One step of a round, unless it is done: what came of it, as plain data.

    number   of the round, 0 for the one on captions by people, which has nothing to clean
    raises   ConfigError for a step before its time; BadShardError, OutageError as training and captioning do
    """
    if name == "clean" and number == 0:
        return {}
    key = f"{planned.folder}/{number}-{name}.json"
    if standing := _standing(store, key):
        return standing
    log.info("bootstrap %s: round %d, %s", planned.settings.name, number, name)
    if name == "clean":
        found = _clean(store, planned, number)
    elif name == "captioner":
        found = _captioner(store, planned, number)
    elif name == "filter":
        found = _filter(store, planned, number)
    else:
        found = _judge(store, planned, number, by)
    store.write_bytes(key, json.dumps(found, indent=1, ensure_ascii=False).encode())
    return found


def write_table(store: Store, planned: Plan) -> list[dict[str, Any]]:
    """The rounds that were judged, a row each after one of the models that they began from; kept as table.json."""
    rows: list[dict[str, Any]] = []
    for number in range(planned.settings.rounds + 1):
        judged = _standing(store, f"{planned.folder}/{number}-judge.json")
        if not judged:
            break
        if not number:
            started = {role: {"metrics": judged[role]["untrained"]} for role in ("captioner", "filter")}
            rows.append({"round": "start", **started})
        cleaned = _standing(store, f"{planned.folder}/{number}-clean.json")
        rows.append({"round": number, **judged} | ({"cleaned": cleaned["counts"]} if cleaned else {}))
    store.write_bytes(f"{planned.folder}/table.json", json.dumps(rows, indent=1, ensure_ascii=False).encode())
    return rows


def _clean(store: Store, planned: Plan, number: int) -> dict[str, Any]:
    """CapFilt of every web pair, part by part, and its result beside the captions by people as records."""
    settings, cleaning = planned.settings, planned.settings.cleaning
    if number and not _standing(store, f"{planned.folder}/{number - 1}-judge.json"):
        raise ConfigError(f"round {number} comes after round {number - 1}, which is not judged yet")
    key = f"{planned.folder}/{number}-clean"
    models = _standing(store, f"{key}/models.json")
    if not models:  # chosen once: all parts are cleaned by the same ones
        models = {
            "captioner": _best(store, settings.name) or settings.training.student,
            "matcher": _best(store, settings.filter) or settings.matching.matcher,
        }
        store.write_bytes(f"{key}/models.json", json.dumps(models).encode())
    stage = Caption(
        captioner=_place(store, models["captioner"]),
        matcher=_place(store, models["matcher"]),
        policy="both_above_threshold",
        **cleaning.model_dump(exclude={"seed"}),
        prompt=settings.training.prompt,
        seed=cleaning.seed + number - 1,
        device=settings.training.device,
    )
    web, human = Records(store, settings.web), Records(store, settings.human)
    counts: Counter[str] = Counter()

    def kept() -> Iterator[Record]:
        for start in range(0, len(web), PART_ROWS):
            rows = [web[at] for at in range(start, min(start + PART_ROWS, len(web)))]
            part = f"{key}/{start // PART_ROWS:06d}.json"
            if not (found := _standing(store, part)):
                found = _clean_part(stage, rows)
                store.write_bytes(part, json.dumps(found, ensure_ascii=False).encode())
            counts.update(found["counts"])
            for record, captions in zip(rows, found["captions"], strict=True):
                if captions:
                    yield record._replace(captions=tuple(captions))
        yield from human

    made = write_records(store, kept())
    told = {
        "web": len(web),
        "web_kept": counts["text"],
        "synthetic_kept": counts["synthetic"],
        "faults": counts["fault"],
    }
    return {"records": made.key, "version": made.digest, "rows": made.rows, "models": models, "counts": told}


def _clean_part(stage: Caption, rows: list[Record]) -> dict[str, Any]:
    texts = [clean_caption(record.alt or next(iter(record.captions), "")) for record in rows]
    columns = {"sample_id": [record.sample_id for record in rows], "image": [record.image for record in rows]}
    batch = pa.RecordBatch.from_pydict(
        columns | {"text": texts, "partition": ["en"] * len(rows)}, schema=stage.consumes
    )
    (answer,) = stage(iter([batch]), Counter())
    captions = [kept or [] for kept in answer["captions"].to_pylist()]
    counts = Counter(source for sources in answer["caption_sources"].to_pylist() for source in sources or ())
    counts["fault"] = len(answer) - answer["fault"].null_count
    return {"captions": captions, "counts": counts}


def _captioner(store: Store, planned: Plan, number: int) -> dict[str, Any]:
    settings = planned.settings
    records, data = _lesson(store, planned, number)
    job = training.Job(store=store.root, name=settings.name, records=records, data=data, settings=settings.training)
    return {"version": training.run_job(job, settings.processes).version}


def _filter(store: Store, planned: Plan, number: int) -> dict[str, Any]:
    settings = planned.settings
    captioner = _done(store, planned, number, "captioner")["version"]
    records, data = _lesson(store, planned, number)
    job = matching.Job(store=store.root, name=settings.filter, records=records, data=data, settings=settings.matching)
    made = matching.train_version(job, captioner=f"{registry.PREFIX}{settings.name}@{captioner}")
    return {"version": made.version}


def _judge(store: Store, planned: Plan, number: int, by: str) -> dict[str, Any]:
    """Measure both models of a round and the promoted ones, and promote what is better."""
    settings = planned.settings
    held_out, device = Records(store, settings.held_out), settings.training.device
    judges = Judges(held_out, settings.protocol, device=device)

    def captioner(version: str) -> registry.Evaluation:
        return evaluate_version(store, settings.name, version, judges, device=device)

    def matcher(version: str) -> registry.Evaluation:
        return matching.evaluate_version(store, settings.filter, version, held_out, device=settings.matching.device)

    roles: tuple[tuple[Step, str, str, float, Callable[[str], registry.Evaluation]], ...] = (
        ("captioner", settings.name, settings.metric, settings.margin, captioner),
        ("filter", settings.filter, "itm_auc", settings.filter_margin, matcher),
    )
    found: dict[str, Any] = {}
    for role, name, metric, margin, measure in roles:
        version = _done(store, planned, number, role)["version"]
        if (before := registry.promoted(store, name)) and before != version:
            measure(before)
        measured = measure(version)
        asked: dict[str, Any] = {"metric": metric, "margin": margin, "held_out": held_out.digest}
        if registry.promoted(store, name) == version:  # a kill came between promotion and result
            better, reason = True, registry.history(store, name)[-1].reason
        else:
            better, reason = registry.judge(store, name, version, **asked)
            if better:
                reason = registry.promote(store, name, version, by=by, note=f"round {number}", **asked).reason
        found[role] = {
            "name": name,
            "version": version,
            "metrics": measured.metrics,
            "untrained": measured.beside.get(registry.UNTRAINED, {}),
            "promoted": better,
            "reason": reason,
        }
    return found


def _lesson(store: Store, planned: Plan, number: int) -> tuple[str, tuple[registry.Data, ...]]:
    """Key of the records that a round learns from, and where they came from."""
    if number == 0:
        return planned.settings.human, ()
    cleaned = _done(store, planned, number, "clean")
    key = f"{planned.folder}/{number}-clean.json"  # tells by which captioner and filter
    origin = registry.Data(kind="cleaned", name=key, version=cleaned["version"], rows=cleaned["rows"])
    return cleaned["records"], (origin, planned.data["web"], planned.data["human"])


def _done(store: Store, planned: Plan, number: int, name: Step) -> dict[str, Any]:
    if found := _standing(store, f"{planned.folder}/{number}-{name}.json"):
        return found
    raise ConfigError(f"round {number}: its step {name} is not done yet")


def _standing(store: Store, key: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(key))
    except FileNotFoundError:
        return {}
    return found


def _best(store: Store, name: str) -> str:
    version = registry.promoted(store, name)
    return f"{registry.PREFIX}{name}@{version}" if version else ""


def _place(store: Store, model: str) -> str:
    return str(registry.local_folder(store, model)) if model.startswith(registry.PREFIX) else model


def _data(store: Store, field: str, key: str) -> registry.Data:
    try:
        records = Records(store, key)
    except ConfigError as err:
        raise ConfigError(f"{field}: {err}; make it: curation captions records") from None
    return registry.Data(kind="records", name=key, version=records.digest, rows=len(records))

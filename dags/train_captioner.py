"""Teach a student to caption: a seed set, a teacher's descriptions of it, training, measurement, promotion.

**By hand**: name a dump that was curated, a teacher's endpoint, a held-out set (`curation captions records`), a model.
Recipes with `captioner: registry:NAME` use what is promoted from their next run on.

Reads: the dump's finished shards under the recipe that last ran on it; pictures of the seed set go to the teacher,
whose key is in `CURATION_ENDPOINT_KEY` of the worker.

Writes: the seed set, each answer of the teacher, records, a version of the model with its metrics; the promotion, or in
the log why there is none.

Rerun: safe. Answers are never paid for twice, within the same caps; a training that was killed goes on from its last
checkpoint on the worker (or where CURATION_CACHE is shared), one that is done is not done again.

Cost: the teacher's price, at most `max_money` and `max_total_tokens`; GPU hours for the student.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task
from curation_dags import DEFAULT_ARGS, MODELS, made, store
from curation_notices import watched

TEXTS = {
    "name": "Name of the model in the registry.",
    "dump": "Dump whose pictures are described.",
    "recipe": "Which recipe of the dump; empty: the one that ran on it.",
    "count": "Pictures in the seed set.",
    "at_least": "Quality bars of the seed set, such as similarity=0.3, one a line; the first one ranks.",
    "teacher": "Base URL of an OpenAI-compatible endpoint, a hash sign, and its model.",
    "prompt": "What the teacher is asked: en or zh, a detailed description; or a file on the workers.",
    "batch": "Use the endpoint's batch API: half the price, within a day.",
    "max_money": "Most that the teacher may cost, in the unit of the two prices; empty for one without a price.",
    "max_total_tokens": "Most tokens that the teacher may read and write.",
    "price_prompt": "Price of a million tokens that the teacher reads.",
    "price_completion": "Price of a million tokens that the teacher writes.",
    "held_out": "Key of the records that versions are measured on, with captions by people.",
    "training": "Settings of the training: student, epochs, batch_size, micro_batch, learning_rate, lora, ...",
    "protocol": "How captions are drawn for the measurement and who judges: prompt, max_length, clip, matcher, ...",
    "processes": "GPUs of the worker to train on.",
    "metric": "What versions are compared by.",
    "margin": "Least gain over the promoted version, or over the untrained student.",
}
MONEY: dict[str, Any] = {"type": "number", "minimum": 0}
FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$", "default": "student"},
    "dump": {"default": None, "type": ["null", "string"], "examples": ["CC-MAIN-2026-05"]},
    "recipe": {"default": None, "type": ["null", "string"]},
    "count": {"default": 100_000, "type": "integer", "minimum": 1},
    "at_least": {"default": ["similarity=0.3"], "type": "array", "items": {"type": "string"}},
    "teacher": {"default": None, "type": ["null", "string"], "examples": ["http://127.0.0.1:8000/v1#qwen"]},
    "prompt": {"default": "en", "type": "string"},
    "batch": {"default": False, "type": "boolean"},
    "max_money": {"default": 100, **MONEY, "type": ["null", "number"]},
    "max_total_tokens": {"default": 500_000_000, "type": "integer", "minimum": 1},
    "price_prompt": {"default": 0, **MONEY},
    "price_completion": {"default": 0, **MONEY},
    "held_out": {"default": None, "type": ["null", "string"], "examples": ["captions/records/0123456789abcdef.arrow"]},
    "training": {"default": {}, "type": "object"},
    "protocol": {"default": {}, "type": "object"},
    "processes": {"default": 1, "type": "integer", "minimum": 1},
    "metric": {"default": "cider", "enum": ["cider", "bleu4", "rouge_l", "clip_score", "itm_auc"]},
    "margin": {"default": 0.02, **MONEY},
}


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={
        name: Param(title=name.replace("_", " ").capitalize(), description=TEXTS[name], **schema)
        for name, schema in FIELDS.items()
    },
    doc_md=__doc__,
    tags=["models"],
    default_args=DEFAULT_ARGS,
    **watched(hours=24 * 7),
)
def train_captioner() -> None:
    """Wire seed >> teach >> train >> evaluate >> promote."""

    @task(execution_timeout=timedelta(hours=12))
    def seed(params: dict[str, Any]) -> dict[str, Any]:
        from curation.captions.teaching import plan

        return plan(store(), params)

    @task(execution_timeout=timedelta(days=2))
    def teach(plan: dict[str, Any]) -> dict[str, Any]:
        from curation.captions.teaching import teach as ask

        lesson = ask(store(), plan)
        logging.getLogger(__name__).info("teacher: %s", lesson)
        return lesson

    @task(execution_timeout=timedelta(days=5), queue="gpu")
    def train(plan: dict[str, Any], lesson: dict[str, Any]) -> str:
        from curation.captions.teaching import learn

        return learn(store(), plan, lesson)

    @task(execution_timeout=timedelta(hours=12), queue="gpu")
    def evaluate(plan: dict[str, Any], version: str) -> str:
        from curation.captions.teaching import examine

        logging.getLogger(__name__).info("metrics: %s", examine(store(), plan, version))
        return version

    @task(execution_timeout=timedelta(hours=1), outlets=[MODELS])
    def promote(plan: dict[str, Any], version: str) -> dict[str, Any]:
        from curation.captions.teaching import promote as decide

        found = decide(store(), plan, version, by="train_captioner")
        logging.getLogger(__name__).info("%s@%s: %s", plan["name"], version, found["reason"])
        made(MODELS, name=plan["name"], version=version, promoted=found["promoted"])
        return found

    planned = seed()
    promote(planned, evaluate(planned, train(planned, teach(planned))))


train_captioner()

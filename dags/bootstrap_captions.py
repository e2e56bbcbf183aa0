"""Improve captioner and filter on the web's own pairs, round by round: BLIP's bootstrapping.

**By hand**: name records with captions by people, records of web pairs (`curation captions records --seed-set`), and a
held-out set with captions by people. Recipes with `captioner: registry:NAME` and `matcher: registry:NAME-filter` use
what is promoted from their next run on; `curation models rollback NAME` goes back.

Reads: the three sets of records; the models that both begin from.

Writes: below captions/bootstrap/NAME/ what each step came to and the table of rounds; records of the kept pairs;
versions of both models with their metrics; promotions of those that are better by the margin.

Rerun: safe. A step that is done is not done again; a cleaning that was killed goes on at the thousand pairs where it
was, a training from its last checkpoint on the worker (or where CURATION_CACHE is shared). The same settings with more
rounds go on after the last one.

Cost: GPU hours: a round captions all web pairs and trains both models.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task, task_group
from airflow.sdk.exceptions import AirflowSkipException
from curation_dags import DEFAULT_ARGS, MODELS, made, store
from curation_notices import watched

MOST_ROUNDS = 5
TEXTS = {
    "name": "Name of the captioner in the registry.",
    "filter": "Name of the filter in the registry; empty: the captioner's with -filter.",
    "human": "Key of the records with captions by people to learn from.",
    "web": "Key of the records whose alt texts are cleaned.",
    "held_out": "Key of the records that every round is measured on, with captions by people.",
    "rounds": "Rounds of cleaning and training anew, after the one on captions by people.",
    "training": "Settings of the captioner's training: student, epochs, batch_size, learning_rate, lora, ...",
    "matching": "Settings of the filter's training: matcher, epochs, micro_batch, learning_rate, ...",
    "cleaning": "How web pairs are captioned and filtered: threshold, top_p, min_length, max_length, seed, batch_size.",
    "protocol": "How captions are drawn for the measurement and who judges: max_length, clip, matcher, ...",
    "metric": "What captioners are compared by; filters are by ITM AUC.",
    "margin": "Least gain of a captioner over the promoted one, or over the one that training began from.",
    "filter_margin": "Least gain of a filter in ITM AUC.",
    "processes": "GPUs of the worker to train the captioner on.",
}
KEY: dict[str, Any] = {
    "default": None, "type": ["null", "string"], "examples": ["captions/records/0123456789abcdef.arrow"]
}  # fmt: skip
SETTINGS: dict[str, Any] = {"default": {}, "type": "object"}
FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$", "default": "bootstrapped"},
    "filter": {"default": None, "type": ["null", "string"], "pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"},
    "human": KEY,
    "web": KEY,
    "held_out": KEY,
    "rounds": {"default": 2, "type": "integer", "minimum": 1, "maximum": MOST_ROUNDS},
    "training": SETTINGS,
    "matching": SETTINGS,
    "cleaning": SETTINGS,
    "protocol": SETTINGS,
    "metric": {"default": "cider", "enum": ["cider", "bleu4", "rouge_l", "clip_score", "itm_auc"]},
    "margin": {"default": 0.02, "type": "number", "minimum": 0},
    "filter_margin": {"default": 0.005, "type": "number", "minimum": 0},
    "processes": {"default": 1, "type": "integer", "minimum": 1},
}


def done(run: str, number: int, name: Any) -> dict[str, Any]:
    """One step of a round of the run that stands in that folder of the store."""
    from curation.captions.bootstrap import read_plan, step

    found = step(store(), read_plan(store(), run), number, name, by="bootstrap_captions")
    logging.getLogger(__name__).info("round %d, %s: %s", number, name, found)
    return found


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
    **watched(hours=24 * 14),
)
def bootstrap_captions() -> None:
    """Wire plan >> rounds of clean >> captioner >> filter >> judge >> table; rounds not asked for are skipped."""

    @task(execution_timeout=timedelta(hours=4))
    def plan(params: dict[str, Any]) -> str:
        from curation.captions.bootstrap import plan as check

        return check(store(), params | {"filter": params["filter"] or ""}).folder

    @task(execution_timeout=timedelta(days=5), queue="gpu")
    def clean(run: str, number: int, params: dict[str, Any]) -> None:
        if number > params["rounds"]:
            raise AirflowSkipException(f"{params['rounds']} rounds were asked for")
        done(run, number, "clean")

    @task(execution_timeout=timedelta(days=5), queue="gpu")
    def captioner(run: str, number: int) -> None:
        done(run, number, "captioner")

    @task(execution_timeout=timedelta(days=5), queue="gpu")
    def matcher(run: str, number: int) -> None:
        done(run, number, "filter")

    @task(execution_timeout=timedelta(hours=12), queue="gpu", outlets=[MODELS])
    def judge(run: str, number: int) -> None:
        found = done(run, number, "judge")
        told = {role: {key: one[key] for key in ("name", "version", "promoted")} for role, one in found.items()}
        made(MODELS, **told["captioner"], filter=told["filter"])

    @task(execution_timeout=timedelta(hours=1), trigger_rule="none_failed")
    def table(run: str) -> None:
        from curation.captions.bootstrap import read_plan, write_table

        for row in write_table(store(), read_plan(store(), run)):
            logging.getLogger(__name__).info("%s", row)

    run = plan()
    before: Any = run
    last = table(run)
    for number in range(MOST_ROUNDS + 1):

        @task_group(group_id=f"round_{number}")
        def in_turn(number: int, before: Any) -> Any:
            steps = [captioner(run, number), matcher(run, number), judge(run, number)]
            if number:
                steps.insert(0, clean(run, number))
            for one in steps:
                before >> one
                before = one
            return before

        before = in_turn(number, before)
        before >> last


bootstrap_captions()

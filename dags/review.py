"""Have people look at a version before it is released: draw a sample, wait for their ratings, ask for the last word.

**By hand**: name the recipe. **By itself**, once unpaused: for each version that is published and held.

Reads: the version's tables and pictures, and the ratings that people give on the page *Review* or by `curation review`.

Writes: a review set and its report beside the version; after a yes under *Required Actions* the approval, and `latest`.

Rerun: safe. The same sample is drawn, ratings stay, an approval that stands is kept.

Cost: people's time; a task looks every ten minutes whether they are done, and holds no worker between.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.exceptions import AirflowSkipException
from curation_dags import DEFAULT_ARGS, VERSIONS, cause, store
from curation_notices import held, watched

TEXTS = {
    "recipe": "Which dataset; empty: that of the version that started the run.",
    "version": "Which version; empty: the newest.",
    "size": "How many samples are drawn.",
    "raters": "How many people rate each sample.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "recipe": {"default": None, "type": ["null", "string"], "examples": ["laion-5b-en"]},
    "version": {"default": None, "type": ["null", "string"]},
    "size": {"default": 100, "type": "integer", "minimum": 1},
    "raters": {"default": 2, "type": "integer", "minimum": 1},
}
BODY = """{% set found = ti.xcom_pull('draw') %}{% set told = ti.xcom_pull('rated') %}
{{ found['recipe'] }} {{ found['version'] }}: {{ told }}"""


@dag(
    schedule=[VERSIONS],
    catchup=False,
    is_paused_upon_creation=True,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=24 * 14),
)
def review() -> None:
    """Wire draw >> rated >> approve >> release."""

    @task(execution_timeout=timedelta(hours=1))
    def draw(params: dict[str, Any]) -> dict[str, str]:
        from curation.errors import ConfigError
        from curation.publish.parts import manifest_key
        from curation.publish.release import held_back
        from curation.publish.verify import newest
        from curation.review.sets import Sampling, create_set

        began = cause(VERSIONS)
        recipe = params["recipe"] or began.get("recipe")
        if not recipe:
            raise ConfigError("recipe: name one")
        version = params["version"] or began.get("version") or newest(store(), recipe)
        if began and not held_back(store(), manifest_key(recipe, version)):
            raise AirflowSkipException(f"{recipe} {version} is released: nobody has to look at it")
        drawn = create_set(store(), recipe, version, Sampling(n=params["size"], raters=params["raters"]))
        return {"recipe": drawn.recipe, "version": drawn.version, "set": drawn.name}

    @task.sensor(mode="reschedule", poke_interval=600, timeout=30 * 86400, execution_timeout=timedelta(minutes=30))
    def rated(drawn: dict[str, str]) -> PokeReturnValue:
        from curation.review.ratings import progress
        from curation.review.report import summary, write_report
        from curation.review.sets import read_set

        found = read_set(store(), drawn["recipe"], drawn["version"], drawn["set"])
        state = progress(store(), found)
        logging.getLogger(__name__).info("%(complete)d of %(items)d samples have all their ratings", state)
        if state["complete"] < state["items"]:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=summary(write_report(store(), found)))

    approve = ApprovalOperator(task_id="approve", subject="Release this version?", body=BODY)

    @task(execution_timeout=timedelta(hours=1))
    def release(drawn: dict[str, str], answer: dict[str, Any]) -> list[str]:
        from curation.publish.release import approve as note_approval
        from curation.publish.version import move_latest

        by = (answer.get("responded_by_user") or {}).get("name") or "whoever answered in Airflow"
        note_approval(store(), drawn["recipe"], drawn["version"], by, note="review")
        reasons = list(move_latest(store(), drawn["recipe"], drawn["version"]))
        held(f"{drawn['recipe']}/{drawn['version']}", reasons)
        return reasons

    drawn = draw()
    rated(drawn) >> approve >> release(drawn, approve.output)


review()

"""Every night: look for new dumps, then work through what is unfinished of the newest, within a budget.

Reads: Common Crawl's list of dumps (when it does not answer, the list of the night before serves), the list of the
newest dumps' archives, and which shards are done.

Writes: both lists; then what `curate_block` writes, for the first unfinished blocks.

Rerun: safe. A block that is done is not chosen again; one that failed is taken up where it stopped.

Cost: `blocks` runs of `curate_block`, two at a time. Paused as it comes: unpause it when store and workers are there.

What each night takes is set by `CURATION_PARAMS={"nightly_refresh": {"recipe": "laion-400m", "blocks": 10}}` in the
environment of all of Airflow; a run by hand asks in its form.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, task
from curation_dags import DEFAULT_ARGS, RECIPES, block_runs, configured, store
from curation_notices import watched

TEXTS = {
    "recipe": "Which dataset is kept fresh.",
    "overrides": "Settings to change in the recipe, by dotted name.",
    "dumps": "How many of the newest dumps are worked on, the newest first.",
    "blocks": "Runs of curate_block that a night may start: its budget.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "recipe": {"default": "laion-5b-en", "type": "string", "enum": RECIPES},
    "overrides": {"default": {}, "type": "object"},
    "dumps": {"default": 1, "type": "integer", "minimum": 1},
    "blocks": {"default": 2, "type": "integer", "minimum": 1},
}


@dag(
    schedule="0 2 * * *",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        name: Param(title=name.title(), description=TEXTS[name], **schema)
        for name, schema in configured("nightly_refresh", FIELDS).items()
    },
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=24),
)
def nightly_refresh() -> None:
    """Wire refresh >> plan >> a triggered run of curate_block for each chosen block."""

    @task(execution_timeout=timedelta(minutes=10))
    def refresh() -> list[str]:
        import logging

        from curation.dumps import known_dumps, refresh_dumps
        from curation.errors import CurationError

        try:
            new = refresh_dumps(store())
        except CurationError as error:
            logging.getLogger(__name__).warning("the list of dumps stays as it was: %s", error)
            new = []
        logging.getLogger(__name__).info("new dumps: %s", ", ".join(new) or "none")
        return known_dumps(store())[-100:]

    @task(execution_timeout=timedelta(hours=1))
    def plan(params: dict[str, Any], dumps: list[str]) -> list[dict[str, Any]]:
        from curation import block
        from curation.dumps import register
        from curation.pipeline import pin
        from curation.recipe import load_recipe

        recipe = pin(load_recipe(params["recipe"], params["overrides"]), store())
        shared = {"source": None, "recipe": params["recipe"], "overrides": params["overrides"]}
        runs: list[dict[str, Any]] = []
        for dump in [name for name in reversed(dumps) if name.startswith("CC-MAIN-")][: params["dumps"]]:
            register(store(), dump, dump, recipe.stages.extract.archive)
            runs += block_runs(dump, block.unfinished(store(), recipe, dump), shared)
        return runs[: params["blocks"]]

    TriggerDagRunOperator.partial(
        task_id="block",
        trigger_dag_id="curate_block",
        reset_dag_run=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        execution_timeout=timedelta(days=3),
        max_active_tis_per_dagrun=2,
        map_index_template="{{ task.trigger_run_id }}",
    ).expand_kwargs(plan(dumps=refresh()))


nightly_refresh()

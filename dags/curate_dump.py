"""Curate whole dumps: one run of `curate_block` for each thousand of a dump's archives, a few at a time.

**One dump**: trigger with the partition key `CC-MAIN-2026-05`, or with the parameter `dump`, which also takes a name of
your own for archives of your own.

**Many dumps**: *Trigger*, *Backfill*, over a range of dates (those of the weeks that dumps are named after; parameters
go with it when *Override parameters on existing runs* is ticked), or

    airflow backfill create --dag-id curate_dump --from-date 2026-01-01 --to-date 2026-06-30 \\
        --max-active-runs 1 --dag-run-conf '{"recipe": "laion-5b-en"}'

gives one run for each dump of the range, named after it, and by it one run of `curate_block` for each block. A backfill
has its own bound on dumps at a time, ten unless it is given; dumps that are yet to come are left out. Another backfill
over the same dates passes over dumps that ran, unless `--reprocess-behavior completed` (or `failed`) is given. Nothing
runs by itself.

Reads: the list of the dump's archives; see `curate_block` for the rest.

Writes: that list, and what `curate_block` writes.

Rerun: safe. The run of a block is named after dump, block and parameters: with the same ones it is cleared, and passes
what is done in seconds; with others it is a new run, which makes only what the change touches.

Cost: a dump of 90,000 WAT files is 90 blocks; two run at a time.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, get_current_context, task
from curation_dags import DEFAULT_ARGS, RECIPES, block_runs, store
from curation_dumps import DumpTimetable
from curation_notices import watched

TEXTS = {
    "dump": "Name of the crawl; empty: the run's partition key, one of Common Crawl's.",
    "source": "Folder, glob or s3:// prefix of archives, or .yaml of annotated sets; empty: Common Crawl, by its name.",
    "blocks": "Numbers and ranges of the dump's thousands of archives; empty: all.",
    "recipe": "Which dataset is made: stages, models and thresholds.",
    "overrides": 'Settings to change in the recipe, by dotted name: {"gates.too_small.at_least": 128}.',
}
FIELDS = {
    "dump": {"default": None, "type": ["null", "string"], "pattern": r"^[A-Za-z0-9][\w.-]*$"},
    "source": {
        "default": None,
        "type": ["null", "string"],
        "examples": ["/data/crawl/*.warc.gz", "s3://bucket/crawl/"],
    },
    "blocks": {"default": None, "type": ["null", "string"], "pattern": r"^[\d\s,-]*$", "examples": ["0-3,7"]},
    "recipe": {"default": "laion-5b-en", "type": "string", "enum": RECIPES},
    "overrides": {"default": {}, "type": "object"},
}


@dag(
    schedule=DumpTimetable(),
    catchup=False,
    max_active_runs=1,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=720),
)
def curate_dump() -> None:
    """Wire plan >> a triggered run of curate_block for each block."""

    @task(execution_timeout=timedelta(minutes=30))
    def plan(params: dict[str, Any]) -> list[dict[str, Any]]:
        from curation import block, dumps
        from curation.errors import ConfigError
        from curation.recipe import load_recipe

        dump = params["dump"] or get_current_context()["dag_run"].partition_key
        if not dump:
            raise ConfigError("dump: name one, by the partition key or by the parameter")
        recipe = load_recipe(params["recipe"], params["overrides"])
        n_shards = dumps.register(store(), dump, params["source"] or dump, recipe.stages.extract.archive)
        shared = {name: params[name] for name in ("source", "recipe", "overrides")}
        return block_runs(dump, block.parse_blocks(params["blocks"], n_shards), shared)

    TriggerDagRunOperator.partial(
        task_id="block",
        trigger_dag_id="curate_block",
        reset_dag_run=True,
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        execution_timeout=timedelta(days=14),
        max_active_tis_per_dagrun=2,
        map_index_template="{{ task.trigger_run_id }}",
    ).expand_kwargs(plan())


curate_dump()

"""Make a dataset version from one block of a dump: up to 1,000 archives, each a shard that goes on alone.

Reads: the archives of the dump (WAT or WARC files of a folder, a glob, s3:// or Common Crawl), the pages' pictures
from the web, the evaluation sets and the dedup index in the store.

Writes: one table per shard and stage, one generation of the dedup index and one dataset version, all in the store
that the environment variable `CURATION_STORE` names (default `var/store`).

Rerun: safe. A table that stands there with the right fingerprint is not made again, so clearing a failed task, or
triggering the block once more, does what is missing and passes finished shards in seconds. A shard that fails does
not stop its siblings before the next barrier, `match_pairs` after extract or `match` after score; nothing is matched or
published until every shard is there. To go on without a shard that can't be healed, trigger again with `shards` that
leave it out.

Cost: per shard, minutes of one core for extract, minutes to hours of network for download, minutes of a GPU for score
and caption. Tasks of score and caption go to the queue `gpu`; download takes a slot of the pool `download`, match the
one slot of the pool `index`. Only outages, timeouts and lost workers are retried; a bad shard or a wrong setting
fails at once and says why.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowSkipException
from curation_dags import BLOCKS, DEFAULT_ARGS, RECIPES, VERSIONS, made, store
from curation_notices import held, watched

LABEL = "{{ '%05d' % task.op_kwargs.shard }}"
MAPPED = {"map_index_template": LABEL, "trigger_rule": "none_failed"}  # go on where the recipe leaves out a stage
TEXTS = {
    "dump": "Name of the crawl; with an empty source, one of Common Crawl's.",
    "source": "Folder, glob or s3:// prefix of archives, or .yaml of annotated sets; empty: Common Crawl, by its name.",
    "block": "Which thousand of shards, from 0.",
    "shards": "Numbers and ranges within the dump; empty: the whole block.",
    "recipe": "Which dataset is made: stages, models and thresholds.",
    "overrides": 'Settings to change in the recipe, by dotted name: {"gates.too_small.at_least": 128}.',
}
FIELDS = {
    "dump": {"type": "string", "pattern": r"^[A-Za-z0-9][\w.-]*$", "examples": ["CC-MAIN-2026-05"]},
    "source": {
        "default": None,
        "type": ["null", "string"],
        "examples": ["/data/crawl/*.warc.gz", "s3://bucket/crawl/"],
    },
    "block": {"default": 0, "type": "integer", "minimum": 0},
    "shards": {"default": None, "type": ["null", "string"], "pattern": r"^[\d\s,-]*$", "examples": ["0-3,7"]},
    "recipe": {"default": "laion-5b-en", "type": "string", "enum": RECIPES},
    "overrides": {"default": {}, "type": "object"},
}


def pinned(recipe: str) -> Any:
    """Load the recipe that the run has pinned in the store."""
    from curation.pipeline import saved_recipe

    return saved_recipe(store(), recipe)


def stage(name: str, hours: float, **settings: Any) -> Callable[..., Any]:
    """Task that runs one stage on one shard and returns its counts."""

    @task(task_id=name, execution_timeout=timedelta(hours=hours), **MAPPED, **settings)
    def run(shard: int, block: dict[str, str]) -> dict[str, Any]:
        from curation.runner import run_stage

        recipe = pinned(block["recipe"])
        if name not in recipe.stage_names:
            raise AirflowSkipException(f"recipe {recipe.name} leaves out stage {name}")
        receipt = run_stage(store(), recipe, block["dump"], shard, name)
        return receipt.model_dump(include={"rows", "measured", "dropped", "faults", "seconds", "peak_memory_bytes"})

    return run


@dag(
    schedule=None,
    catchup=False,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=72),
)
def curate_block() -> None:
    """Wire plan >> extract >> match_pairs >> (pairs .. score) >> match >> (dedup .. export) >> select >> publish."""

    @task(execution_timeout=timedelta(minutes=30))
    def plan(params: dict[str, Any]) -> list[int]:
        from curation import block
        from curation.recipe import load_recipe

        recipe = load_recipe(params["recipe"], params["overrides"])
        wanted, source = block.parse_shards(params["shards"]), params["source"] or ""
        planned = block.plan(store(), recipe, params["dump"], source, block=params["block"], shards=wanted)
        get_current_context()["ti"].xcom_push("block", {"dump": planned.dump, "recipe": planned.recipe_key})
        return planned.shards

    @task(pool="index", execution_timeout=timedelta(hours=12))
    def match_pairs(shards: list[int], block: dict[str, str]) -> dict[str, str]:
        from curation.generations import match_block

        recipe = pinned(block["recipe"])
        if "pairs" in recipe.stage_names:
            match_block(store(), recipe, block["dump"], shards, "pairs")
        return block

    @task(pool="index", execution_timeout=timedelta(hours=12), trigger_rule="none_failed")
    def match(shards: list[int], block: dict[str, str]) -> dict[str, Any]:
        from curation.generations import match_block
        from curation.publish.version import plan_version

        recipe = pinned(block["recipe"])
        if "dedup" in recipe.stage_names:
            match_block(store(), recipe, block["dump"], shards)
        return {**block, "version": plan_version(store(), recipe, block["dump"], shards)}

    @task(execution_timeout=timedelta(hours=6), **MAPPED)
    def export(shard: int, block: dict[str, str]) -> dict[str, Any]:
        from curation.publish.version import export_shard, weigh_shard

        recipe = pinned(block["recipe"])
        if recipe.publish.selects:  # which samples stay is known once all shards are here
            return {"weighed": weigh_shard(store(), recipe, block["version"], block["dump"], shard)}
        return dict(export_shard(store(), recipe, block["version"], block["dump"], shard))

    @task(execution_timeout=timedelta(hours=6))
    def select(block: dict[str, str]) -> dict[str, Any]:
        from curation.publish.version import select_version

        recipe = pinned(block["recipe"])
        if not recipe.publish.selects:
            raise AirflowSkipException(f"recipe {recipe.name} has no caps, balance or splits")
        return dict(select_version(store(), recipe, block["version"]))

    @task(execution_timeout=timedelta(hours=6), map_index_template=LABEL)
    def export_selected(shard: int, block: dict[str, str]) -> dict[str, Any]:
        from curation.publish.version import export_shard

        return dict(export_shard(store(), pinned(block["recipe"]), block["version"], block["dump"], shard))

    @task(execution_timeout=timedelta(hours=6), trigger_rule="none_failed", outlets=[BLOCKS, VERSIONS])
    def publish(shards: list[int], block: dict[str, str]) -> str:
        from curation.publish.release import held_back
        from curation.publish.version import finish_version

        manifest = str(finish_version(store(), pinned(block["recipe"]), block["version"], block["dump"], shards))
        recipe = pinned(block["recipe"]).name
        held(f"{recipe}/{block['version']}", held_back(store(), manifest))
        made(BLOCKS, recipe=recipe, dump=block["dump"])
        made(VERSIONS, recipe=recipe, version=block["version"])
        return manifest

    # by name: the label reads the shard from the keyword
    @task_group
    def measure(shard: int, block: dict[str, str]) -> None:
        pairs = stage("pairs", hours=1)(shard=shard, block=block)
        download = stage("download", hours=24, pool="download")(shard=shard, block=block)
        pairs >> download >> stage("score", hours=12, queue="gpu")(shard=shard, block=block)

    @task_group
    def judge(shard: int, block: dict[str, str]) -> None:
        dedup = stage("dedup", hours=2)(shard=shard, block=block)
        safety = stage("safety", hours=4)(shard=shard, block=block)
        caption = stage("caption", hours=24, queue="gpu")(shard=shard, block=block)
        leakage = stage("leakage", hours=4)(shard=shard, block=block)
        dedup >> safety >> caption >> leakage >> export(shard=shard, block=block)

    shards = plan()
    block = shards["block"]
    extracted = stage("extract", hours=4).partial(block=block).expand(shard=shards)
    paired = match_pairs(shards, block)
    measured = measure.partial(block=paired).expand(shard=shards)
    matched = match(shards, block)
    judged = judge.partial(block=matched).expand(shard=shards)
    extracted >> paired
    selected = select(matched)
    exported = export_selected.partial(block=matched).expand(shard=shards)
    measured >> matched >> judged >> selected >> exported >> publish(shards, matched)


curate_block()

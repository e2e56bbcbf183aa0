"""Publish one dataset version from the finished shards of several dumps.

**By hand**: name the recipe and the dumps. **By itself**, once unpaused: whenever `curate_block` has finished a block,
over all dumps that its recipe ever ran on; of blocks that finish while a run is under way the newest counts.

Reads: the tables of all finished shards under the recipe as it last ran on the block's dump, or on the last that is
named. A dump that ran under other settings is left out, or, where it is named, refused.

Writes: a version; `latest` moves to it when every check of its release is met, else it is held and its card says why.
Where the recipe holds out samples (`publish.splits`), the held-out parts too, each at once an evaluation set.

Rerun: safe. The same shards under the same settings are the same version; what stands is not written again, and a shard
whose samples are the same in the version before shares its files.

Cost: seconds a shard of copying; nothing is downloaded or scored again.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from curation_dags import BLOCKS, DEFAULT_ARGS, VERSIONS, cause, made, store
from curation_notices import held, watched

TEXTS = {
    "recipe": "Which dataset; empty: that of the block that started the run.",
    "dumps": "Names of dumps, one a line; empty: all that the recipe ran on.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "recipe": {"default": None, "type": ["null", "string"], "examples": ["laion-5b-en"]},
    "dumps": {"default": None, "type": ["null", "array"], "items": {"type": "string"}},
}


@dag(
    schedule=[BLOCKS],
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=24),
)
def publish_dataset() -> None:
    """Wire plan >> select >> export of each part >> finish."""

    @task(execution_timeout=timedelta(hours=1))
    def plan(params: dict[str, Any]) -> list[dict[str, Any]]:
        from curation.block import dumps_of, recipe_key
        from curation.errors import ConfigError
        from curation.pipeline import saved_recipe
        from curation.publish.sources import finished_shards, portions
        from curation.publish.version import plan_release

        began = cause(BLOCKS)
        name = params["recipe"] or began.get("recipe")
        if not name:
            raise ConfigError("recipe: name one")
        dumps = params["dumps"] or dumps_of(store(), name)
        key = recipe_key(store(), began.get("dump") or dumps[-1], name)
        recipe = saved_recipe(store(), key)
        sources = {}
        for dump in dumps:
            try:
                sources[dump] = finished_shards(store(), recipe, dump)
            except ConfigError as error:
                if params["dumps"]:
                    raise
                logging.getLogger(__name__).warning("left out: %s", error)
        release = {"recipe": key, "version": plan_release(store(), recipe, sources)}
        get_current_context()["ti"].xcom_push("release", release)
        return portions(sources)

    @task(execution_timeout=timedelta(hours=6))
    def select(release: dict[str, str]) -> dict[str, Any]:
        from curation.pipeline import saved_recipe
        from curation.publish.version import select_version

        return dict(select_version(store(), saved_recipe(store(), release["recipe"]), release["version"]))

    @task(execution_timeout=timedelta(hours=12), map_index_template="{{ task.op_kwargs.part['label'] }}")
    def export(part: dict[str, Any], release: dict[str, str]) -> int:
        from curation.pipeline import saved_recipe
        from curation.publish.version import export_shard

        recipe = saved_recipe(store(), release["recipe"])
        for number, shard in enumerate(part["shards"], 1):
            export_shard(store(), recipe, release["version"], part["dump"], shard)
            logging.getLogger(__name__).info("%s: %d of %d shards", part["label"], number, len(part["shards"]))
        return len(part["shards"])

    @task(execution_timeout=timedelta(hours=6), outlets=[VERSIONS])
    def finish(release: dict[str, str]) -> str:
        from curation.pipeline import saved_recipe
        from curation.publish.version import finish_release, move_latest

        recipe, version = saved_recipe(store(), release["recipe"]), release["version"]
        manifest = str(finish_release(store(), recipe, version))
        held(f"{recipe.name}/{version}", move_latest(store(), recipe.name, version))
        made(VERSIONS, recipe=recipe.name, version=version)
        return manifest

    @task(execution_timeout=timedelta(hours=24))
    def held_out(release: dict[str, str], parts: list[dict[str, Any]]) -> dict[str, str]:
        from curation.pipeline import saved_recipe
        from curation.publish.heldout import publish_held_out

        sources: dict[str, list[int]] = {}
        for part in parts:
            sources.setdefault(part["dump"], []).extend(part["shards"])
        return dict(publish_held_out(store(), saved_recipe(store(), release["recipe"]), sources))

    parts = plan()
    release = parts["release"]
    exported = export.partial(release=release).expand(part=parts)
    select(release) >> exported >> finish(release) >> held_out(release, parts)


publish_dataset()

"""Take samples out of every published version, for good: first a count, then a person's yes, then the deed.

Reads: the metadata tables of all published versions.

Writes: nothing until `approve` is answered under *Required Actions*; then a tombstone, a cleaned version in the place
of each that held a sample, the receipt for the requester, and an entry in the log.

Rerun: safe. Killed midway, the same run goes on where it stopped; the sample comes back from no later dump.

Cost: a look at every metadata table; a rewrite of the shards that held a sample.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task
from curation_dags import DEFAULT_ARGS, VERSIONS, made, store
from curation_notices import watched

TEXTS = {
    "kind": "What is named; a domain means pictures on it and pages on it, with all hosts below.",
    "values": "URLs, domains, sample ids, sha256 or pHash values, one a line.",
    "radius": "Bits by which a pHash may differ.",
    "reason": "Why, for the log.",
    "requester": "Who asked, for the receipt.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "kind": {"default": "url", "type": "string", "enum": ["url", "domain", "sample_id", "sha256", "phash"]},
    "values": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "radius": {"default": 0, "type": "integer", "minimum": 0, "maximum": 16},
    "reason": {"default": None, "type": ["null", "string"]},
    "requester": {"default": None, "type": ["null", "string"]},
}
BODY = """{% set found = ti.xcom_pull('find') %}
{{ found['n_samples'] }} samples would go, from {{ found['versions'] | length }} versions:
{{ found['versions'] | join(', ') }}"""


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["dataset"],
    default_args=DEFAULT_ARGS,
    **watched(hours=72),
)
def takedown() -> None:
    """Wire find >> approve >> take_down."""

    @task(execution_timeout=timedelta(hours=6))
    def find(params: dict[str, Any]) -> dict[str, Any]:
        from curation.takedown import take_down
        from curation.tombstones import targets_of

        targets = targets_of(((params["kind"], value) for value in params["values"]), params["radius"])
        receipt = take_down(store(), targets, dry_run=True)
        return {"n_samples": receipt["n_samples"], "versions": sorted(receipt["versions"])}

    approve = ApprovalOperator(task_id="approve", subject="Take these samples down?", body=BODY)

    @task(task_id="take_down", execution_timeout=timedelta(hours=24), outlets=[VERSIONS])
    def remove(params: dict[str, Any]) -> str:
        from curation.takedown import take_down
        from curation.tombstones import targets_of

        targets = targets_of(((params["kind"], value) for value in params["values"]), params["radius"])
        receipt = take_down(store(), targets, reason=params["reason"] or "", requester=params["requester"] or "")
        cleaned = sorted(receipt["versions"].values())
        if cleaned:
            recipe, _, version = cleaned[-1].partition("/")
            made(VERSIONS, recipe=recipe, version=version)
        return f"takedowns/{receipt['id']}-{receipt['audit_number']:08d}.json"

    find() >> approve >> remove()


takedown()

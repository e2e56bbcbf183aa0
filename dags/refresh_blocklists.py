"""Fetch a blocklist anew, every night once it is unpaused and knows its sources.

They are set by `CURATION_PARAMS={"refresh_blocklists": {"sources": ["https://host/list"]}}` in the environment of all
of Airflow; a run by hand asks in its form.

A recipe takes it as `stages.extract.blocklist: [blocklists/NAME]`: every block that is planned from then on, and no run
under way.

Reads: files or addresses of lists, gzip or not, put together without repetitions.

Writes: the list in the store, as a whole.

Rerun: safe. A source that can't be read, that is a page, or by which the list would lose more than `max_loss` of its
lines, fails the run and leaves the list as it was.

Cost: the download.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException
from curation_dags import BLOCKLISTS, DEFAULT_ARGS, configured, made, store
from curation_notices import watched

TEXTS = {
    "name": "Name of the list in the store.",
    "sources": "Files or addresses, one a line; empty: nothing is done.",
    "max_loss": "Largest share of its lines that the list may lose.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "name": {"default": "default", "type": "string", "pattern": r"^[a-z0-9][a-z0-9._-]*$"},
    "sources": {"default": None, "type": ["null", "array"], "items": {"type": "string"}},
    "max_loss": {"default": 0.5, "type": "number", "minimum": 0, "maximum": 1},
}


@dag(
    schedule="0 1 * * *",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        name: Param(title=name.title(), description=TEXTS[name], **schema)
        for name, schema in configured("refresh_blocklists", FIELDS).items()
    },
    doc_md=__doc__,
    tags=["extract"],
    default_args=DEFAULT_ARGS,
    **watched(hours=6),
)
def refresh_blocklists() -> None:
    """One task."""

    @task(execution_timeout=timedelta(hours=2), outlets=[BLOCKLISTS])
    def refresh(params: dict[str, Any]) -> dict[str, int]:
        from curation.blocklists import refresh_blocklist

        if not params["sources"]:
            raise AirflowSkipException("sources: none is named; give them in the form, or in CURATION_PARAMS")
        done = refresh_blocklist(store(), params["name"], params["sources"], max_loss=params["max_loss"])
        logging.getLogger(__name__).info("%d rules, %d lines new, %d gone", *done)
        made(BLOCKLISTS, name=params["name"], **done._asdict())
        return done._asdict()

    refresh()


refresh_blocklists()

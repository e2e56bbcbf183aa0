"""What all DAG files of the project share: how tasks are retried, where the store is, which recipes there are."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.resources import files
from typing import Any

from airflow.sdk import Asset, ExceptionRetryPolicy, RetryAction, RetryRule, get_current_context

RECIPES = sorted(path.name.removesuffix(".yaml") for path in (files("curation") / "recipes").iterdir())
HEALS = [
    "curation.errors.OutageError",
    "airflow.sdk.exceptions.AirflowTaskTimeout",
    "airflow.sdk.exceptions.AirflowRuntimeError",  # Airflow's own API did not answer the task
]
DEFAULT_ARGS = {
    "owner": "curation",
    "retries": 3,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=30),
    "retry_policy": ExceptionRetryPolicy([RetryRule(HEALS, RetryAction.DEFAULT)], default=RetryAction.FAIL),
}
"""Outages, timeouts and lost workers are retried; a bad shard or a wrong setting fails at once."""

BLOCKS = Asset(name="curated_blocks", uri="curation://blocks")
VERSIONS = Asset(name="dataset_versions", uri="curation://versions")
EVALSETS = Asset(name="evaluation_sets", uri="curation://evalsets")
BLOCKLISTS = Asset(name="blocklists", uri="curation://blocklists")
MODELS = Asset(name="models", uri="curation://models")
"""What one DAG makes and another waits for; an event's `extra` says which block, version, set, list or model it was."""


def made(asset: Asset, **what: Any) -> None:
    """Say in the asset's event what this task made."""
    get_current_context()["outlet_events"][asset].extra = what


def cause(asset: Asset) -> dict[str, Any]:
    """What the newest of the events says that started this run; {} for a run by hand."""
    triggering = get_current_context()["triggering_asset_events"]
    events = [event for key, several in triggering.items() if key == asset for event in several]
    return dict(max(events, key=lambda event: event.timestamp).extra) if events else {}


def store() -> Any:
    """Open the store: on a fleet the same s3:// root on every worker."""
    from curation.store import Store

    return Store(os.environ.get("CURATION_STORE", "var/store"))


def block_runs(dump: str, blocks: Iterable[int], shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs of curate_block to trigger, named after all that they depend on, so that a second trigger is a rerun."""
    runs = []
    for number in blocks:
        conf = {"dump": dump, "block": number, **shared}
        digest = hashlib.sha256(json.dumps(conf, sort_keys=True).encode()).hexdigest()[:8]
        runs.append({"trigger_run_id": f"{dump}__block_{number:03d}__{digest}", "conf": conf})
    return runs

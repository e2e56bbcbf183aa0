"""What all DAG files of the project share: how tasks are retried, where the store is, which recipes there are."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.resources import files
from typing import Any

from airflow.sdk import Asset, ExceptionRetryPolicy, Param, RetryAction, RetryRule, get_current_context
from airflow.sdk.exceptions import ParamValidationError

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


SCHEDULED = ("nightly_refresh", "refresh_blocklists")
"""DAGs whose runs come by the clock: nobody fills in their form."""


def configured(dag: str, fields: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put the defaults of CURATION_PARAMS, such as {"nightly_refresh": {"blocks": 10}}, in the place of a DAG's own.

    Every component of Airflow needs the same. Raises ValueError that names what is wrong there: the DAG does not load.
    """
    try:
        given = json.loads(os.environ.get("CURATION_PARAMS") or "{}")
        if unknown := sorted(set(given) - set(SCHEDULED)):
            raise ValueError(f"{unknown[0]} is none of {', '.join(SCHEDULED)}")
        own = dict(given.get(dag, {}))
        if unknown := sorted(set(own) - set(fields)):
            raise ValueError(f"{dag} has no {unknown[0]}, but {', '.join(fields)}")
        found = {name: {**field, "default": own.get(name, field["default"])} for name, field in fields.items()}
        for name in own:
            Param(**found[name]).resolve()
    except (ValueError, TypeError, ParamValidationError) as wrong:
        raise ValueError(f"CURATION_PARAMS: {str(wrong).splitlines()[0]}") from wrong
    return found


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

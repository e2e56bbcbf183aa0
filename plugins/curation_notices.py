"""Who is told when a run fails, is late or holds its version: any service that Apprise knows, by one setting.

`CURATION_NOTIFY` holds addresses, with blanks between them: `slack://...`, `mailto://...`, `json://host/path` for a
webhook; https://github.com/caronc/apprise/wiki lists the rest. They are secrets: keep them in the environment file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseNotifier, DeadlineAlert, DeadlineReference, get_current_context
from airflow.sdk.definitions.callback import AsyncCallback

SETTING = "CURATION_NOTIFY"


class Notice(BaseNotifier):
    """Say what happened to a run: in the DAG processor for a failure, in the triggerer for a deadline."""

    def __init__(self, what: str = "failed", context: Any = None) -> None:
        super().__init__(context)
        self.what = what

    def notify(self, context: Any) -> None:
        """Send it to every address. An address that does not take it is an error in the log, and no more."""
        title, body = message(self.what, context)
        addresses = os.environ.get(SETTING, "").split()
        if not addresses:
            self.log.info("%s; nobody is told: %s is empty", title, SETTING)
            return
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it would write the addresses into the task's log
        service = apprise.Apprise()
        for number, address in enumerate(addresses, 1):
            if not service.add(address):  # the address itself is a secret
                self.log.error("address %d of %s is none that Apprise knows", number, SETTING)
        if not service.notify(title=title, body=body):
            self.log.error("%s: not all addresses of %s took the message", title, SETTING)

    async def async_notify(self, context: Any) -> None:
        """The same, for the triggerer."""
        await asyncio.to_thread(self.notify, context)


def message(what: str, context: Any) -> tuple[str, str]:
    """Title and body: which run, what it works on, why it failed, and where to look."""
    run = context.get("dag_run") or {}

    def of_run(name: str) -> Any:
        return run.get(name) if isinstance(run, dict) else getattr(run, name, None)

    dag, run_id, conf = of_run("dag_id") or "a run", of_run("run_id") or "", of_run("conf") or {}
    lines = [f"run: {run_id}"] + [f"{name}: {value}" for name, value in conf.items() if value not in ("", None, {})]
    if reason := context.get("reason"):
        lines.append(f"reason: {reason}")
    from airflow.configuration import conf as settings

    base = settings.get("api", "base_url", fallback="").rstrip("/")
    return f"curation: {dag} {what}", "\n".join([*lines, f"{base}/dags/{dag}/runs/{run_id}"])


def held(version: str, reasons: Iterable[str]) -> None:
    """From within a task: log and tell why `latest` does not move to a version (drift, leaks, no approval)."""
    if not (told := list(reasons)):
        return
    for reason in told:
        logging.getLogger(__name__).warning("%s is held, latest does not move: %s", version, reason)
    context = dict(get_current_context())
    Notice(f"holds {version}")({**context, "reason": "\n".join(told)})


def watched(hours: float) -> dict[str, Any]:
    """Arguments of a DAG whose people are told when a run fails, or is not through so long after it was queued."""
    late = AsyncCallback(Notice, {"what": f"is not through after {hours:g} h"})
    alert = DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(hours=hours), late)
    return {"on_failure_callback": Notice(), "deadline": alert}

"""The few calls of Airflow's REST interface that the demo makes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Any

from curation.errors import ConfigError, OutageError

API = "/api/v2"
# a proxy of the user's environment has no business between this process and 127.0.0.1
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AirflowClient:
    """One Airflow, one user."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url, self._user, self._password = url, user, password
        self._token = ""

    def wait_until_healthy(self, dag: str, check: Callable[[], None], patience_s: float = 180) -> None:
        """Return once the components beat and the DAG was parsed since now. Raises OutageError, or what check raises.

        check  called between looks; raises when there is nothing left to wait for
        """
        asked, until = time.time(), time.monotonic() + patience_s
        missing = "the API server"
        while time.monotonic() < until:
            check()
            missing = self._missing(dag, asked)
            if not missing:
                return
            time.sleep(0.5)
        raise OutageError(f"Airflow is not ready after {patience_s:.0f} s: {missing} is missing")

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Make the pool, or give it this many slots."""
        pool = {"slots": slots, "description": description, "include_deferred": False}
        try:
            self._call("PATCH", f"/pools/{name}", {"pool": name, **pool})
        except _Refused as err:
            if err.status != 404:
                raise
            self._call("POST", "/pools", {"name": name, **pool})

    def end_active_runs(self, dag: str) -> int:
        """Mark runs that an earlier demo left unfinished as failed, so that they do not go on; returns their number."""
        runs = self._call("GET", f"/dags/{dag}/dagRuns?state=running&state=queued&limit=100")["dag_runs"]
        for run in runs:
            self._call("PATCH", f"/dags/{dag}/dagRuns/{_quoted(run['dag_run_id'])}", {"state": "failed"})
        return len(runs)

    def trigger(self, dag: str, run: str, conf: dict[str, Any]) -> None:
        """Start a run. Raises ConfigError with Airflow's message when the parameters are refused."""
        try:
            self._call("POST", f"/dags/{dag}/dagRuns", {"dag_run_id": run, "logical_date": None, "conf": conf})
        except _Refused as err:
            if err.status >= 500:
                raise
            raise ConfigError(f"{dag}: {err.detail}") from err

    def run_state(self, dag: str, run: str) -> str:
        """One of queued, running, success, failed."""
        return str(self._call("GET", f"/dags/{dag}/dagRuns/{_quoted(run)}")["state"])

    def task_instances(self, dag: str, run: str) -> list[dict[str, Any]]:
        """All task instances of a run, mapped ones each."""
        found: list[dict[str, Any]] = []
        while True:
            place = f"/dags/{dag}/dagRuns/{_quoted(run)}/taskInstances?limit=1000&offset={len(found)}"
            page = self._call("GET", place)
            found.extend(page["task_instances"])
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def xcom(self, dag: str, run: str, task: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """What a task left, None when it left nothing."""
        place = f"/dags/{dag}/dagRuns/{_quoted(run)}/taskInstances/{task}/xcomEntries/{key}"
        try:
            return self._call("GET", f"{place}?map_index={map_index}&deserialize=true")["value"]
        except _Refused as err:
            if err.status == 404:
                return None
            raise

    def error_of(self, dag: str, run: str, instance: dict[str, Any]) -> str:
        """The exception that ended a task instance, from its log; empty when the log has none."""
        task, attempt, index = instance["task_id"], max(1, instance["try_number"]), instance["map_index"]
        place = f"/dags/{dag}/dagRuns/{_quoted(run)}/taskInstances/{task}/logs/{attempt}?map_index={index}"
        error = ""
        for line in self._call("GET", f"{place}&full_content=true").get("content", []):
            if isinstance(line, dict) and line.get("error_detail"):
                raised = line["error_detail"][0]  # its causes follow
                error = f"{raised.get('exc_type')}: {raised.get('exc_value')}"
        return error

    def _missing(self, dag: str, asked: float) -> str:
        try:
            health = self._call("GET", "/monitor/health", token=False)
            beating = {name for name, state in health.items() if state and state.get("status") == "healthy"}
            late = {"metadatabase", "scheduler", "dag_processor"} - beating
            if late:
                return ", ".join(sorted(late))
            parsed = self._call("GET", f"/dags/{dag}/details")["last_parsed_time"]
        except _Refused as err:
            return self._import_error(dag) if err.status == 404 else f"{err}"
        except OutageError:
            return "the API server"
        # a DAG that an earlier start parsed may have changed since
        fresh = parsed and datetime.fromisoformat(parsed).timestamp() >= asked
        return "" if fresh else self._import_error(dag)

    def _import_error(self, dag: str) -> str:
        for error in self._call("GET", "/importErrors")["import_errors"]:
            if error["filename"].endswith(f"{dag}.py"):
                raise OutageError(f"Airflow can't load {error['filename']}:\n{error['stack_trace']}")
        return f"DAG {dag}"

    def _call(self, method: str, place: str, body: Any = None, *, token: bool = True) -> Any:
        if token and not self._token:
            login = {"username": self._user, "password": self._password}
            self._token = self._send("POST", f"{self._url}/auth/token", login)["access_token"]
        return self._send(method, f"{self._url}{API}{place}", body)

    def _send(self, method: str, url: str, body: Any) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with _OPENER.open(request, timeout=90) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as err:
            raise _Refused(method, url, err.code, err.read().decode(errors="replace")) from err
        except (OSError, ValueError) as err:
            raise OutageError(f"{method} {url}: {err}") from err


class _Refused(OutageError):
    """An answer that is not 2xx."""

    def __init__(self, method: str, url: str, status: int, text: str) -> None:
        self.status = status
        try:
            self.detail = str(json.loads(text)["detail"])
        except (ValueError, KeyError, TypeError):
            self.detail = text[:500]
        super().__init__(f"{method} {url}: {status} {self.detail}")


def _quoted(run: str) -> str:
    return urllib.parse.quote(run, safe="")

"""The batch API of an OpenAI-compatible endpoint: upload questions, wait, fetch answers; cheaper and slower.

Each part of a job leaves a note in the store before the next one begins. After a kill the same call goes on: a batch
that was made is found by its name in the endpoint's own list, so it isn't made, and paid for, again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import urllib3

from curation.captions.answers import Answer, GarbageError, Reason, judge
from curation.captions.endpoint import Asker, Http
from curation.captions.pacing import backoff_s, retry_after_s
from curation.errors import ConfigError, OutageError
from curation.store import Store

log = logging.getLogger(__name__)
MAX_REQUESTS = 50_000  # OpenAI's limits for one batch
MAX_BYTES = 100 << 20
MAX_RESULT_BYTES = 1 << 30
_OPEN = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


class BatchClient:
    """Asks about pictures by batches; answers go into the same cache as those of single requests.

    asker     settings, cache and budget        store   where notes on batches are kept, under captions/batches/
    poll_s    seconds between two looks at a batch's state
    """

    def __init__(
        self, asker: Asker, store: Store, *, poll_s: float = 60, sleep: Callable[[float], None] = time.sleep,
        max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES,
    ) -> None:  # fmt: skip
        self._asker, self._store, self._poll_s, self._sleep = asker, store, poll_s, sleep
        self._http = Http(asker.endpoint)
        self._reserved: dict[str, tuple[float, int]] = {}
        self._max_requests, self._max_bytes = max_requests, max_bytes

    def ask_all(self, pictures: Iterable[bytes]) -> dict[str, Answer]:
        """Answers by Endpoint.key; pictures over the budget, or failed within their batch, say so.

        raises   OutageError where the endpoint can't be reached; ConfigError where it
                 refuses the key or the request
        """
        self._resume()
        found: dict[str, Answer] = {}
        for part in self._parts(pictures, found):
            found |= self._run(part)
        return found

    def _resume(self) -> None:
        """Take in the batches that an earlier run made and did not fetch: they are paid for."""
        for entry in list(self._store.entries("captions/batches/")):
            note = json.loads(self._store.read_bytes(entry.key))
            if note["url"] != self._asker.endpoint.url:
                continue
            batch_id = note["id"] or self._find(note["job"])
            if batch_id:
                self._take_in(batch_id, set(note["keys"]))
            self._store.delete(entry.key)

    def _parts(self, pictures: Iterable[bytes], found: dict[str, Answer]) -> Iterator[dict[str, bytes]]:
        part: dict[str, bytes] = {}
        size = 0
        endpoint = self._asker.endpoint
        tokens = self._asker.estimate()
        reserved = endpoint.batch_price * endpoint.money(*tokens), sum(tokens)
        for picture in pictures:
            key = endpoint.key(picture)
            if key in found or key in self._reserved:
                continue
            if (known := self._asker.known(key)) is not None:
                found[key] = known
                continue
            if not self._asker.budget.reserve(*reserved):
                found[key] = Answer(None, Reason.OVER_BUDGET)
                continue
            line = _line(key, endpoint.question(picture))
            if part and (len(part) >= self._max_requests or size + len(line) > self._max_bytes):
                yield part
                part, size = {}, 0
            self._reserved[key] = reserved
            part[key] = line
            size += len(line)
        if part:
            yield part

    def _run(self, part: dict[str, bytes]) -> dict[str, Answer]:
        job = hashlib.sha256("\n".join(sorted(part)).encode()).hexdigest()[:24]
        note = f"captions/batches/{job}.json"
        noted = {"url": self._asker.endpoint.url, "job": job, "keys": sorted(part)}
        # written before the batch is made: whoever finds it without an id looks for the batch in the endpoint's list
        self._store.write_bytes(note, json.dumps(noted | {"id": ""}).encode())
        batch_id = self._submit(job, part)
        self._store.write_bytes(note, json.dumps(noted | {"id": batch_id}).encode())
        answers = self._take_in(batch_id, set(part))
        self._store.delete(note)
        for key in part.keys() - answers.keys():
            answers[key] = Answer(None, Reason.UNANSWERED, detail=f"no line in batch {batch_id}")
        return answers

    def _find(self, job: str) -> str | None:
        after = ""
        for _ in range(100):
            page = self._json("GET", f"/batches?limit=100{after}")
            for batch in page.get("data") or []:
                if (batch.get("metadata") or {}).get("curation_job") == job and batch.get("status") not in (
                    "failed", "expired", "cancelled",
                ):  # fmt: skip
                    return str(batch["id"])
            if not page.get("has_more") or not page.get("data"):
                return None
            after = f"&after={page['data'][-1]['id']}"
        return None

    def _submit(self, job: str, part: dict[str, bytes]) -> str:
        lines = b"".join(part[key] for key in sorted(part))
        file = self._json("POST", "/files", fields={"purpose": "batch", "file": (f"{job}.jsonl", lines)})
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"curation_job": job},
        }
        return str(self._json("POST", "/batches", body=json.dumps(asked).encode())["id"])

    def _take_in(self, batch_id: str, keys: set[str]) -> dict[str, Answer]:
        """Wait for a batch and keep its answers; none where it failed as a whole."""
        while (batch := self._json("GET", f"/batches/{batch_id}")).get("status") in _OPEN:
            self._sleep(self._poll_s)
        files = [batch[role] for role in ("output_file_id", "error_file_id") if batch.get(role)]
        answers: dict[str, Answer] = {}
        for file in files:
            for line in self._send("GET", f"/files/{file}/content", most=MAX_RESULT_BYTES).splitlines():
                key, answer = _read_line(line)
                if key not in keys:
                    continue
                answer = replace(answer, share=self._asker.endpoint.batch_price)
                if answer.reason != Reason.UNANSWERED:
                    self._asker.keep(key, answer)
                answers[key] = answer
        for key in keys & self._reserved.keys():
            self._asker.budget.settle(self._reserved.pop(key), (0.0, 0))
        if not files:
            log.warning("batch %s: %s: %s", batch_id, batch.get("status"), str(batch.get("errors"))[:500])
        return answers

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer = json.loads(self._send(method, path, **request))
        if not isinstance(answer, dict):
            raise OutageError(f"{self._asker.endpoint.url}{path}: expected an object, found {str(answer)[:200]}")
        return answer

    def _send(self, method: str, path: str, **request: Any) -> bytes:
        """Body of a 200. The POST of a batch is tried once: a second might be paid for, and the next run finds it."""
        endpoint, problem = self._asker.endpoint, ""
        attempts = 1 if (method, path) == ("POST", "/batches") else endpoint.attempts
        for attempt in range(attempts):
            wait_s = backoff_s(attempt, base=endpoint.backoff_s)
            try:
                status, headers, data = self._http.send(method, path, **request)
            except (urllib3.exceptions.HTTPError, OSError, GarbageError) as err:
                problem = f"{type(err).__name__}: {err}"
            else:
                if status == 200:
                    try:
                        if not path.endswith("/content"):
                            json.loads(data)
                        return data
                    except ValueError:
                        problem = f"no JSON: {data[:200]!r}"
                else:
                    problem = f"status {status}: {data[:300].decode('utf-8', 'replace')}"
                    if status in (400, 401, 403, 404, 405, 422):
                        raise ConfigError(f"{endpoint.url}{path}: {problem}")
                    wait_s = max(wait_s, retry_after_s(headers.get("Retry-After")) or 0)
            if attempt + 1 < attempts:
                self._sleep(wait_s)
        raise OutageError(f"{endpoint.url}{path}: {problem}")


def _line(key: str, question: dict[str, Any]) -> bytes:
    row = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": question}
    return json.dumps(row).encode() + b"\n"


def _read_line(line: bytes) -> tuple[str, Answer]:
    """Key and answer of a result line; a damaged line belongs to no key."""
    try:
        row = json.loads(line)
        key, response = str(row["custom_id"]), row.get("response") or {}
        if row.get("error") or response.get("status_code") != 200:
            said = str(row.get("error") or response.get("body"))[:500]
            rejected = response.get("status_code") in (400, 413, 415, 422)
            return key, Answer(None, Reason.REJECTED if rejected else Reason.UNANSWERED, detail=said)
        return key, judge(response.get("body"))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        return "", Answer(None, Reason.UNANSWERED, detail=str(err)[:200])

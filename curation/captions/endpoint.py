"""Ask an OpenAI-compatible chat-completions endpoint about pictures: a teacher, or the captioner of the caption stage.

Nothing is paid for twice: an answer is written to the store before it is counted or handed on, under a key made of the
picture's bytes, the prompt, the model and the sampling settings. A process that dies loses the answers that were on
their way; whoever asks next asks for those alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import urllib3
from pydantic import BaseModel, ConfigDict, Field

from curation.captions.answers import FINAL, Answer, AnswerCache, GarbageError, Reason, judge
from curation.captions.pacing import Budget, Pace, backoff_s, retry_after_s
from curation.captions.prompts import read_prompt
from curation.errors import ConfigError, OutageError
from curation.images.anyres import Layout
from curation.store import Store, cache_folder

log = logging.getLogger(__name__)
MAX_ANSWER_BYTES = 16 << 20
_WRONG_SETTINGS = {401: "the API key is refused", 403: "the API key may not do this", 404: "no such path or model"}
_BAD_REQUEST = frozenset({400, 413, 415, 422})
_CONTENT_POLICY = ("content_policy", "content_filter", "content policy", "safety system", "responsibleai")
_SIGNATURES = ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"))


class Endpoint(BaseModel):
    """Where to ask, how, how fast, and how much it may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        description="base URL with its version, such as http://127.0.0.1:8000/v1", pattern=r"^https?://[^\s@]+$"
    )
    model: str = Field(min_length=1)
    api_key_env: str = Field("CURATION_ENDPOINT_KEY", description="environment variable that holds the key")
    prompt: str = Field("en", description="en or zh (six-point detailed description), or a text file")
    instruction: str = Field("", description="text of the prompt itself, in the place of `prompt`")
    temperature: float = Field(0.2, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1, description="of the answer; one that is cut here counts as truncated")
    seed: int | None = None
    detail: Literal["auto", "low", "high"] = Field("auto", description="how closely the model looks, where it can")
    extra: dict[str, Any] = Field(default_factory=dict, description="further fields of the request body")

    concurrency: int = Field(8, ge=1, le=512)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    timeout_s: float = Field(120, gt=0, description="of one attempt, from the first byte sent to the last one read")
    attempts: int = Field(6, ge=1)
    backoff_s: float = Field(1.0, gt=0, description="most that is waited after a first failure; doubles, up to 60")
    give_up_after: int = Field(20, ge=1, description="questions without an answer in a row: then the endpoint is down")

    price_prompt: float = Field(0, ge=0, description="money a million prompt tokens")
    price_completion: float = Field(0, ge=0, description="money a million completion tokens")
    batch_price: float = Field(0.5, ge=0, description="what the batch API asks, as a share of the price")
    max_money: float | None = Field(None, ge=0)
    max_total_tokens: int | None = Field(None, ge=0)
    image_tokens: int = Field(1500, ge=0, description="prompt tokens of a picture, for estimates")

    @property
    def text(self) -> str:
        """What is asked."""
        return self.instruction or read_prompt(self.prompt)

    def question(self, picture: bytes, text: str = "") -> dict[str, Any]:
        """Body of a chat completion about an encoded picture (JPEG, PNG, GIF or WebP); text in place of the prompt."""
        kind = next((kind for start, kind in _SIGNATURES if picture.startswith(start)), "jpeg")
        url = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
        content = [
            {"type": "text", "text": text or self.text},
            {"type": "image_url", "image_url": {"url": url, "detail": self.detail}},
        ]
        return self._settings() | {"messages": [{"role": "user", "content": content}], "stream": False}

    def key(self, picture: bytes, text: str = "") -> str:
        """Hex digest of what the answer depends on: picture, prompt, model and sampling; not where or how fast."""
        asked = self._settings() | {"prompt": text or self.text, "detail": self.detail}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode() + b"\0")
        digest.update(picture)
        return digest.hexdigest()

    def money(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of an answer."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6

    def _settings(self) -> dict[str, Any]:
        chosen = {"top_p": self.top_p, "seed": self.seed}
        return {
            **self.extra,
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **{name: value for name, value in chosen.items() if value is not None},
        }


class Http:
    """Requests to an endpoint, one attempt each, within a time limit for the whole; redirects are not followed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._base, self._timeout_s = endpoint.url.rstrip("/"), endpoint.timeout_s
        self._pool = urllib3.PoolManager(maxsize=endpoint.concurrency, block=False)
        key = os.environ.get(endpoint.api_key_env, "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def send(
        self, method: str, path: str, *, body: bytes | None = None, content_type: str = "application/json",
        fields: Mapping[str, Any] | None = None, most: int = MAX_ANSWER_BYTES,
    ) -> tuple[int, Mapping[str, str], bytes]:  # fmt: skip
        """Status, headers and body. Raises OSError or urllib3's HTTPError, TimeoutError past the limit."""
        ends = time.monotonic() + self._timeout_s
        headers = self._headers | ({} if fields else {"Content-Type": content_type})
        timeout = urllib3.Timeout(connect=min(20, self._timeout_s), read=self._timeout_s)
        response = self._pool.request(
            method, f"{self._base}{path}", body=body, fields=fields, headers=headers, preload_content=False,
            retries=False, redirect=False, timeout=timeout,
        )  # fmt: skip
        try:
            data = bytearray()
            while piece := response.read1(1 << 16):
                data += piece
                if len(data) > most:
                    raise GarbageError(f"more than {most} bytes")
                if time.monotonic() > ends:
                    raise TimeoutError(f"no whole response within {self._timeout_s:g} s")
            response.release_conn()
            return response.status, response.headers, bytes(data)
        finally:
            response.close()


class FailedAttempt(Exception):
    """An attempt that may go better next time; charged: the provider may have billed it."""

    def __init__(self, detail: str, *, charged: bool, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail, self.charged, self.wait_s = detail, charged, wait_s


class Asker:
    """Asks an endpoint about pictures; safe to use from several threads.

    endpoint   settings         cache    where answers are kept
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache) -> None:
        self.endpoint = endpoint
        self._cache = cache
        self._http = Http(endpoint)
        self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self.budget = Budget(endpoint.max_money, endpoint.max_total_tokens)
        self._most_prompt_tokens = endpoint.image_tokens + len(endpoint.text.encode()) // 2
        self._lock = threading.Lock()
        self._asking: dict[str, Future[Answer]] = {}
        self._counted: set[str] = set()
        self._unanswered_in_a_row = 0

    def ask(self, picture: bytes, text: str = "") -> Answer:
        """The answer about one encoded picture, from the store where it was given before.

        text   what is asked, in place of the endpoint's prompt

        The budget counts every answer that this object hands out once, those from the store with what they cost then:
        a job that is killed and started again has the same budget, not a new one.

        raises   ConfigError where the endpoint refuses key or model; OutageError where it no longer answers at all
        """
        key = self.endpoint.key(picture, text)
        with self._lock:
            asked = self._asking.get(key)
            if asked is None:
                mine: Future[Answer] = Future()
                self._asking[key] = mine
        if asked is not None:  # another thread asks about the same picture: pay once
            return asked.result()
        try:
            answer = self._answer(key, picture, text)
        except BaseException as err:  # of a cancelled request too: others wait for its answer
            mine.set_exception(err)
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            with self._lock:
                del self._asking[key]

    def ask_all(self, pictures: Iterable[bytes], texts: Iterable[str] | None = None) -> Iterator[Answer]:
        """Answers in the order of the pictures, `concurrency` of them under way; raises as `ask` does.

        Under a cap, what the store knows of a sequence is counted before its first question is asked;
        who gives an iterator calls `count_known` before.
        """
        if isinstance(pictures, Sequence):
            self.count_known(pictures, texts)
        source = zip(pictures, itertools.repeat("") if texts is None else texts, strict=False)
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            ahead = itertools.islice(source, 2 * self.endpoint.concurrency)
            waiting = deque(pool.submit(self.ask, *one) for one in ahead)
            try:
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(pool.submit(self.ask, *one) for one in itertools.islice(source, 1))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def estimate(self) -> tuple[int, int]:
        """Prompt and completion tokens that a question may take at most, by what was seen so far."""
        return self._most_prompt_tokens, self.endpoint.max_tokens

    def keep(self, key: str, answer: Answer) -> None:
        """Write an answer, then count it."""
        self._cache.write(key, answer)
        self._count(key, answer)

    def known(self, key: str) -> Answer | None:
        """An answer from the store, counted against the budget."""
        answer = self._cache.read(key)
        if answer is not None:
            self._count(key, answer)
        return answer

    def count_known(self, pictures: Iterable[bytes], texts: Iterable[str] | None = None) -> None:
        """Count what was paid for before anything new is asked: a job started again must not pass its cap.

        Without a cap nothing is read.
        """
        if self.endpoint.max_money is None and self.endpoint.max_total_tokens is None:
            return
        for picture, text in zip(pictures, itertools.repeat("") if texts is None else texts, strict=False):
            self.known(self.endpoint.key(picture, text))

    def _count(self, key: str, answer: Answer) -> None:
        with self._lock:
            if key in self._counted:
                return
            self._counted.add(key)
            self._most_prompt_tokens = max(self._most_prompt_tokens, answer.prompt_tokens)
        used = answer.prompt_tokens, answer.completion_tokens
        self.budget.settle((0.0, 0), (answer.share * self.endpoint.money(*used), sum(used)))

    def _answer(self, key: str, picture: bytes, text: str) -> Answer:
        if (known := self.known(key)) is not None:
            return known
        tokens = self.estimate()
        reserved = self.endpoint.money(*tokens), sum(tokens)
        body = json.dumps(self.endpoint.question(picture, text)).encode()
        problem = ""
        for attempt in range(self.endpoint.attempts):
            if not self.budget.reserve(*reserved):
                return Answer(None, Reason.OVER_BUDGET, detail=problem)
            self._pace.wait(sum(tokens))
            used = (0.0, 0)
            try:
                answer = self._attempt(body, tokens)
                self.keep(key, answer)
            except FailedAttempt as failure:
                problem, used = failure.detail, reserved if failure.charged else used
                if failure.wait_s is not None:
                    self._pace.pause(failure.wait_s)
                wait_s = backoff_s(attempt, base=self.endpoint.backoff_s)
            else:
                self._unanswered_in_a_row = 0
                return answer
            finally:
                self.budget.settle(reserved, used)
            if attempt + 1 < self.endpoint.attempts:
                time.sleep(wait_s)
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row >= self.endpoint.give_up_after:
            raise OutageError(f"{self.endpoint.url}: {self._unanswered_in_a_row} questions in a row, last: {problem}")
        log.warning("%s: no answer in %d attempts: %s", self.endpoint.url, self.endpoint.attempts, problem)
        return Answer(None, Reason.UNANSWERED, detail=problem)

    def _attempt(self, body: bytes, tokens: tuple[int, int]) -> Answer:
        try:
            status, headers, data = self._http.send("POST", "/chat/completions", body=body)
        except (urllib3.exceptions.HTTPError, OSError, GarbageError) as err:
            sent = not isinstance(err, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
            raise FailedAttempt(f"{type(err).__name__}: {err}"[:300], charged=sent) from err
        return read_answer(self.endpoint.url, status, headers, data, tokens)


def read_answer(where: str, status: int, headers: Mapping[str, str], data: bytes, tokens: tuple[int, int]) -> Answer:
    """The answer in a response; FailedAttempt where another attempt may do better, ConfigError where none can.

    tokens   prompt and completion: counted where the endpoint counts nothing
    """
    said = data[:500].decode("utf-8", "replace")
    if status in _WRONG_SETTINGS:
        raise ConfigError(f"{where}: {_WRONG_SETTINGS[status]} (status {status}): {said}")
    if "insufficient_quota" in said:
        raise OutageError(f"{where}: the account has no quota left: {said}")
    if status in _BAD_REQUEST:
        policy = any(word in said.lower() for word in _CONTENT_POLICY)
        return Answer(None, Reason.FILTERED if policy else Reason.REJECTED, detail=said)
    if status != 200:
        wait = retry_after_s(headers.get("Retry-After"))
        raise FailedAttempt(f"status {status}: {said}", charged=False, wait_s=wait)
    try:
        answer = judge(json.loads(data))
    except (ValueError, RecursionError) as err:
        raise FailedAttempt(f"status 200, but {err}", charged=True) from err
    if answer.prompt_tokens + answer.completion_tokens:
        return answer
    return Answer(answer.text, answer.reason, *tokens, detail=answer.detail)


@dataclass
class EndpointCaptioner:
    """An endpoint in the place of curation.models.captioner.Captioner.

    identity   what receipts name: the model and, without its key, where it is asked
    """

    identity: str
    _endpoint: Endpoint
    _cache: AnswerCache
    _askers: dict[str, Asker]

    def caption(
        self,
        images: Sequence[np.ndarray],
        *,
        num_beams: int = 1,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        min_length: int = 5,
        max_length: int = 20,
        seed: int = 0,
        prompt: str = "",
    ) -> list[str]:
        """Caption each picture, uint8 (h, w, 3); "" where there is no answer of use (the log says why).

        With top_p the model samples at temperature 1, else at 0; max_length is its max_tokens. Beams, the repetition
        penalty and min_length have no counterpart in the protocol. A prompt is sent in the place of the endpoint's.
        """
        from PIL import Image

        settings: dict[str, Any] = {
            "temperature": 1.0 if top_p else 0.0,
            "top_p": top_p,
            "max_tokens": max_length,
            "seed": seed,
        }
        if prompt:
            settings["instruction"] = prompt
        endpoint = self._endpoint.model_copy(update=settings)
        asker = self._asker(endpoint)
        encoded = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")  # lossless: the same pixels ask the same question
            encoded.append(file.getvalue())
        answers = list(asker.ask_all(encoded))
        for answer in answers:
            if answer.text is None:
                log.warning("%s: no caption: %s %s", self.identity, answer.reason, answer.detail[:200])
        return [" ".join((answer.text or "").split()) for answer in answers]

    def layouts(self, images: Sequence[np.ndarray]) -> list[Layout | None]:
        """None of each: how an endpoint looks at a picture is not told."""
        return [None] * len(images)

    def _asker(self, endpoint: Endpoint) -> Asker:
        name = endpoint.model_dump_json()
        if name not in self._askers:
            self._askers[name] = Asker(endpoint, self._cache)
        return self._askers[name]


def load_endpoint_captioner(name: str, *, store: Store | None = None, **settings: Any) -> EndpointCaptioner:
    """An endpoint as captioner, by "http://host:8000/v1#model".

    store      where answers are kept; by default the one that CURATION_STORE names, else the cache folder
    settings   further fields of Endpoint
    raises     ConfigError for a name of another form
    """
    url, hash_sign, model = name.partition("#")
    if not hash_sign or not model:
        raise ConfigError(f"captioner {name!r}: expected http://host/v1#model")
    endpoint = Endpoint(url=url, model=model, **settings)
    kept = store or Store(os.environ.get("CURATION_STORE") or str(cache_folder()))
    return EndpointCaptioner(f"{url}#{model}", endpoint, AnswerCache(kept), {})


__all__ = ["FINAL", "Answer", "Asker", "Endpoint", "EndpointCaptioner", "Reason", "load_endpoint_captioner"]

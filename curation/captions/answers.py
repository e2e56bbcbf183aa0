"""What an endpoint answered: judged, and kept in the store by the content of the question."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from curation.store import Store

REFUSALS = re.compile(
    r"""^\W*(?:
      (?:i['\u2019]?m|i[ ]am)[ ](?:really[ ]|very[ ]|so[ ])?(?:sorry|afraid|unable|not[ ]able)\b
    | sorry\b | (?:i[ ])?apologi[sz]e\b | my[ ]apologies\b
    | (?:unfortunately,?[ ])?i[ ](?:can(?:no|['\u2019])?t|won['\u2019]?t)\b
    | (?:unfortunately,?[ ])?i[ ]do(?:[ ]no|n['\u2019])t[ ](?:see|have|feel[ ]comfortable)\b
    | as[ ]an[ ]ai\b | as[ ]a[ ](?:large[ ])?language[ ]model\b
    | (?:there[ ]is[ ])?no[ ](?:image|picture)[ ](?:was|is|has[ ]been)?[ ]?(?:provided|attached|visible|included)\b
    | please[ ](?:provide|upload|attach)\b
    | (?:很|非常)?抱歉 | [对對]不起 | 不好意思 | 我(?:[无無]法|不能|[没沒]有[办辦]法|看不[到见見])
    | [无無]法(?:[识識][别別]|辨[识識]|查看|看[到见見]|[显顯]示|提供|描述|[处處]理)
    | 作[为為](?:一[个個]|一名)?(?:AI|人工智[能慧])
    | [您你]?(?:[没沒]有|未)(?:上[传傳]|提供)(?:任何)?[图圖] | [请請][您你]?先?(?:上[传傳]|提供)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Reason(StrEnum):
    """Why a question has no caption."""

    REFUSED = "refused"  # the model declined: by its refusal field or by what it wrote
    FILTERED = "filtered"  # the provider's content filter cut it off or rejected the request
    TRUNCATED = "truncated"  # it ended at max_tokens, in the middle of a sentence
    EMPTY = "empty"  # nothing was written
    REJECTED = "rejected"  # the endpoint calls the request bad (400, 413, 415, 422): the same would come again
    OVER_BUDGET = "over_budget"  # not asked: the cap of money or tokens is reached
    UNANSWERED = "unanswered"  # every attempt failed: time-out, 429, 5xx, garbage


FINAL = frozenset({Reason.REFUSED, Reason.FILTERED, Reason.TRUNCATED, Reason.EMPTY, Reason.REJECTED})
"""Reasons that are answers: kept like captions, and not asked for again."""


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    text     the caption, None without one       reason   "" with a caption
    prompt_tokens, completion_tokens   as the endpoint counted them; estimated where it didn't
    detail   of a failure, for people            cached   it stood in the store already
    share    of the price that was paid: below 1 by the batch API
    """

    text: str | None
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    detail: str = ""
    cached: bool = False
    share: float = 1.0


class GarbageError(ValueError):
    """A response of status 200 that is no chat completion."""


def judge(completion: object) -> Answer:
    """The answer within a chat completion, or GarbageError where there is none."""
    try:
        choice = completion["choices"][0]  # type: ignore[index]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        usage: Mapping[str, Any] = completion.get("usage") or {}  # type: ignore[attr-defined]
        used = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as err:
        raise GarbageError(f"no chat completion: {str(completion)[:200]}") from err
    if content is not None and not isinstance(content, str):
        raise GarbageError(f"content is no text: {str(content)[:200]}")
    if min(used) < 0:
        raise GarbageError(f"usage is negative: {used}")
    # a lone surrogate is no UTF-8: it would stop the writer later
    text = (content or "").encode("utf-8", "replace").decode()
    text = CONTROL.sub(" ", text).strip()
    reason = ""
    if finish == "content_filter":
        reason = Reason.FILTERED
    elif refusal or REFUSALS.match(text):
        reason, text = Reason.REFUSED, text or str(refusal)
    elif finish == "length":
        reason = Reason.TRUNCATED
    elif not text:
        reason = Reason.EMPTY
    return Answer(None if reason else text, reason, *used, detail=text[:500] if reason else "")


class AnswerCache:
    """Answers by key, one object each under captions/answers/: written whole before anything counts on them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, key: str) -> Answer | None:
        """The answer to a question, None where it was never answered (or what stands there is damaged)."""
        try:
            return replace(Answer(**json.loads(self._store.read_bytes(_place(key)))), cached=True)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # a foreign object under the key: the answer replaces it

    def write(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        self._store.write_bytes(_place(key), json.dumps(asdict(answer), ensure_ascii=False).encode())


def _place(key: str) -> str:
    return f"captions/answers/{key[:2]}/{key}.json"

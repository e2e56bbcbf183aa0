"""Conversations about published pictures, written by an endpoint that sees the picture and its caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec

from curation.captions.answers import AnswerCache
from curation.captions.endpoint import Asker
from curation.publish.settings import Converse
from curation.publish.writers import caption_of
from curation.sources.conversations import Conversation, Turn, turns_of
from curation.store import Store

_LONGEST = 2000  # characters of a caption that a question quotes


class _Pair(msgspec.Struct):
    question: str
    answer: str


class Conversing:
    """Gives samples the conversations that an endpoint writes; an answer is kept in the store and never paid twice.

    outcomes   samples by what came of it: annotated (it had its own), endpoint, or why there is none
    """

    def __init__(self, store: Store, settings: Converse) -> None:
        self._turns = settings.turns
        text = (files("curation") / "captions" / "prompts" / "conversation.txt").read_text(encoding="utf-8")
        self._prompt = settings.endpoint.instruction or text
        self._asker = Asker(settings.endpoint, AnswerCache(store))
        self.outcomes: Counter[str] = Counter()

    def add_to(self, rows: Sequence[dict[str, Any]]) -> None:
        """Set `conversation` of the rows that have none. Raises as Asker.ask does."""
        asked = [row for row in rows if not row.get("conversation")]
        self.outcomes["annotated"] += len(rows) - len(asked)
        pictures = [row["image"] for row in asked]
        prompts = [self._prompt.format(caption=caption_of(row)[:_LONGEST], turns=self._turns) for row in asked]
        for row, answer in zip(asked, self._asker.ask_all(pictures, prompts), strict=True):
            turns = read_turns(answer.text, self._turns) if answer.text else None
            self.outcomes["endpoint" if turns else answer.reason or "no_conversation"] += 1
            if turns:
                row["conversation"] = Conversation(turns, record=0).to_json()


def read_turns(text: str, most: int) -> list[Turn] | None:
    """Turns out of a model's JSON list of questions and answers, fenced or not; None where it is none."""
    try:
        pairs = msgspec.json.decode(text[text.find("[") : text.rfind("]") + 1], type=list[_Pair])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    said = [(role, value) for pair in pairs[:most] for role, value in (("human", pair.question), ("gpt", pair.answer))]
    return turns_of([{"from": role, "value": value} for role, value in said], 1)

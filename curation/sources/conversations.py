"""Conversations of annotated sets, kept as what was asked and answered: LLaVA's form, brought into one shape."""

from __future__ import annotations

import re
from typing import Any

import msgspec

MARK = "<image>"
"""Where a picture goes in a turn; readers of the form count these."""
MAX_CHARS = 1 << 16
"""Of all turns together; a longer record is no conversation about a picture."""
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_MARKS = re.compile(rf"\s*{MARK}\s*")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Turn = dict[str, str]


class Conversation(msgspec.Struct, frozen=True):
    """The turns of a record, and which of its pictures a row is; the JSON is column `conversation`."""

    turns: list[Turn]
    record: int  # number in the set's file: rows of one record have the same
    picture: int = 0
    pictures: int = 1

    def to_json(self) -> str:
        """One line, valid UTF-8."""
        return msgspec.json.encode(self).decode()


def parse_conversation(cell: str | None) -> Conversation | None:
    """The conversation of a row, None where it has none."""
    return msgspec.json.decode(cell, type=Conversation) if cell else None


def turns_of(raw: Any, pictures: int) -> list[Turn] | None:
    """Turns `{"from": ..., "value": ...}`, human and gpt by turns, with as many marks as pictures.

    A record of one picture without a mark gets it before the first question; marks in answers are taken out. None where
    the record is of no such form: another role, two answers in a row, marks too many or too few, more than MAX_CHARS.
    """
    if not isinstance(raw, list) or not raw or len(raw) % 2:
        return None
    turns: list[Turn] = []
    for at, each in enumerate(raw):
        role, value = (each.get("from"), each.get("value")) if isinstance(each, dict) else (None, None)
        if not isinstance(value, str) or not isinstance(role, str) or _ROLES.get(role) != ("human", "gpt")[at % 2]:
            return None
        value = _UNPRINTABLE.sub("", value).strip()
        turns.append({"from": _ROLES[role], "value": _MARKS.sub(" ", value).strip() if at % 2 else value})
    marks = sum(turn["value"].count(MARK) for turn in turns)
    if pictures == 1 and not marks:
        turns[0]["value"] = f"{MARK}\n{turns[0]['value']}"
        marks = 1
    enough = all(turn["value"] for turn in turns) and sum(len(turn["value"]) for turn in turns) <= MAX_CHARS
    return turns if enough and marks == pictures else None

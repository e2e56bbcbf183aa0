"""The audit log: entries chained by hash, so that none can be changed, dropped or put in between without notice.

Each entry is one object, written only if none of its number stands; its hash covers its content and the hash of the
entry before it. Whoever keeps the newest hash (a requester's receipt has it) can prove that the log up to there is the
one that was.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from curation.errors import BadShardError
from curation.store import Store

_FOLDER = "audit/"
_RECEIPTS = "takedowns/"
_FIRST = "0" * 64


class Entry(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(frozen=True)

    number: int
    action: str
    content: dict[str, Any]
    created_at: str
    previous: str  # hash of the entry before; zeros for the first
    hash: str = ""

    def computed(self) -> str:
        """Sha256 over everything but the hash itself, as canonical JSON."""
        text = json.dumps(self.model_dump(exclude={"hash"}), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def append(store: Store, action: str, content: dict[str, Any]) -> Entry:
    """Add an entry at the end; of two writers at once each gets a number of its own."""
    while True:
        numbers = [int(entry.key.rpartition("/")[2].removesuffix(".json")) for entry in store.entries(_FOLDER)]
        number = max(numbers, default=-1) + 1
        previous = _read(store, number - 1).hash if number else _FIRST
        created = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(number=number, action=action, content=content, created_at=created, previous=previous)
        entry = entry.model_copy(update={"hash": entry.computed()})
        if store.write_bytes(_key(number), entry.model_dump_json().encode(), if_absent=True):
            return entry


def verify(store: Store, newest: str = "") -> list[str]:
    """What is wrong with the log: entries that are missing, changed or out of the chain. Empty: it is whole.

    newest  a hash that somebody kept: it must be in the log. Without one, entries cut off at the end are noticed by the
            receipts of takedowns that stand in the store; whoever removes those too, unnoticed
    """
    problems: list[str] = []
    previous, seen = _FIRST, set()
    keys = [entry.key for entry in store.entries(_FOLDER)]
    for number, key in enumerate(keys):
        if key != _key(number):
            return [*problems, f"{_key(number)}: missing"]
        try:
            entry = _read(store, number)
        except BadShardError as err:
            return [*problems, str(err)]
        if entry.hash != entry.computed() or entry.number != number:
            problems.append(f"{key}: its content was changed")
        if entry.previous != previous:
            problems.append(f"{key}: does not follow the entry before it")
        previous = entry.hash
        seen.add(entry.hash)
    for receipt in store.entries(_RECEIPTS):
        if json.loads(store.read_bytes(receipt.key)).get("audit") not in seen:
            problems.append(f"{receipt.key}: its entry is not in the log: it was cut off or written anew")
    if newest and newest not in seen:
        problems.append(f"no entry has the hash {newest}: the log was cut off or written anew")
    return problems


def _read(store: Store, number: int) -> Entry:
    try:
        return Entry.model_validate_json(store.read_bytes(_key(number)))
    except (FileNotFoundError, ValidationError) as err:
        raise BadShardError(f"{_key(number)}: the entry can't be read: {err}") from err


def _key(number: int) -> str:
    return f"{_FOLDER}{number:08d}.json"

"""Ask again, before a release, whether the pictures of a version may still be used: people change their minds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from curation.errors import BadShardError
from curation.publish.export import kind_of
from curation.publish.parts import version_folder
from curation.receipt import digest
from curation.recipe import parse_recipe
from curation.store import Store
from curation.verdicts import Fault
from curation.web.consent import UNREACHABLE

REFUSALS = frozenset([Fault.ROBOTS_DISALLOWED, Fault.OPT_OUT_HEADER, Fault.OPT_OUT_TDM])
_GONE = frozenset([Fault.HTTP_404, Fault.HTTP_410])
_LISTED = 1000


class Refusal(BaseModel):
    """A picture whose host refuses by now, and the evidence."""

    model_config = ConfigDict(frozen=True)

    url: str
    reason: str
    evidence: str


class Asked(BaseModel):
    """What came of asking the hosts of a version's pictures."""

    model_config = ConfigDict(frozen=True)

    asked: int
    standing: int
    refused: dict[str, int]  # by reason
    gone: int  # 404 and 410
    unanswered: dict[str, int]  # any other failure: no refusal, and no consent
    refusals: tuple[Refusal, ...]  # the first 1,000
    created_at: str

    @property
    def n_refused(self) -> int:
        """Pictures that are refused."""
        return sum(self.refused.values())

    def told(self) -> str:
        """In a sentence."""
        why = "".join(f", {count} {reason}" for reason, count in sorted(self.refused.items()))
        rest = f"{self.gone} are gone, {sum(self.unanswered.values())} gave no answer"
        return f"{self.n_refused} of {self.asked} pictures asked for again are refused{why}; {rest}"


def recheck(store: Store, manifest: Mapping[str, Any], sample: int | None, *, keep_all: bool = False) -> Asked:
    """Ask the hosts by the rules of the download, no body is fetched; the answer is kept beside the version.

    sample    pictures to ask for, drawn from all of the version by its name; None: every one
    keep_all  return every refusal, not the first 1,000 that are kept
    raises    OutageError when the network is down, BadShardError for a version without metadata tables
    """
    download = parse_recipe(manifest["recipe"]).stages.download
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    refusals: list[Refusal] = []
    for url, reason, evidence in download.recheck(_urls(store, manifest, sample)):
        if reason in REFUSALS and evidence != UNREACHABLE:
            refused[reason] += 1
            refusals.append(Refusal(url=url, reason=reason, evidence=evidence or ""))
        else:
            counts[reason or ""] += 1
    gone = sum(counts.pop(fault, 0) for fault in _GONE)
    standing = counts.pop("", 0)
    asked = Asked(
        asked=standing + gone + counts.total() + refused.total(),
        standing=standing,
        refused=dict(refused),
        gone=gone,
        unanswered=dict(counts),
        refusals=tuple(refusals[:_LISTED]),
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    key = f"{_folder(manifest['recipe']['name'], manifest['version'])}{asked.created_at}.json"
    store.write_bytes(key.replace(":", ""), asked.model_dump_json(indent=1).encode())
    return asked.model_copy(update={"refusals": tuple(refusals)}) if keep_all else asked


def last_asked(store: Store, recipe_name: str, version: str) -> Asked | None:
    """The newest answer, None when nobody has asked."""
    keys = [entry.key for entry in store.entries(_folder(recipe_name, version))]
    return Asked.model_validate_json(store.read_bytes(max(keys))) if keys else None


def inherit(store: Store, recipe_name: str, old: str, new: str) -> None:
    """Take the newest answer over to a version that holds nothing but samples of another."""
    for entry in sorted(store.entries(_folder(recipe_name, old)), key=lambda entry: entry.key)[-1:]:
        name = entry.key.rpartition("/")[2]
        store.write_bytes(f"{_folder(recipe_name, new)}{name}", store.read_bytes(entry.key))


def _folder(recipe_name: str, version: str) -> str:
    return f"{version_folder(recipe_name, version)}/consent/"


def _urls(store: Store, manifest: Mapping[str, Any], sample: int | None) -> Iterator[str]:
    """URLs of the version's pictures, each once in a table; of a sample only the row groups that hold it are read."""
    parts = [part for part in manifest["parts"] if part["samples"]]
    total = sum(part["samples"] for part in parts)
    every = sample is None or sample >= total
    seed = int(digest("recheck", manifest["version"])[:16], 16)
    drawn = None if every else np.sort(np.random.default_rng(seed).choice(total, sample, replace=False))
    first = 0
    for part in parts:
        table_key = next((key for key in part["files"] if kind_of(key) == "metadata"), "")
        if not table_key:
            raise BadShardError(f"{manifest['version']} is published without metadata tables: nothing to ask for")
        with store.open_parquet(table_key) as table:
            for group in range(table.metadata.num_row_groups):
                n = table.metadata.row_group(group).num_rows
                rows = np.arange(n) if drawn is None else drawn[(drawn >= first) & (drawn < first + n)] - first
                if len(rows):
                    yield from dict.fromkeys(table.read_row_group(group, columns=["url"])["url"].take(rows).to_pylist())
                first += n

"""Compare what became of each pair of the demo crawl with what should have."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_AFTER_SCORE = frozenset(["dedup", "safety", "leakage", "publish"])
"""Stages that a sample reaches only when the model found its caption right; a model errs now and then."""


@dataclass
class Comparison:
    """Counts by outcome, and everything that is not as it should be.

    right, wrong and missed count true positives, false positives and false negatives of every outcome. What the model
    misjudged (similarity_low given or not given) is counted, yet no problem: its quality is measured elsewhere.
    """

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    misjudged: list[str] = field(default_factory=list)
    groups: int = 0

    @property
    def good(self) -> bool:
        """Whether every deterministic outcome is right."""
        return not self.problems

    def precision(self, outcome: str) -> float | None:
        """Share of those given this outcome that should have it; None when it was never given."""
        given = self.right[outcome] + self.wrong[outcome]
        return self.right[outcome] / given if given else None

    def recall(self, outcome: str) -> float | None:
        """Share of those that should have this outcome and have it; None when none should."""
        wanted = self.right[outcome] + self.missed[outcome]
        return self.right[outcome] / wanted if wanted else None

    def render(self) -> str:
        """A table of precision and recall by outcome, then the problems."""
        lines = [f"{'outcome':22} {'right':>6} {'wrong':>6} {'missed':>7} {'precision':>10} {'recall':>8}"]
        for outcome in sorted(self.right.keys() | self.wrong.keys() | self.missed.keys()):
            counts = f"{self.right[outcome]:6} {self.wrong[outcome]:6} {self.missed[outcome]:7}"
            lines.append(
                f"{outcome:22} {counts} {_share(self.precision(outcome)):>10} {_share(self.recall(outcome)):>8}"
            )
        lines.append(f"{self.groups} groups of copies, of each at most one picture kept")
        lines.append(f"{len(self.misjudged)} pairs misjudged by the similarity model")
        return "\n".join([*lines, *(f"NOT AS IT SHOULD BE: {problem}" for problem in self.problems)])


def compare(truth: Path, outcomes: Iterable[tuple[str, str, str, str]], archive: str = "warc") -> Comparison:
    """Compare outcomes with truth.jsonl.

    outcomes  url, text, page_url, and "kept" or a name of curation/verdicts.py, for every sample of the run
    archive   what the run read, warc or wat: some pairs show in one of them only
    """
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for url, text, page, outcome in outcomes:
        found[_key(url, text, page)].append(outcome)
    for given in found.values():
        given.sort()
    result = Comparison()
    groups: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in truth.read_text("utf-8").splitlines():
        pair: dict[str, Any] = json.loads(line)
        if pair["via"] not in ("both", archive):
            continue
        key = _key(pair["url"], pair["text"], pair["page_url"])
        given = found.get(key, [])
        outcome = given.pop() if given else "absent"
        if pair["group"]:
            groups[pair["group"]].append((f"{key}", outcome))
        _judge(result, f"{key}", outcome, pair)
    for key, given in found.items():
        for outcome in given:
            result.wrong[outcome] += 1
            result.problems.append(f"{key}: {outcome}, and the truth knows no such pair")
    result.groups = len(groups)
    for group, members in groups.items():
        _judge_group(result, group, [outcome for _, outcome in members])
    return result


def _judge(result: Comparison, key: str, outcome: str, pair: dict[str, Any]) -> None:
    expect = [pair["expect"]] if isinstance(pair["expect"], str) else pair["expect"]
    if outcome in expect:
        result.right[outcome] += 1
        return
    result.wrong[outcome] += 1
    result.missed["kept" if "kept" in expect else expect[0]] += 1
    line = f"{key}: {outcome}, expected {' or '.join(expect)}"
    reaches_model = pair["stage"] in _AFTER_SCORE or "kept" in expect
    if (outcome == "similarity_low" and reaches_model) or (outcome == "kept" and expect == ["similarity_low"]):
        result.misjudged.append(line)
    else:
        result.problems.append(line)


def _judge_group(result: Comparison, group: str, outcomes: list[str]) -> None:
    """Of the copies that passed the model exactly one is kept; a duplicate_pair was dropped before any model saw it."""
    reached = [outcome for outcome in outcomes if outcome in ("kept", "duplicate_sha256", "duplicate_phash")]
    kept = reached.count("kept")
    surplus = max(kept - 1, 0)
    result.right["kept"] -= surplus
    result.wrong["kept"] += surplus
    if kept == 1 or not reached:
        return
    result.problems.append(f"group {group}: {kept} kept of {len(outcomes)}, expected one")


def _key(url: str, text: str, page: str) -> tuple[str, str, str]:
    """Pairs are told apart by what a reader sees: control and zero-width characters and runs of space are not."""
    seen = "".join(character for character in unicodedata.normalize("NFC", text) if not _unseen(character))
    return url, re.sub(r"\s+", " ", seen).strip(), page


def _unseen(character: str) -> bool:
    return character == "\ufffd" or (unicodedata.category(character) in ("Cc", "Cf") and not character.isspace())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

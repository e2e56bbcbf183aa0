"""Compare what became of each pair of the demo crawl with what should have."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# similarity is judged by a trained model, right most of the time; what it lets pass may then turn out a duplicate
PROBABILISTIC = frozenset(["similarity_low", "kept", "duplicate_sha256", "duplicate_phash"])


@dataclass
class Comparison:
    """Counts by outcome, and everything that is not as it should be."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)  # given where it should not be
    missed: Counter[str] = field(default_factory=Counter)  # not given where it was the only right one
    problems: list[str] = field(default_factory=list)
    groups: int = 0

    @property
    def good(self) -> bool:
        """Whether every deterministic outcome is right."""
        return not self.problems

    def render(self) -> str:
        """A table of precision and recall by outcome, then the problems."""
        lines = [f"{'outcome':22} {'right':>6} {'precision':>10} {'recall':>8}"]
        for outcome in sorted(self.right | self.wrong | self.missed):
            right, wrong, missed = self.right[outcome], self.wrong[outcome], self.missed[outcome]
            precision = f"{right / (right + wrong):.3f}" if right + wrong else "-"
            recall = f"{right / (right + missed):.3f}" if right + missed else "-"
            lines.append(f"{outcome:22} {right:6} {precision:>10} {recall:>8}")
        lines.append(f"{self.groups} groups of copies, each with exactly one picture kept, or none")
        return "\n".join([*lines, *(f"NOT AS IT SHOULD BE: {problem}" for problem in self.problems)])


def compare(truth: Path, outcomes: Iterable[tuple[str, str, str, str]]) -> Comparison:
    """Compare outcomes (url, text, page_url, outcome) with truth.jsonl."""
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for url, text, page, outcome in outcomes:
        found[(url, text, page)].append(outcome)
    result = Comparison()
    kept: Counter[str] = Counter()
    grouped: set[str] = set()
    for line in truth.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        key = (pair["url"], pair["text"], pair["page_url"])
        got = found.pop(key, [])
        if pair["group"]:
            grouped.add(pair["group"])
            kept[pair["group"]] += got.count("kept")
        if len(got) != 1:
            result.problems.append(f"{key}: {len(got)} samples, expected one")
            continue
        _judge(result, key, got[0], pair["expect"])
    for key, more in found.items():
        result.problems.append(f"{key}: {', '.join(more)}, and the truth knows no such pair")
    result.groups = len(grouped)
    for group in sorted(grouped):
        if kept[group] > 1:
            result.problems.append(f"group {group}: {kept[group]} kept")
    return result


def _judge(result: Comparison, key: tuple[str, str, str], got: str, expect: list[str]) -> None:
    if got in expect:
        result.right[got] += 1
        return
    result.wrong[got] += 1
    if len(expect) == 1:
        result.missed[expect[0]] += 1
    if got not in PROBABILISTIC or not PROBABILISTIC & set(expect):
        result.problems.append(f"{key}: {got}, expected {' or '.join(expect)}")

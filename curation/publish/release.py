"""What stops a release: gates over a finished version, each with what it measured and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from curation import tombstones
from curation.errors import BadShardError, ConfigError
from curation.publish.consent import last_asked
from curation.publish.export import any_match, kind_of
from curation.publish.parts import Part, Plan, manifest_key, version_folder
from curation.publish.settings import HumanEvaluation, Recheck, Release
from curation.review.report import judged
from curation.store import Store

HUMAN = "human_evaluation"
RECHECK = "recheck"
_OPT_OUTS = {"page_opt_out": "True"}
_SMALL = 1e-4  # share that stands for none: the index divides by shares


class Check(BaseModel):
    """One gate of a release and what came of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    reason: str


def checks(release: Release, quality: dict[str, Any], before: dict[str, Any] | None) -> list[Check]:
    """Judge a version by its quality report and by that of the version before (None: there is none)."""
    n = quality["samples"]
    flags = {name: Counter(counts) for name, counts in quality["flags"].items()}
    leaks = flags["leak_kind"].total() if "leak_kind" in flags else None
    unsafe = flags["safety_tag"]["unsafe"] if "safety_tag" in flags else None
    opted_out = flags.get("page_opt_out", Counter())["True"] + flags.get("consent", Counter()).total()
    share = (unsafe or 0) / n if n else 0.0
    found = [
        Check(name="conservation", passed=True, reason="every candidate is kept or dropped for a counted reason"),
        Check(
            name="leakage",
            passed=(leaks or 0) <= release.max_leaks,
            reason="not measured: the recipe has no leakage stage"
            if leaks is None
            else f"{leaks} kept samples hit an evaluation set, at most {release.max_leaks} may",
        ),
        Check(
            name="unsafe_share",
            passed=share <= release.max_unsafe_share,
            reason="not measured: the recipe has no safety stage"
            if unsafe is None
            else f"{share:.2%} of the samples are tagged unsafe, at most {release.max_unsafe_share:.2%} may",
        ),
        Check(
            name="opt_out",
            passed=opted_out <= release.max_opt_outs,
            reason=f"{opted_out} kept samples refuse use for AI, at most {release.max_opt_outs} may; "
            "no kept sample is under a tombstone",
        ),
        _drift(release, quality, before),
    ]
    if release.recheck:
        found.append(Check(name=RECHECK, passed=False, reason="the hosts are not asked yet: curation recheck"))
    if wanted := release.human_evaluation:
        asked = f"{wanted.min_raters} raters, means of {wanted.min_mean_rating:g}, alphas of {wanted.min_alpha:g}"
        found.append(Check(name=HUMAN, passed=False, reason=f"not rated yet; it takes {asked}: curation review"))
    return found


def _drift(release: Release, quality: dict[str, Any], before: dict[str, Any] | None) -> Check:
    if before is None:
        return Check(name="drift", passed=True, reason="there is no version before to compare with")
    if min(quality["samples"], before["samples"]) < release.drift_from_samples:
        least = f"fewer than {release.drift_from_samples} samples in this version or the one before"
        return Check(name="drift", passed=True, reason=f"not judged: {least}")
    found = drift(quality, before)
    over = {name: index for name, index in found.items() if index > release.max_drift}
    if over:
        told = ", ".join(f"{name} {index:.2f}" for name, index in over.items())
        return Check(name="drift", passed=False, reason=f"moved by more than {release.max_drift:g}: {told}")
    largest = max(found.items(), key=lambda item: item[1], default=("nothing", 0.0))
    return Check(
        name="drift", passed=True, reason=f"most in {largest[0]}: {largest[1]:.3f}, at most {release.max_drift:g} may"
    )


def drift(quality: dict[str, Any], before: dict[str, Any]) -> dict[str, float]:
    """Population stability index of every distribution that both versions have, the largest first.

    Sum over bins of (p - q) ln(p / q); histograms are taken in ten neighbouring bins. Below 0.1 is no shift to speak
    of, above 0.25 a major one.
    """
    found = {}
    for name, histogram in quality["histograms"].items():
        if name in before["histograms"]:
            found[name] = _stability(_tenths(histogram["counts"]), _tenths(before["histograms"][name]["counts"]))
    for name, counts in quality["groups"].items():
        if name in before["groups"] and name != "domain":  # another crawl has other hosts
            names = sorted({*counts, *before["groups"][name]})
            found[name] = _stability(
                [counts.get(value, 0) for value in names], [before["groups"][name].get(value, 0) for value in names]
            )
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _tenths(counts: list[int]) -> list[int]:
    step = max(1, len(counts) // 10)
    return [sum(counts[at : at + step]) for at in range(0, len(counts), step)]


def _stability(now: list[int], before: list[int]) -> float:
    if not sum(now) or not sum(before):
        return 0.0
    pairs = zip(now, before, strict=True)
    shares = [(max(a / sum(now), _SMALL), max(b / sum(before), _SMALL)) for a, b in pairs if a or b]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def recheck(store: Store, plan: Plan, parts: Iterable[Part]) -> None:
    """Ask again the tombstones that came after the plan. Raises BadShardError when they mean a sample of it."""
    fresh = sorted(set(tombstones.keys(store)) - set(plan.tombstones))
    if not fresh or not (matcher := tombstones.read(store, fresh)):
        return
    for part in parts:
        metadata = next((file.key for file in part.files if kind_of(file.key) == "metadata"), "")
        if part.samples and (not metadata or any_match(store, metadata, matcher)):
            raise BadShardError(
                f"version {plan.version}: samples were taken down since it was planned; plan a new one: run again"
            )


class Approval(BaseModel):
    """Who let a version through, and which failed gates were waived for what reason."""

    model_config = ConfigDict(frozen=True)

    by: str
    waived: dict[str, str] = {}
    note: str = ""
    created_at: str = ""


def held_by(store: Store, manifest: dict[str, Any]) -> list[str]:
    """Why `latest` may not move to the version; empty: nothing stops it.

    What people say comes after the manifest: approval and ratings are read as they stand now.
    """
    approval = read_approval(store, manifest["recipe"]["name"], manifest["version"])
    waived = approval.waived if approval else {}
    held = [
        f"{check.name}: {check.reason}"
        for check in standing_checks(store, manifest)
        if not check.passed and check.name not in waived
    ]
    if manifest["recipe"]["publish"]["release"]["approval"] and approval is None:
        held.append("approval: nobody has approved this version yet")
    return held


def standing_checks(store: Store, manifest: dict[str, Any]) -> list[Check]:
    """The checks of a version's manifest, those judged anew that are about what came after it."""
    judges = {HUMAN: _rated, RECHECK: _asked}
    found = [Check.model_validate(check) for check in manifest["checks"]]
    return [judges[check.name](store, manifest) if check.name in judges else check for check in found]


def _asked(store: Store, manifest: dict[str, Any]) -> Check:
    wanted = Recheck.model_validate(manifest["recipe"]["publish"]["release"][RECHECK])
    asked = last_asked(store, manifest["recipe"]["name"], manifest["version"])
    if asked is None:
        return Check(name=RECHECK, passed=False, reason="the hosts are not asked yet: curation recheck")
    share = asked.n_refused / asked.asked if asked.asked else 0.0
    answered = not asked.asked or sum(asked.unanswered.values()) < asked.asked
    reason = f"{asked.told()}; at most {wanted.max_refused_share:.2%} may be refused"
    return Check(name=RECHECK, passed=answered and share <= wanted.max_refused_share, reason=reason)


def _rated(store: Store, manifest: dict[str, Any]) -> Check:
    wanted = HumanEvaluation.model_validate(manifest["recipe"]["publish"]["release"][HUMAN])
    passed, reason = judged(store, manifest["recipe"]["name"], manifest["version"], wanted)
    return Check(name=HUMAN, passed=passed, reason=reason)


def held_back(store: Store, manifest: str) -> list[str]:
    """Why the version of this manifest (its key; "" for none) is not released; empty: nothing holds it."""
    if not manifest:
        return []
    return held_by(store, json.loads(store.read_bytes(manifest)))


def read_approval(store: Store, recipe_name: str, version: str) -> Approval | None:
    """The approval of a version, None when there is none."""
    try:
        return Approval.model_validate_json(store.read_bytes(_approval_key(recipe_name, version)))
    except FileNotFoundError:
        return None


def approve(
    store: Store, recipe_name: str, version: str, by: str, waive: dict[str, str] | None = None, note: str = ""
) -> Approval:
    """Note who approves a version; what was waived before stays waived.

    raises  ConfigError for a version, a name or a gate that there is not
    """
    if not by.strip():
        raise ConfigError("--by: name who approves")
    try:
        manifest = json.loads(store.read_bytes(manifest_key(recipe_name, version)))
    except FileNotFoundError:
        raise ConfigError(f"version {version!r} of {recipe_name} is not published") from None
    names = [check["name"] for check in manifest["checks"]]
    for name, why in (waive or {}).items():
        if name not in names or not why.strip():
            raise ConfigError(f"--waive {name}={why}: give one of {', '.join(names)} and a reason")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    before = read_approval(store, recipe_name, version)
    waived = (before.waived if before else {}) | (waive or {})
    approval = Approval(by=by, waived=waived, note=note, created_at=created)
    store.write_bytes(_approval_key(recipe_name, version), approval.model_dump_json().encode())
    return approval


def _approval_key(recipe_name: str, version: str) -> str:
    return f"{version_folder(recipe_name, version)}/approval.json"

"""What the raters found: means with intervals, agreement, strata, the worst samples; and whether it will do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from curation.publish.settings import HumanEvaluation
from curation.review.agreement import alpha, coincidences, interval, resampled
from curation.review.ratings import NAMES, Rating, read_ratings
from curation.review.sets import ReviewSet, folder_of, list_sets, read_set
from curation.store import Store

_VALUES = 5
_WORST = 20


def report(found: ReviewSet, ratings: list[Rating]) -> dict[str, Any]:
    """Report on a review set.

    A mean is that of the version: each item stands for its stratum's samples, shared among the stratum's rated items.
    Its interval resamples items over all strata, which is wider rather than narrower than within each. An item's rating
    is the mean of its raters'.

    ratings  those that count: ratings.read_ratings
    returns  plain data: items, rated, raters ({name: ratings}), covered (share of the version's samples whose stratum
             has a rated item), dimensions ({name: mean, mean_95, alpha, alpha_95, agreed, items, ratings, counts}),
             strata ({name: samples, items, rated, means}), worst (items with the lowest means, and comments). What
             can't be told is null
    """
    of_item: dict[int, list[Rating]] = {}
    for rating in ratings:
        of_item.setdefault(rating.item, []).append(rating)
    strata: dict[str, Any] = {
        name: {
            "samples": samples,
            "items": sum(item.stratum == name for item in found.items),
            "rated": sum(item.stratum == name and item.number in of_item for item in found.items),
        }
        for name, samples in found.strata.items()
    }
    total = sum(found.strata.values())
    dimensions = {name: _dimension(found, of_item, name) for name in NAMES}
    for name, stratum in strata.items():
        stratum["means"] = {
            dimension: _mean_of(
                [of_item[i.number] for i in found.items if i.stratum == name and i.number in of_item], dimension
            )
            for dimension in NAMES
        }
    raters = sorted({rating.rater for rating in ratings})
    return {
        "recipe": found.recipe,
        "version": found.version,
        "set": found.name,
        "sampling": found.sampling.model_dump(mode="json"),
        "items": len(found.items),
        "rated": len(of_item),
        "raters": {name: sum(rating.rater == name for rating in ratings) for name in raters},
        "covered": sum(stratum["samples"] for stratum in strata.values() if stratum["rated"]) / total,
        "dimensions": dimensions,
        "strata": strata,
        "worst": _worst(found, of_item),
    }


def write_report(store: Store, found: ReviewSet) -> dict[str, Any]:
    """Report on the ratings of now, and keep it beside the version: report.json in the set's folder."""
    made = report(found, read_ratings(store, found))
    made["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps(made, indent=1, ensure_ascii=False)
    store.write_bytes(
        f"{folder_of(found.recipe, found.version, found.name)}/report.json", text.encode(errors="replace")
    )
    return made


def summary(found: dict[str, Any]) -> str:
    """A report in one line: who rated how much, and the mean and agreement of each dimension."""

    def told(name: str, one: dict[str, Any]) -> str:
        mean, agreement = one["mean"], one["alpha"]
        spelt = "not rated" if mean is None else f"{mean:.2f}"
        return f"{name} {spelt}" + ("" if agreement is None else f" (alpha {agreement:.2f})")

    means = ", ".join(told(name, one) for name, one in found["dimensions"].items())
    return f"{len(found['raters'])} raters on {found['rated']} of {found['items']} items: {means}"


def judged(store: Store, recipe: str, version: str, wanted: HumanEvaluation) -> tuple[bool, str]:
    """Whether the ratings of now meet what a release asks for, and why: of the version's largest review set."""
    sets = [read_set(store, recipe, version, name) for name in list_sets(store, recipe, version)]
    if not sets:
        return False, f"no review set is drawn: curation review sample {recipe} {version}"
    largest = max(sets, key=lambda one: len(one.items))
    return judge(report(largest, read_ratings(store, largest)), wanted)


def judge(found: dict[str, Any], wanted: HumanEvaluation) -> tuple[bool, str]:
    """Whether a report meets what a release asks for, and why, each shortfall named."""
    short = []
    if len(found["raters"]) < wanted.min_raters:
        short.append(f"{len(found['raters'])} raters, at least {wanted.min_raters} wanted")
    least_items = min(wanted.min_items, found["items"])
    for name, one in found["dimensions"].items():
        if one["shared_items"] < least_items:
            short.append(f"{name}: {one['shared_items']} items rated by two, at least {least_items} wanted")
        elif one["mean"] < wanted.min_mean_rating:
            short.append(f"{name}: mean {one['mean']:.2f}, at least {wanted.min_mean_rating:g} wanted")
        elif not one["agreed"] and (one["alpha"] is None or one["alpha"] < wanted.min_alpha):
            told = "none" if one["alpha"] is None else f"{one['alpha']:.2f}"
            short.append(f"{name}: agreement alpha {told}, at least {wanted.min_alpha:g} wanted")
    if short:
        return False, "; ".join(short)
    means = ", ".join(f"{name} {one['mean']:.2f}" for name, one in found["dimensions"].items())
    return True, f"{len(found['raters'])} raters on {found['rated']} items: {means}"


def _dimension(found: ReviewSet, of_item: dict[int, list[Rating]], name: str) -> dict[str, Any]:
    values = [(item, [v for rating in of_item.get(item.number, ()) if (v := getattr(rating, name)) is not None])
              for item in found.items]  # fmt: skip
    given = [(item, scores) for item, scores in values if scores]
    counts = np.zeros((len(given), _VALUES), int)
    for row, (_, scores) in enumerate(given):
        counts[row] = np.bincount(np.array(scores) - 1, minlength=_VALUES)
    told: dict[str, Any] = {
        "items": len(given),
        "shared_items": int((counts.sum(1) > 1).sum()),
        "ratings": int(counts.sum()),
        "counts": {str(value + 1): int(counts[:, value].sum()) for value in range(_VALUES)},
    }
    if not given:
        return told | {"mean": None, "mean_95": None, "alpha": None, "alpha_95": None, "agreed": False}
    rated: dict[str, int] = {}
    for item, _ in given:
        rated[item.stratum] = rated.get(item.stratum, 0) + 1
    weights = np.array([found.strata[item.stratum] / rated[item.stratum] for item, _ in given])
    means = np.array([np.mean(scores) for _, scores in given])
    drawn = resampled(len(given), found.sampling.seed)
    pairs = coincidences(counts)
    agreement = float(alpha(pairs.sum(0)))
    return told | {
        "mean": float(means @ weights / weights.sum()),
        "mean_95": interval((drawn @ (means * weights)) / (drawn @ weights)),
        "alpha": agreement if np.isfinite(agreement) else None,
        "alpha_95": interval(alpha(np.tensordot(drawn, pairs, 1))),
        "agreed": bool(pairs.sum() > 0 and pairs.sum() == np.trace(pairs.sum(0))),  # no pair differs
    }


def _mean_of(items: list[list[Rating]], name: str) -> float | None:
    means = [np.mean(v) for ratings in items if (v := [s for r in ratings if (s := getattr(r, name)) is not None])]
    return float(np.mean(means)) if means else None


def _worst(found: ReviewSet, of_item: dict[int, list[Rating]]) -> list[dict[str, Any]]:
    told = []
    for number, ratings in of_item.items():
        means = {name: _mean_of([ratings], name) for name in NAMES}
        known = [mean for mean in means.values() if mean is not None]
        if known:
            comments = [rating.comment for rating in ratings if rating.comment]
            mean = float(np.mean(known))
            sample = found.items[number].sample_id
            told.append({"item": number, "sample_id": sample, "mean": mean, **means, "comments": comments})
    return sorted(told, key=lambda one: (one["mean"], one["item"]))[:_WORST]

"""Calibrate: the threshold of a model, from the share to be kept of a dump or from labelled pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import BadShardError, ConfigError
from curation.recipe import Recipe
from curation.reports.chart import threshold_chart
from curation.reports.intervals import Labelled
from curation.runner import read_outcomes
from curation.store import Store

_CURVE = 200  # points of a curve


@dataclass(frozen=True)
class Threshold:
    """A threshold for one group of samples, and what it does to those it was found on."""

    group: str
    threshold: float
    samples: int
    kept: float  # share at or above the threshold
    precision: float | None = None
    precision_95: tuple[float, float] | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Thresholds by group, and a chart of how they came about."""

    column: str
    thresholds: list[Threshold]
    svg: str
    auc: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return {"column": self.column, "auc": self.auc, "thresholds": [vars(one) for one in self.thresholds]}


def scores_of_dump(
    store: Store, recipe: Recipe, dump: str, shards: Sequence[int], column: str, by: str
) -> dict[str, np.ndarray]:
    """Measured values of a column by group, of the shards that are done, whatever gates made of the samples.

    raises   ConfigError where no shard has them
    """
    found: dict[str, list[np.ndarray]] = {}
    for shard in shards:
        try:
            for batch in read_outcomes(store, recipe, dump, shard, [column, *([by] if by else [])]):
                values = batch.column(column).to_numpy(zero_copy_only=False).astype(float)
                groups = np.array(batch.column(by).to_pylist() if by else [""] * len(values), object)
                for group in set(groups[np.isfinite(values)]):
                    found.setdefault(str(group), []).append(values[(groups == group) & np.isfinite(values)])
        except BadShardError:  # not done yet: what is done is enough to go by
            continue
    if not found:
        raise ConfigError(f"{dump}: no shard of recipe {recipe.name} is done with {column}: run the recipe first")
    return {group: np.concatenate(parts) for group, parts in sorted(found.items())}


def calibrate_keep(values: Mapping[str, np.ndarray], keep: float, column: str) -> Calibration:
    """Thresholds that keep this share of each group, at least: samples equal to the threshold stay.

    keep     0 < keep <= 1
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep}: give a share above 0 and at most 1")
    thresholds, curves = [], {}
    for group, scores in values.items():
        ordered = np.sort(scores)[::-1]
        at = float(ordered[math.ceil(keep * len(ordered)) - 1])
        thresholds.append(Threshold(group, at, len(ordered), float((ordered >= at).mean())))
        picks = np.linspace(0, len(ordered) - 1, min(_CURVE, len(ordered))).astype(int)
        curves[group or "all"] = [(float(ordered[i]), (i + 1) / len(ordered)) for i in picks]
    named = {group or "all": scores for group, scores in values.items()}
    marks = {one.group or "all": one.threshold for one in thresholds}
    title = f"{column}: thresholds that keep {keep:.1%} (bars: samples; line: share at or above)"
    chart = threshold_chart(title, column, named, curves, marks)
    return Calibration(column, thresholds, chart)


def calibrate_precision(scores: np.ndarray, labels: np.ndarray, precision: float, column: str) -> Calibration:
    """The lowest threshold above which this share of the labelled pairs is right.

    raises   ConfigError where no threshold reaches it
    """
    labelled = Labelled(scores, labels)
    point = labelled.of_precision(precision)
    if point is None:
        raise ConfigError(f"--precision {precision}: no threshold reaches it on these {len(scores)} pairs")
    every = np.linspace(float(scores.min()), float(scores.max()), _CURVE)
    points = [labelled.at(float(value)) for value in every]
    curves = {
        "precision": [(one.threshold, one.precision) for one in points],
        "recall": [(one.threshold, one.recall) for one in points],
    }
    values = {"right pairs": scores[labels], "wrong pairs": scores[~labels]}
    chart = threshold_chart(
        f"{column}: precision {precision:.1%} from {point.threshold:.4f} on",
        column,
        values,
        curves,
        {"": point.threshold},
    )
    described = point.to_json()
    found = Threshold(
        "",
        point.threshold,
        point.total,
        point.taken / point.total,
        point.precision,
        described["precision_95"],
        point.recall,
    )
    return Calibration(column, [found], chart, labelled.auc)


def score_pairs(path: Path, model: str, pretrained: str | None, device: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of a JSONL file: lines of image (path, relative to the file), text and label; or score, label.

    raises   ConfigError naming the line
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append((row["label"], row.get("score"), row.get("image"), row.get("text")))
            if not isinstance(row["label"], (bool, int)) or (
                row.get("score") is None and not (row["image"] and row["text"])
            ):
                raise KeyError("label is true or false, beside it score, or image and text")
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: expected image, text and label, or score and label: {error}"
            ) from error
    labels = np.array([bool(label) for label, *_ in rows])
    if not labels.any() or labels.all():
        raise ConfigError(f"{path}: both right and wrong pairs are needed, found {labels.sum()} of {len(labels)} right")
    if all(score is not None for _, score, *_ in rows):
        return np.array([float(score) for _, score, *_ in rows]), labels
    from curation.models.clip import BATCH, load_clip

    clip = load_clip(model, pretrained, device=device)
    scores = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        images = clip.embed_images([_picture(path.parent / str(image)) for _, _, image, _ in part])
        scores.append(np.einsum("nd,nd->n", images, clip.embed_texts([str(text) for *_, text in part])))
    return np.concatenate(scores), labels


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise ConfigError(f"{path}: no picture that can be read: {error}") from error

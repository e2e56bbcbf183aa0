"""Calibrate: the threshold of a model, from a share to keep, from labelled pairs, or from unrelated pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import BadShardError, ConfigError
from curation.evalsets import SPACE_KEY, Describe, Item, items_of, pixels_of
from curation.images.decode import Undecodable
from curation.joins.cosine import most_alike
from curation.recipe import Recipe
from curation.reports.chart import threshold_chart
from curation.reports.intervals import Labelled, wilson
from curation.runner import read_outcomes
from curation.schema import COLUMNS
from curation.store import Store

_CURVE = 200  # points of a curve
_PICTURES = 256  # described at a time
_NEAREST = 5


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

    raises   ConfigError where no shard has them, or the recipe does not measure such numbers
    """
    _check_measured(recipe, column, "--column")
    if not (pa.types.is_floating(COLUMNS[column].type) or pa.types.is_integer(COLUMNS[column].type)):
        raise ConfigError(f"--column {column}: it holds {COLUMNS[column].type}, no numbers")
    if by:
        _check_measured(recipe, by, "--by")
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


def _check_measured(recipe: Recipe, column: str, option: str) -> None:
    if column not in COLUMNS:
        raise ConfigError(f"{option} {column}: unknown column; docs/columns.md lists them")
    stage = recipe.stage(COLUMNS[column].producer)
    if stage is None or column not in stage.produces.names:
        raise ConfigError(f"{option} {column}: recipe {recipe.name} does not measure it")


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

    precision  0 < precision <= 1
    raises     ConfigError where no threshold reaches it
    """
    if not 0 < precision <= 1:
        raise ConfigError(f"--precision {precision}: give a share above 0 and at most 1")
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


@dataclass(frozen=True)
class LeakageThreshold:
    """A cosine from which a picture is taken for an item of an evaluation set, and what it does to unrelated ones."""

    evalset: str
    space: str
    embedding_cosine: float
    pictures: int  # unrelated ones that it was set on
    checked: int  # others, that it was not set on
    false_positives: int  # of these
    false_positive_rate_95: tuple[float, float]
    nearest: list[tuple[str, str, float]]  # picture, item, cosine: look whether they are unrelated in truth
    svg: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return {name: value for name, value in vars(self).items() if name != "svg"}


def calibrate_leakage(
    store: Store, evalset: str, unrelated: Path, describe: Describe, space: str, rate: float
) -> LeakageThreshold:
    """The smallest cosine that at most this share of unrelated pictures reaches with any item of an evaluation set.

    Scored as DataComp scores: the largest cosine with all items. Set on every second picture, checked on the others.

    evalset    name of a set that is indexed with a descriptor
    unrelated  pictures of the kind that will be judged, none of them an item's copy; any form that can be indexed
    describe   the descriptor, in `space`
    rate       0 < rate < 1
    raises     ConfigError where the set is in another space, or there are too few pictures to tell such a rate
    """
    if not 0 < rate < 1:
        raise ConfigError(f"--rate {rate}: give a share of unrelated pictures above 0 and below 1")
    names, items = _described_items(store, evalset, space)
    pictures, best, where = [], [], []
    readable = (item for item in items_of(unrelated) if item.image is not None)
    while batch := list(islice(readable, _PICTURES)):
        vectors = describe([_pixels(item) for item in batch]).astype(np.float16)
        nearest, cosine = most_alike(vectors, items)
        pictures += [item.name for item in batch]
        best.append(cosine)
        where.append(nearest)
    cosines, nearest = (np.concatenate([*parts, np.empty(0)]) for parts in (best, where))
    set_on, checked = cosines[::2], cosines[1::2]
    if len(set_on) * rate < 1:
        raise ConfigError(
            f"{unrelated}: {len(pictures)} pictures, half of them to set the threshold on; "
            f"a rate of {rate:g} needs {math.ceil(2 / rate)}"
        )
    # the stage takes what reaches the cosine: just above the first that must not be taken
    first_out = float(np.sort(set_on)[::-1][int(len(set_on) * rate)])
    threshold = min(1.0, (math.floor(first_out * 10_000) + 1) / 10_000)
    wrong = int((checked >= threshold).sum())
    largest = np.argsort(-cosines, kind="stable")[:_NEAREST]
    every = np.linspace(float(cosines.min()), float(cosines.max()), _CURVE)
    curve = {"unrelated at or above": [(float(value), float((cosines >= value).mean())) for value in every]}
    title = f"{evalset}: largest cosine of unrelated pictures; {rate:.2%} from {threshold:.4f} on"
    return LeakageThreshold(
        evalset,
        space,
        threshold,
        len(set_on),
        len(checked),
        wrong,
        wilson(wrong, len(checked)),
        [(pictures[at], names[int(nearest[at])], round(float(cosines[at]), 4)) for at in largest],
        threshold_chart(title, "cosine", {"unrelated pictures": cosines}, curve, {"": threshold}),
    )


def _described_items(store: Store, evalset: str, space: str) -> tuple[list[str], np.ndarray]:
    """Names and embeddings, float16 (n, d), of the items that have one."""
    try:
        key = store.read_bytes(f"evalsets/{evalset}/current").decode()
    except FileNotFoundError:
        raise ConfigError(
            f"no evaluation set {evalset!r} in {store.root}: curation index-evalset {evalset} .."
        ) from None
    with store.open_parquet(key) as file:
        found = (file.schema_arrow.metadata or {}).get(SPACE_KEY, b"").decode()
        if found != space:
            raise ConfigError(
                f"evaluation set {evalset} is embedded in {found or 'none'!r}, the pictures would be in {space!r}: "
                "index it with the same model or descriptor"
            )
        table = file.read(["item", "embedding"])
    table = table.filter(pc.is_valid(table["embedding"])).combine_chunks()
    if not len(table):
        raise ConfigError(f"evaluation set {evalset} has no picture")
    return table["item"].to_pylist(), np.asarray(table["embedding"].chunk(0).flatten()).reshape(len(table), -1)


def score_pairs(path: Path, model: str, pretrained: str | None, device: str = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of a JSONL file: lines of image (path, relative to the file), text and label; or score, label.

    raises   ConfigError naming the line
    """
    rows = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append((row["label"], row.get("score"), row.get("image"), row.get("text")))
            if not isinstance(row["label"], (bool, int)) or (
                row.get("score") is None and not (row["image"] and row["text"])
            ):
                raise ValueError("label is true or false, beside it score, or image and text")
            if row.get("score") is not None and not math.isfinite(row["score"]):
                raise ValueError(f"score is {row['score']}")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: expected image, text and label, or score and label: {error}"
            ) from error
    labels = np.array([bool(label) for label, *_ in rows])
    if not labels.any() or labels.all():
        raise ConfigError(
            f"{path}: both right and wrong pairs are needed, found {int(labels.sum())} of {len(labels)} right"
        )
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


def _pixels(item: Item) -> np.ndarray:
    try:
        return pixels_of(item.image or b"")
    except Undecodable as error:
        raise ConfigError(f"{item.name}: no picture that can be read: {error}") from error


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise ConfigError(f"{path}: no picture that can be read: {error}") from error

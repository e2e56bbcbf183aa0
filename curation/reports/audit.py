"""Bias audit: whom and what the filters let through, by language, domain, concept, style and resolution."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import yaml

from curation.errors import BadShardError, ConfigError
from curation.gates import Gate
from curation.recipe import Recipe
from curation.reports.intervals import wilson
from curation.runner import read_outcomes
from curation.schema import COLUMNS
from curation.store import Store
from curation.verdicts import Fault
from curation.web.urls import hostname

KEPT = ""
OTHERS = "(others)"
_LARGEST = 20_000  # groups of a dimension held between shards; the rest is counted as OTHERS
_SHOWN = 40  # groups of a dimension on the page and in the JSON
_STEPS = 10  # looser bounds that are tried for each gate
_SIDES = (64, 128, 200, 300, 512, 1024)  # bounds of the groups of resolution [px]
STYLES = {
    "photograph": ("a photo", "a photograph of people", "a photograph of a place"),
    "drawing or painting": ("a drawing", "a painting", "an illustration", "a cartoon"),
    "diagram, chart or map": ("a diagram", "a chart with numbers", "a map"),
    "text or screenshot": ("a page of text", "a screenshot of a computer", "a scanned document"),
    "logo or icon": ("a logo", "an icon on a plain background"),
}


@dataclass
class Group:
    """Samples that share a value: how many there were and at which filter they were dropped."""

    name: str
    reasons: Counter[str] = field(default_factory=Counter)  # KEPT for those that stayed

    @property
    def samples(self) -> int:
        """All of them."""
        return self.reasons.total()

    @property
    def kept(self) -> int:
        """Those that every filter let through."""
        return self.reasons[KEPT]


@dataclass
class Loosened:
    """A numeric gate, and whom a looser bound would let pass this gate; later gates would still judge them."""

    reason: str
    column: str
    bound: str
    step: float
    counts: list[Counter[tuple[str, str]]] = field(default_factory=lambda: [Counter() for _ in range(_STEPS)])


class Audit:
    """Counts of samples by dimension, group and outcome; they add up over shards."""

    def __init__(self, recipe: Recipe, concepts: Mapping[str, Sequence[str]] | None = None) -> None:
        self.recipe = recipe
        self.dump = ""
        self.shards = 0
        self.total = Group("all")
        self.dimensions: dict[str, dict[str, Group]] = {}
        self.members: dict[str, Group] = {}  # samples that are in any group of a dimension: what its groups are against
        self.loosened = [Loosened(*described) for described in _numeric_gates(recipe)]
        self.style_model = ""
        self._styles: tuple[list[str], np.ndarray] | None = None
        self._concept_of: dict[str, list[str]] = {}
        for concept, words in (concepts or default_concepts()).items():
            for word in words:
                self._concept_of.setdefault(word.lower(), []).append(concept)

    def see_styles(self, device: str = "auto") -> None:
        """Tell styles apart by CLIP from now on: the nearest of STYLES' captions to the stored image embedding."""
        from curation.models.clip import load_clip

        score = self.recipe.stages.score
        if score is None:
            raise ConfigError(
                f"recipe {self.recipe.name} has no score stage: there are no embeddings to tell styles by"
            )
        clip = load_clip(score.english.model, score.english.pretrained, device=device)
        names = [style for style, captions in STYLES.items() for _ in captions]
        vectors = clip.embed_texts([caption for captions in STYLES.values() for caption in captions])
        self._styles, self.style_model = (names, vectors), clip.identity

    def columns(self) -> list[str]:
        """Columns that `add` reads."""
        wanted = ["url", "text", "partition", "language", "min_side", "original_format"]
        wanted += [one.column for one in self.loosened]
        wanted += [gate.by for _, gate in self._gates() if gate.by]
        return list(dict.fromkeys([*wanted, *(["img_emb"] if self._styles else [])]))

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of outcomes with `columns`."""
        reasons = [_filter_of(reason) for reason in batch.column("reason").to_pylist()]
        self.total.reasons.update(reasons)
        rows = dict(self._groups(batch))
        for dimension, groups in rows.items():
            known = self.dimensions.setdefault(dimension, {})
            members = self.members.setdefault(dimension, Group(dimension))
            members.reasons.update(reason for of_row, reason in zip(groups, reasons, strict=True) if of_row)
            pairs = Counter((name, reason) for of_row, reason in zip(groups, reasons, strict=True) for name in of_row)
            for (name, reason), count in pairs.items():
                known.setdefault(name, Group(name)).reasons[reason] += count
        for loosened, (_, gate) in zip(self.loosened, self._gates(), strict=True):
            self._loosen(loosened, gate, batch, reasons, rows)

    def close_shard(self) -> None:
        """Bound what is held: of a dimension with very many groups the smallest become one."""
        self.shards += 1
        for groups in self.dimensions.values():
            if len(groups) > _LARGEST:
                others = groups.setdefault(OTHERS, Group(OTHERS))
                for group in sorted(groups.values(), key=lambda one: -one.samples)[_LARGEST:]:
                    if group is not others:
                        others.reasons.update(groups.pop(group.name).reasons)

    def filters(self) -> list[str]:
        """What dropped at least one sample, in the order of the pipeline."""
        order: list[str] = []
        for stage in self.recipe.stage_names:
            order += [f"{stage} fault", *(str(verdict) for verdict, _ in self.recipe.gates_after(stage))]
        found = set(self.total.reasons) - {KEPT}
        known = [name for name in dict.fromkeys(order) if name in found]
        return known + sorted(found - set(known))

    def to_json(self) -> dict[str, Any]:
        """Plain data for the page and the UI."""
        filters = self.filters()
        return {
            "recipe": self.recipe.name,
            "dump": self.dump,
            "shards": self.shards,
            "filters": filters,
            "style_model": self.style_model,
            "all": _described(self.total, filters, self.total, 1),
            "dimensions": {
                dimension: self._dimension(dimension, groups, filters)
                for dimension, groups in self.dimensions.items()
                if groups
            },
            "thresholds": [_loosened_json(one) for one in self.loosened if self.total.reasons[one.reason]],
        }

    def _dimension(self, dimension: str, groups: dict[str, Group], filters: list[str]) -> dict[str, Any]:
        members = self.members[dimension]
        largest = sorted(groups.values(), key=lambda group: (-group.samples, group.name))
        shown = largest[:_SHOWN]
        if largest[_SHOWN:]:
            rest = Group(OTHERS)
            for group in largest[_SHOWN:]:
                rest.reasons.update(group.reasons)
            shown.append(rest)
        return {
            "all": _described(members, filters, members, 1),
            "groups": [_described(group, filters, members, len(shown)) for group in shown],
        }

    def _groups(self, batch: pa.RecordBatch) -> Iterable[tuple[str, list[tuple[str, ...]]]]:
        """Dimensions with the groups of each row; a row without a value is in none."""
        languages = batch.column("language").to_pylist()
        yield "language", [(language or "(none)",) for language in languages]
        yield "domain", [(hostname(url) or "(none)",) for url in batch.column("url").to_pylist()]
        english = [partition == "en" for partition in batch.column("partition").to_pylist()]
        texts = batch.column("text").to_pylist()
        yield (
            "concept in English captions",
            [self._concepts(text) if is_english else () for text, is_english in zip(texts, english, strict=True)],
        )
        yield "resolution, shorter side", [_side(side) for side in batch.column("min_side").to_pylist()]
        yield "file format", [(value,) if value else () for value in batch.column("original_format").to_pylist()]
        if self._styles:
            yield "picture style (by CLIP)", self._styles_of(batch, english)

    def _concepts(self, text: str) -> tuple[str, ...]:
        words = set(re.findall(r"\w+", text.lower()))
        found = {concept for word in words for concept in self._concept_of.get(word, ())}
        return tuple(sorted(found)) or ("(none of these)",)

    def _styles_of(self, batch: pa.RecordBatch, english: list[bool]) -> list[tuple[str, ...]]:
        assert self._styles is not None
        score = self.recipe.stages.score
        assert score is not None
        comparable = score.english.embedding_space == score.multilingual.embedding_space
        names, prompts = self._styles
        column = batch.column("img_emb")
        groups: list[tuple[str, ...]] = [()] * batch.num_rows
        rows = [i for i, valid in enumerate(column.is_valid().to_pylist()) if valid and (comparable or english[i])]
        if rows:
            vectors = np.array([column[i].as_py() for i in rows], np.float32)[:, : prompts.shape[1]]
            for row, nearest in zip(rows, (vectors @ prompts.T).argmax(1), strict=True):
                groups[row] = (names[nearest],)
        return groups

    def _gates(self) -> list[tuple[str, Gate]]:
        return [
            (str(verdict), gate)
            for stage in self.recipe.stage_names
            for verdict, gate in self.recipe.gates_after(stage)
            if gate.at_least is not None or gate.at_most is not None
        ]

    def _loosen(
        self,
        loosened: Loosened,
        gate: Gate,
        batch: pa.RecordBatch,
        reasons: list[str],
        rows: dict[str, list[tuple[str, ...]]],
    ) -> None:
        values = batch.column(gate.column).to_pylist()
        cases = batch.column(gate.by).to_pylist() if gate.by else [""] * len(values)
        for row, (reason, value, case) in enumerate(zip(reasons, values, cases, strict=True)):
            if reason != loosened.reason or value is None:
                continue
            low, high = _bound(gate.at_least, case), _bound(gate.at_most, case)
            short = max(low - value if low is not None else 0.0, value - high if high is not None else 0.0)
            if not short > 0:
                continue
            step = int(np.ceil(short / loosened.step - 1e-6)) - 1
            if 0 <= step < _STEPS:
                for dimension, groups in rows.items():
                    loosened.counts[step].update((dimension, name) for name in groups[row])
                loosened.counts[step]["", "all"] += 1


def audit(store: Store, recipe: Recipe, dump: str, shards: Sequence[int], found: Audit) -> Audit:
    """Count the outcomes of all shards that are done into `found`.

    raises   ConfigError where none is done
    """
    found.dump = dump
    for shard in shards:
        try:
            for batch in read_outcomes(store, recipe, dump, shard, found.columns()):
                found.add(batch)
        except BadShardError:  # not done yet
            continue
        found.close_shard()
    if not found.shards:
        raise ConfigError(f"{dump}: no shard of recipe {recipe.name} is done: run the recipe first")
    return found


def read_concepts(text: str, place: str) -> dict[str, list[str]]:
    """Concept groups of a YAML file: name to list of words. Raises ConfigError naming what is wrong."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {error}") from error
    if not isinstance(data, dict) or not all(
        isinstance(name, str) and isinstance(words, list) and words and all(isinstance(word, str) for word in words)
        for name, words in data.items()
    ):
        raise ConfigError(f"{place}: expected names of groups, each with a list of words")
    return data


@lru_cache(maxsize=1)
def default_concepts() -> dict[str, list[str]]:
    """The groups that come with the package."""
    return read_concepts((resources.files("curation") / "reports" / "concepts.yaml").read_text(), "concepts.yaml")


def render_page(data: dict[str, Any]) -> str:
    """HTML of `Audit.to_json`, self-contained; all that came from the web is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: f"{share:.1%}" if share is not None else ""
    return environment.from_string((resources.files("curation") / "reports" / "audit.html").read_text()).render(**data)


def _described(group: Group, filters: list[str], everything: Group, tests: int) -> dict[str, Any]:
    """One line of a table. `leaning` where the interval, made wider for so many comparisons, excludes everything's."""
    overall = everything.kept / max(1, everything.samples)
    rate = group.kept / max(1, group.samples)
    low, high = wilson(group.kept, group.samples)
    wide_low, wide_high = wilson(group.kept, group.samples, 1 - 0.05 / tests)
    at_filters, entering = {}, group.samples
    for name in filters:
        dropped = group.reasons[name]
        at_filters[name] = {
            "entering": entering,
            "dropped": dropped,
            "kept": (entering - dropped) / entering if entering else None,
            "kept_95": wilson(entering - dropped, entering),
        }
        entering -= dropped
    return {
        "group": group.name,
        "samples": group.samples,
        "kept": group.kept,
        "share_before": group.samples / max(1, everything.samples),
        "share_after": group.kept / max(1, everything.kept),
        "keep_rate": rate,
        "keep_rate_95": (low, high),
        "ratio": rate / overall if overall else None,
        "leaning": "under" if wide_high < overall else "over" if wide_low > overall else "",
        "filters": at_filters,
    }


def _loosened_json(loosened: Loosened) -> dict[str, Any]:
    steps, total = [], Counter[tuple[str, str]]()
    for number, counts in enumerate(loosened.counts, 1):
        total.update(counts)
        by: dict[str, dict[str, int]] = {}
        for (dimension, name), count in total.most_common():
            if dimension and len(by.setdefault(dimension, {})) < _SHOWN:
                by[dimension][name] = count
        steps.append({"looser_by": round(number * loosened.step, 6), "brought_back": total["", "all"], "by": by})
    return {"filter": loosened.reason, "column": loosened.column, "bound": loosened.bound, "steps": steps}


def _numeric_gates(recipe: Recipe) -> Iterable[tuple[str, str, str, float]]:
    for stage in recipe.stage_names:
        for verdict, gate in recipe.gates_after(stage):
            bounds = [bound for bound in (gate.at_least, gate.at_most) if bound is not None]
            if bounds:
                numbers = [n for bound in bounds for n in (bound.values() if isinstance(bound, dict) else [bound])]
                step = 1.0 if pa.types.is_integer(COLUMNS[gate.column].type) else max(map(abs, numbers)) * 0.05 or 0.01
                if pa.types.is_integer(COLUMNS[gate.column].type):
                    step = max(1.0, round(max(map(abs, numbers)) * 0.05))
                spelt = ", ".join(f"{k} {v:g}" for b in bounds if isinstance(b, dict) for k, v in b.items())
                yield str(verdict), gate.column, spelt or ", ".join(f"{n:g}" for n in numbers), step


def _bound(bound: float | dict[str, float] | None, case: str) -> float | None:
    return bound.get(case) if isinstance(bound, dict) else bound


_CAPTION_FAULTS = frozenset([Fault.NO_CAPTION, Fault.BAD_CAPTION, Fault.OUT_OF_MEMORY])


@lru_cache(maxsize=1024)
def _filter_of(reason: str | None) -> str:
    """Name of the filter that a reason belongs to; all faults of a stage are one."""
    if reason is None:
        return KEPT
    if reason in set(Fault):
        return "caption fault" if reason in _CAPTION_FAULTS else "download fault"
    return reason


def _side(side: int | None) -> tuple[str, ...]:
    if side is None:
        return ()
    at = int(np.searchsorted(_SIDES, side, side="right"))
    low = _SIDES[at - 1] if at else 1
    return (f"{low} to {_SIDES[at] - 1} px" if at < len(_SIDES) else f"{low} px and more",)

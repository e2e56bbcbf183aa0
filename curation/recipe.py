"""Recipes: the typed settings of every stage and gate, read from YAML files in recipes/ or given by path."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curation.errors import ConfigError
from curation.gates import Gate
from curation.publish.settings import Publish
from curation.publish.target import Target
from curation.schema import COLUMNS
from curation.stages.base import Join, Stage
from curation.stages.caption import Caption
from curation.stages.dedup import Dedup
from curation.stages.download import Download
from curation.stages.extract import Extract
from curation.stages.leakage import Leakage
from curation.stages.pairs import Pairs
from curation.stages.safety import Safety
from curation.stages.score import Score, is_head
from curation.verdicts import Verdict

STAGE_ORDER = ("extract", "pairs", "download", "score", "dedup", "safety", "caption", "leakage")


class Stages(BaseModel):
    """Settings of each stage; a stage that is left out is not run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extract: Extract = Extract()
    pairs: Pairs | None = None
    download: Download = Download()
    score: Score | None = None
    dedup: Dedup | None = None
    safety: Safety | None = None
    caption: Caption | None = None
    leakage: Leakage | None = None


class Recipe(BaseModel):
    """How one dataset is made: which stages with which settings, and the gates that judge what they measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = ""
    stages: Stages
    gates: dict[Verdict, tuple[Gate, ...]] = {}
    publish: Publish = Publish()
    target: Target | None = Field(None, description="what the dataset is meant to become: reported, nothing is dropped")

    @field_validator("gates", mode="before")
    @classmethod
    def _one_gate_or_several(cls, gates: Any) -> Any:
        if not isinstance(gates, Mapping):
            return gates
        return {verdict: [gate] if isinstance(gate, Mapping) else gate for verdict, gate in gates.items()}

    @model_validator(mode="after")
    def _punsafe_has_its_head(self) -> Recipe:
        safety, score = self.stages.safety, self.stages.score
        if safety and safety.reads_punsafe and (score is None or "punsafe" not in score.heads):
            raise ValueError(
                "stages.safety.unsafe_above and unsure_above read punsafe: name stages.score.heads.punsafe"
            )
        return self

    @model_validator(mode="after")
    def _leakage_compares_one_space(self) -> Recipe:
        score, leakage = self.stages.score, self.stages.leakage
        if score is None or leakage is None or leakage.embedding_cosine is None or leakage.descriptor:
            return self
        for role, clip in (("english", score.english), ("multilingual", score.multilingual)):
            if clip.embedding_space != leakage.embedding_space:
                raise ValueError(
                    f"stages.leakage.embedding_space is {leakage.embedding_space!r}, stages.score.{role} gives "
                    f"{clip.embedding_space!r}: cosines of different models mean nothing; score both languages with "
                    "models of one image tower, name a stages.leakage.descriptor, or set embedding_cosine to null"
                )
        return self

    @model_validator(mode="after")
    def _gates_have_their_stage(self) -> Recipe:
        for verdict, gate in self._each_gate():
            for column in gate.columns:
                producer = COLUMNS[column].producer
                if self.stage(producer) is None:
                    raise ValueError(
                        f"gates.{verdict} reads {column}, which stage {producer!r} measures, and the recipe leaves "
                        f"that stage out: add stages.{producer} or drop the gate"
                    )
                if (score := self.stages.score) and is_head(column) and column not in score.heads:
                    raise ValueError(f"gates.{verdict} reads {column}: name its head in stages.score.heads.{column}")
                if gate.by and STAGE_ORDER.index(producer) > STAGE_ORDER.index(COLUMNS[gate.column].producer):
                    raise ValueError(f"gates.{verdict}.by: {column} is measured after {gate.column}")
        return self

    @model_validator(mode="after")
    def _stages_have_their_columns(self) -> Recipe:
        for name in self.stage_names:
            settings = self.stage(name)
            assert settings is not None
            for column in (settings.reads if isinstance(settings, Join) else settings.consumes).names:
                producer = COLUMNS[column].producer
                if self.stage(producer) is None:
                    raise ValueError(
                        f"stages.{name} reads {column}, which stage {producer!r} measures, and the recipe leaves that "
                        f"stage out: add stages.{producer}, or change what stages.{name} reads"
                    )
        return self

    def stage(self, name: str) -> Stage | None:
        """Settings of a stage, None where the recipe leaves it out or there is no such stage."""
        return getattr(self.stages, name, None) if name in STAGE_ORDER else None

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Stages that run, in order."""
        return tuple(name for name in STAGE_ORDER if self.stage(name) is not None)

    def gates_after(self, stage: str) -> list[tuple[Verdict, Gate]]:
        """Gates over what this stage measured with their verdicts, in the order declared."""
        return [(verdict, gate) for verdict, gate in self._each_gate() if COLUMNS[gate.column].producer == stage]

    def _each_gate(self) -> Iterator[tuple[Verdict, Gate]]:
        for verdict, gates in self.gates.items():
            for gate in gates:
                yield verdict, gate


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Recipe by name or by path of a YAML file, with overrides merged in.

    overrides  nested ({"gates": {"too_small": {"at_least": 64}}}) or dotted ({"gates.too_small.at_least": 64})
    raises     ConfigError that names the recipe, the field and, for a misspelt one, the nearest known field
    """
    path = Path(name)
    if name in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text()
    elif path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as err:
            raise ConfigError(f"recipe {name}: can't be read: {err.strerror}") from err
    else:
        raise ConfigError(
            f"recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}, or give a .yaml file"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"recipe {name}: not valid YAML: {err}") from err
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {name}: expected a mapping with name, stages and gates")
    for key, value in (overrides or {}).items():
        _merge(data, key.split("."), value, name)
    recipe = parse_recipe(data, name)
    _expect_gate_of_policy(recipe)
    return recipe


def parse_recipe(data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Validate plain data. Raises ConfigError with one line for each wrong field."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as err:
        raise ConfigError("\n".join(_explain(e, origin) for e in err.errors())) from err


def _expect_gate_of_policy(recipe: Recipe) -> None:
    """Recipes of versions that were published before stay readable: a takedown needs them."""
    caption = recipe.stages.caption
    if caption is None or caption.policy in ("keep_text", "mix"):
        return
    if not any("caption_source" in gate.columns for _, gate in recipe._each_gate()):
        raise ConfigError(
            f"recipe {recipe.name}: stages.caption.policy {caption.policy} chooses no text for some pictures, and they "
            "would be published with the one that it refused: add gates.caption_low: {column: caption_source, "
            "one_of: [text, synthetic]}"
        )


def dump_recipe(recipe: Recipe) -> str:
    """Canonical JSON: every setting spelt out, gates in their order, which decides the verdict."""
    return json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False)


def _folder() -> Any:
    return resources.files("curation") / "recipes"


def _merge(data: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    *parents, last = path
    for key in parents:
        inner = data.get(key)
        if inner is None:
            inner = data[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"recipe {origin}: override {'.'.join(path)!r}: {key!r} is no section")
        data = inner
    if isinstance(value, Mapping) and isinstance(data.get(last), dict) and last != "connect_to":
        for key, inner in value.items():
            _merge(data[last], [key], inner, origin)
    else:
        data[last] = value


def _explain(error: Any, origin: str) -> str:
    place = ".".join(str(part) for part in error["loc"] if not (error["loc"][0] == "gates" and isinstance(part, int)))
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(fields)}"
        return f"recipe {origin}: {place}: unknown field; {hint}"
    if error["loc"][:1] == ("gates",) and error["loc"][-1] == "[key]":
        return f"recipe {origin}: gates: {error['input']!r} is no verdict; known: {', '.join(Verdict)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"recipe {origin}: {place}: {message}" if place else f"recipe {origin}: {message}"


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in loc:  # the key of a mapping or a place in a list is no field: stay
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)

"""Caption: synthetic captions of each picture, image-text matching of both texts, and the policy that chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from curation.captions.halving import in_halves
from curation.captions.policies import DEFAULT_THRESHOLD, DEFAULT_THRESHOLDS, Policy, choose, draws_synthetic
from curation.captions.text import clean_caption
from curation.errors import BadShardError, ConfigError, OutageError
from curation.images.anyres import Choice, Layout, Rule
from curation.images.stored import decode_stored
from curation.schema import schema
from curation.stages.base import Pin, Resource, Stage, Tally, runtime
from curation.verdicts import Fault

if TYPE_CHECKING:
    from curation.captions.endpoint import EndpointCaptioner
    from curation.models.captioner import Captioner
    from curation.models.matcher import ClipMatcher, Matcher


class AnyRes(BaseModel):
    """Large pictures as tiles: for captioners of LLaVA-NeXT's kind, whose processor cuts them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = Field("best_resolution", description="best_resolution, as the model was trained, or nearest_aspect")
    grids: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="columns and rows to choose from; empty: the model's own, for nearest_aspect 8 from 1x1 to 3x2; "
        "with [1, 1] among them a picture no larger than a view is not enlarged",
    )


class _Row:
    """One picture on its way through the stage."""

    def __init__(self, sample_id: str, text: str, pixels: np.ndarray | None) -> None:
        self.sample_id, self.text, self.pixels = sample_id, text, pixels
        self.fault: Fault | None = None if pixels is not None else Fault.BAD_IMAGE
        self.layout: Layout | None = None  # of the tiles that the captioner saw
        self.made: list[str] = []  # synthetic captions, the best first
        self.ranks: list[float] = []
        self.refused = False  # a caption was made, and was none
        self.score_text: float | None = None
        self.score_made: float | None = None


class Caption(Stage):
    """Caption pictures and let a policy choose between the original text and the synthetic one.

    keep_text              always the original text; the synthetic caption stands beside it
    prefer_synthetic       the synthetic caption when it matches better; else the original if it reaches `threshold`;
                           else none
    best_above_threshold   whichever matches better, if it reaches `threshold`; else none
    both_above_threshold   each that reaches `threshold`: none, one, or two pairs of the picture (BLIP's CapFilt)
    best_of_n              the best ranked of `captions_per_image` synthetic captions (LAION-COCO)
    mix                    the synthetic caption for `synthetic_share` of the samples, drawn by sample_id and seed

    The original text is never overwritten: what is chosen goes into columns of its own. Captioner and matcher must not
    share weights (BLIP, table 4: then the filter passes its own captioner's errors), which is checked on the weights.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "gpu"
    consumes: ClassVar[pa.Schema] = schema("sample_id", "image", "text", "partition")

    captioner: Annotated[str, Pin("captioner")] = Field(
        "embedded",
        description="embedded, a folder or hub name of an image-to-text model, registry:NAME (what is promoted when a "
        "run is planned) or registry:NAME@VERSION, http://host/v1#model",
    )
    matcher: Annotated[str, Pin("matcher")] = Field(
        "embedded",
        description="embedded, a local folder, a hub name or registry:NAME of an ITM model; clip:NAME puts a CLIP's "
        "cosine in its place (clip:embedded, clip:ViT-L-14/openai) and needs a threshold of that scale",
    )
    policy: Policy = "keep_text"
    threshold: float | None = Field(
        None, ge=0, le=1, description="score that the policy asks for; 0.8, for both_above_threshold BLIP's 0.5"
    )
    synthetic_share: float = Field(0.5, ge=0, le=1, description="of the samples under mix")
    captions_per_image: int = Field(1, ge=1, le=64, description="sampled captions; of several, `ranker` finds the best")
    ranker: str = Field("embedded", description="CLIP that ranks several captions: embedded, ViT-L-14/openai, ...")
    prompt: str = Field(
        "", description="what a caption begins with, stripped from it; the question to a model that takes instructions"
    )
    num_beams: int = Field(1, ge=1, le=20, description="1 samples from the nucleus, more searches beams")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus of BLIP's CapFilt; without effect with beams")
    repetition_penalty: float = Field(1.1, ge=1)
    min_length: int = Field(5, ge=1, description="tokens")
    max_length: int = Field(20, ge=2, description="tokens")
    seed: int = 0
    anyres: AnyRes | None = Field(
        None, description="which grids of tiles the captioner sees; none: as it was trained, in tiles or in one view"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the captioner's weights")
    batch_size: int = runtime(32, ge=1)
    device: str = runtime("auto")

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.policy == "best_of_n" and self.captions_per_image < 2:
            raise ValueError("policy best_of_n chooses among several captions: set captions_per_image to 2 or more")
        if self.captions_per_image > 1 and self.num_beams > 1:
            raise ValueError("captions_per_image above 1 samples: beams give one caption, so set num_beams to 1")
        if self.matcher.startswith("clip:") and self.threshold is None and "threshold" in self.policy:
            raise ValueError(
                f"matcher {self.matcher!r} measures a cosine, for which the default threshold is no bound: set "
                "threshold (LAION: 0.28 for ViT-B-32/openai)"
            )
        if self.anyres and (self.captioner == "embedded" or self.captioner.startswith(("http://", "https://"))):
            raise ValueError(
                f"anyres: captioner {self.captioner!r} cuts no tiles: leave anyres out, or name a captioner of "
                "LLaVA-NeXT's kind, such as llava-hf/llava-v1.6-mistral-7b-hf"
            )
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        return self

    @property
    def produces(self) -> pa.Schema:
        """Synthetic captions, both matching scores, the chosen captions, where they came from, and the fault."""
        made = schema("synthetic", "synthetics", "synthetic_ranks", "itm_text", "itm_synthetic")
        tiles = schema("caption_grid", "caption_tokens_flat", "caption_tokens_unpadded")
        return pa.schema([*made, *tiles, *schema("caption", "caption_source", "captions", "caption_sources", "fault")])

    @property
    def models(self) -> dict[str, str]:
        """Identity of captioner, matcher and ranker once they have been used, and how captions were drawn."""
        loaded = {role: self.__dict__.get(f"_{role}") for role in ("captioner", "matcher", "ranker")}
        used = {role: model.identity for role, model in loaded.items() if model is not None}
        return used | ({"sampling": self._sampling} if "captioner" in used else {})

    @property
    def _sampling(self) -> str:
        drawn = f"{self.num_beams} beams" if self.num_beams > 1 else f"nucleus {self.top_p:g}, seed {self.seed}"
        return (
            f"{self.captions_per_image} x {drawn}, repetition penalty {self.repetition_penalty:g}, "
            f"{self.min_length} to {self.max_length} tokens, prompt {self.prompt!r}, {self.dtype}"
        )

    def check(self) -> None:
        """Refuse one model in both roles, by name; by weights it is refused once they are loaded."""
        if self.captioner == self.matcher != "embedded":
            raise ConfigError(
                f"stages.caption: captioner and matcher are both {self.captioner!r}: a filter must not be its "
                "captioner's twin; name two models that were fine-tuned separately"
            )

    @cached_property
    def _captioner(self) -> Captioner | EndpointCaptioner:
        if self.captioner.startswith(("http://", "https://")):
            from curation.captions.endpoint import load_endpoint_captioner

            return load_endpoint_captioner(self.captioner)
        from curation.models.captioner import load_captioner

        anyres = Choice(self.anyres.rule, self.anyres.grids) if self.anyres else None
        return load_captioner(self.captioner, device=self.device, dtype=self.dtype, anyres=anyres)

    @cached_property
    def _matcher(self) -> Matcher | ClipMatcher:
        from curation.models.matcher import load_clip_matcher, load_matcher

        if self.matcher.startswith("clip:"):
            return load_clip_matcher(self.matcher.removeprefix("clip:"), device=self.device)
        return load_matcher(self.matcher, device=self.device)

    @cached_property
    def _ranker(self) -> ClipMatcher:
        from curation.models.matcher import load_clip_matcher

        return load_clip_matcher(self.ranker, device=self.device)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Caption and match batch by batch."""
        self.check()
        for number, batch in enumerate(batches):
            if not number:  # not before there is work: a shard without any loads no model
                _require_two(self._captioner, self._matcher)
            steps = range(0, max(1, len(batch)), self.batch_size)  # one of no rows for an empty batch
            parts = [self._measure(batch.slice(at, self.batch_size), tally) for at in steps]
            yield pa.concat_batches(parts)

    def _measure(self, batch: pa.RecordBatch, tally: Tally) -> pa.RecordBatch:
        columns = (batch.column(name).to_pylist() for name in ("sample_id", "text", "image"))
        rows = [_Row(sample_id, text, _pixels(image)) for sample_id, text, image in zip(*columns, strict=True)]
        self._caption([row for row in rows if row.fault is None], tally)
        self._rank([row for row in rows if row.fault is None and len(row.made) > 1], tally)
        self._match([row for row in rows if row.fault is None], tally)
        return self._judged(rows)

    def _caption(self, rows: Sequence[_Row], tally: Tally) -> None:
        for draw in range(self.captions_per_image):
            rows = [row for row in rows if row.fault is None]

            def captions(images: Sequence[np.ndarray], seed: int = self.seed + draw) -> Sequence[str]:
                return self._captioner.caption(
                    images,
                    num_beams=self.num_beams,
                    top_p=self.top_p if self.num_beams == 1 else None,
                    repetition_penalty=self.repetition_penalty,
                    min_length=self.min_length,
                    max_length=self.max_length,
                    seed=seed,
                    prompt=self.prompt,
                )

            found, shortages = in_halves(captions, [_of(row) for row in rows])
            tally["memory_shortages"] += shortages
            layouts = self._captioner.layouts([_of(row) for row in rows])
            for row, raw, layout in zip(rows, found, layouts, strict=True):
                row.layout = layout
                if raw is None:
                    row.fault = Fault.OUT_OF_MEMORY
                    continue
                tally["captions"] += 1
                text = clean_caption(raw)
                if raw and not text:
                    row.refused = True
                    tally["captions_refused"] += 1
                if text and text not in row.made:
                    row.made.append(text)
        if len(rows) > 1 and all(row.fault == Fault.OUT_OF_MEMORY for row in rows):
            raise OutageError(
                f"the captioner has no room on {self.device} for a single picture of {len(rows)}: does another process "
                "hold the memory?"
            )

    def _rank(self, rows: Sequence[_Row], tally: Tally) -> None:
        def ranks(part: Sequence[_Row]) -> list[np.ndarray]:
            return self._ranker.rank([_of(row) for row in part], [row.made for row in part])

        found, shortages = in_halves(ranks, rows) if rows else ([], 0)
        tally["memory_shortages"] += shortages
        for row, scores in zip(rows, found, strict=True):
            if scores is None:
                row.fault = Fault.OUT_OF_MEMORY
                continue
            order = np.argsort(-scores, kind="stable")
            row.made = [row.made[at] for at in order]
            row.ranks = [float(scores[at]) for at in order]

    def _match(self, rows: Sequence[_Row], tally: Tally) -> None:
        def scores(part: Sequence[tuple[np.ndarray, str]]) -> Sequence[float]:
            matched = self._matcher.match([pixels for pixels, _ in part], [text for _, text in part])
            return [float(score) for score in matched]

        pairs = [(row, text) for row in rows for text in (row.text, *row.made[:1])]
        found, shortages = in_halves(scores, [(_of(row), text) for row, text in pairs])
        tally["memory_shortages"] += shortages
        at = iter(found)
        for row in rows:
            row.score_text = next(at)
            row.score_made = next(at) if row.made else None
            if row.score_text is None or (row.made and row.score_made is None):
                row.fault = Fault.OUT_OF_MEMORY

    def _judged(self, rows: Sequence[_Row]) -> pa.RecordBatch:
        threshold = DEFAULT_THRESHOLDS.get(self.policy, DEFAULT_THRESHOLD) if self.threshold is None else self.threshold
        records = []
        for row in rows:
            chosen = []
            if row.fault is None and row.score_text is not None:
                drawn = self.policy == "mix" and draws_synthetic(row.sample_id, self.synthetic_share, self.seed)
                made = row.made[0] if row.made else None
                chosen = choose(self.policy, threshold, row.text, made, row.score_text, row.score_made, drawn=drawn)
                if made is None and not chosen:
                    row.fault = Fault.BAD_CAPTION if row.refused else Fault.NO_CAPTION
            measured = row.fault is None
            records.append(
                {
                    "synthetic": row.made[0] if row.made else None,
                    "synthetics": row.made if measured else None,
                    "synthetic_ranks": row.ranks if measured else None,
                    "caption_grid": f"{row.layout.grid[0]}x{row.layout.grid[1]}" if row.layout and row.made else None,
                    "caption_tokens_flat": row.layout.flat if row.layout and row.made else None,
                    "caption_tokens_unpadded": row.layout.unpadded if row.layout and row.made else None,
                    "itm_text": row.score_text,
                    "itm_synthetic": row.score_made,
                    "caption": chosen[0][0] if chosen else None,
                    "caption_source": chosen[0][1] if chosen else None,
                    "captions": [caption for caption, _ in chosen] if measured else None,
                    "caption_sources": [source for _, source in chosen] if measured else None,
                    "fault": row.fault and str(row.fault),
                }
            )
        return pa.RecordBatch.from_pylist(records, schema=self.produces)


class _Weighty(Protocol):
    identity: str


def _require_two(captioner: _Weighty, matcher: _Weighty) -> None:
    """Raises ConfigError when both are the same model, by identity or by weights."""
    names = (captioner.identity, matcher.identity)
    if names[0] == names[1]:
        raise ConfigError(f"stages.caption: captioner and matcher are the same model, {names[0]}: name two")
    first, second = (getattr(model, "model", None) for model in (captioner, matcher))
    if first is not None and second is not None:
        from curation.models.shared_weights import require_own_weights

        require_own_weights(first, second, names)


def _pixels(image: bytes) -> np.ndarray | None:
    try:
        return decode_stored(image)
    except BadShardError:  # one damaged picture costs one sample here
        return None


def _of(row: _Row) -> np.ndarray:
    assert row.pixels is not None
    return row.pixels

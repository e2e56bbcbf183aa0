"""Caption: a synthetic caption for each picture, image-text matching of both texts, and the policy that chooses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from curation.images.stored import decode_stored
from curation.schema import schema
from curation.stages.base import Resource, Stage, Tally, runtime

if TYPE_CHECKING:
    from curation.models.captioner import Captioner
    from curation.models.matcher import Matcher

Policy = Literal["prefer_synthetic", "best_above_threshold", "keep_text"]


class Caption(Stage):
    """Caption pictures and let a policy choose between the original text and the synthetic one.

    prefer_synthetic       the synthetic caption when it matches better; else the original if it reaches `threshold`;
                           else none
    best_above_threshold   whichever matches better, if it reaches `threshold`; else none
    keep_text              always the original text; the synthetic caption stands beside it

    The original text is never overwritten: the choice goes into its own column. The captioner and the matcher share no
    weights (BLIP, table 4: with shared weights the filter passes its own captioner's errors).
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "gpu"
    consumes: ClassVar[pa.Schema] = schema("image", "text", "partition")

    captioner: str = Field("embedded", description="embedded, a local folder or a hub name of an image-to-text model")
    matcher: str = Field("embedded", description="embedded, a local folder or a hub name of an ITM model")
    policy: Policy = "keep_text"
    threshold: float = Field(0.8, ge=0, le=1, description="ITM probability that the policy asks for")
    num_beams: int = Field(1, ge=1, le=20, description="1 samples from the nucleus, more searches beams")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus of BLIP's CapFilt; without effect with beams")
    repetition_penalty: float = Field(1.1, ge=1)
    min_length: int = Field(5, ge=1, description="tokens")
    max_length: int = Field(20, ge=2, description="tokens")
    seed: int = 0
    batch_size: int = runtime(32, ge=1)
    device: str = runtime("auto")

    @property
    def produces(self) -> pa.Schema:
        """Synthetic caption, both matching scores, the chosen caption and where it came from."""
        return schema("synthetic", "itm_text", "itm_synthetic", "caption", "caption_source")

    @property
    def models(self) -> dict[str, str]:
        """Identity of captioner and matcher once they have been used."""
        loaded = {role: self.__dict__.get(f"_{role}") for role in ("captioner", "matcher")}
        return {role: model.identity for role, model in loaded.items() if model is not None}

    @cached_property
    def _captioner(self) -> Captioner:
        from curation.models.captioner import load_captioner

        return load_captioner(self.captioner, device=self.device)

    @cached_property
    def _matcher(self) -> Matcher:
        from curation.models.matcher import load_matcher

        return load_matcher(self.matcher, device=self.device)

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Caption and match batch by batch."""
        for batch in batches:
            parts = [self._measure(batch.slice(at, self.batch_size)) for at in range(0, len(batch), self.batch_size)]
            tally["captions"] += len(batch)
            yield pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    def _measure(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        images = [decode_stored(image.as_py()) for image in batch.column("image")]
        texts = batch.column("text").to_pylist()
        synthetic = self._captioner.caption(
            images,
            num_beams=self.num_beams,
            top_p=self.top_p if self.num_beams == 1 else None,
            repetition_penalty=self.repetition_penalty,
            min_length=self.min_length,
            max_length=self.max_length,
            seed=self.seed,
        )
        itm_text = self._matcher.match(images, texts)
        itm_synthetic = self._matcher.match(images, synthetic)
        chosen = [
            choose(self.policy, self.threshold, *row)
            for row in zip(texts, synthetic, itm_text, itm_synthetic, strict=True)
        ]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(synthetic, pa.string()),
                pa.array(np.asarray(itm_text, np.float32)),
                pa.array(np.asarray(itm_synthetic, np.float32)),
                pa.array([caption for caption, _ in chosen], pa.string()),
                pa.array([source for _, source in chosen], pa.string()),
            ],
            schema=self.produces,
        )


def choose(
    policy: Policy, threshold: float, text: str, synthetic: str, itm_text: float, itm_synthetic: float
) -> tuple[str | None, str | None]:
    """The caption that a policy takes and its source ("text", "synthetic"); (None, None) when it takes neither."""
    if policy == "keep_text":
        return text, "text"
    if policy == "prefer_synthetic":
        if itm_synthetic > itm_text:
            return synthetic, "synthetic"
        return (text, "text") if itm_text >= threshold else (None, None)
    best = max(itm_text, itm_synthetic)
    if best < threshold:
        return None, None
    return (synthetic, "synthetic") if itm_synthetic > itm_text else (text, "text")

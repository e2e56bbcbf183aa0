"""Score: CLIP similarity of picture and text, and heads on the image embedding, in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation.schema import schema
from curation.stages.base import Resource, Stage, Tally, runtime

if TYPE_CHECKING:
    from curation.models.clip import Clip


class ClipChoice(BaseModel):
    """A CLIP model: an open_clip architecture with a pretrained tag or file, or one that comes with the package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("embedded", description="open_clip architecture, or embedded / embedded-multi")
    pretrained: str | None = Field(None, description="open_clip tag or path of weights")


class Score(Stage):
    """Measure similarity in each sample's own language: English with one model, the rest with another.

    Both models see the same pixels; a sample's embeddings come from the model that its partition chose, so within one
    partition they are comparable.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "gpu"
    consumes: ClassVar[pa.Schema] = schema("image", "text", "partition")

    english: ClipChoice = ClipChoice()
    multilingual: ClipChoice = ClipChoice(model="embedded-multi")
    batch_size: int = runtime(64, ge=1, description="pictures a forward pass")
    device: str = runtime("auto", description="auto, cpu, cuda, cuda:1")
    precision: str = runtime("auto", description="auto (bf16 on a GPU that has it), fp32, bf16, fp16")

    @property
    def produces(self) -> pa.Schema:
        """Similarity, and both embeddings as float16."""
        return schema("similarity", "img_emb", "txt_emb")

    @property
    def models(self) -> dict[str, str]:
        """Identity of the models that scored at least one row."""
        used = {}
        for role in ("_english", "_multilingual"):
            if role in self.__dict__:
                used[f"clip{role}"] = self.__dict__[role].identity
        return used

    @cached_property
    def _english(self) -> Clip:
        from curation.models.clip import load_clip

        return load_clip(self.english.model, self.english.pretrained, device=self.device, precision=self.precision)

    @cached_property
    def _multilingual(self) -> Clip:
        from curation.models.clip import load_clip

        if self.multilingual == self.english:
            return self._english
        return load_clip(
            self.multilingual.model, self.multilingual.pretrained, device=self.device, precision=self.precision
        )

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Decode and embed batch by batch; the next batch is decoded while this one is embedded."""
        from curation.images.stored import decode_stored

        with ThreadPoolExecutor(max_workers=2) as pool:
            ahead: list[tuple[pa.RecordBatch, list[Future[np.ndarray]]]] = []
            for batch in batches:
                pictures = [pool.submit(decode_stored, image.as_py()) for image in batch.column("image")]
                ahead.append((batch, pictures))
                if len(ahead) > 1:
                    yield self._score(*ahead.pop(0), tally)
            for waiting in ahead:
                yield self._score(*waiting, tally)

    def _score(self, batch: pa.RecordBatch, pictures: Sequence[Future[np.ndarray]], tally: Tally) -> pa.RecordBatch:
        images = [picture.result() for picture in pictures]
        texts = batch.column("text").to_pylist()
        english = np.array([partition == "en" for partition in batch.column("partition").to_pylist()])
        similarity = np.zeros(len(images), np.float32)
        img_emb: list[np.ndarray | None] = [None] * len(images)
        txt_emb: list[np.ndarray | None] = [None] * len(images)
        for rows, role in ((np.flatnonzero(english), "english"), (np.flatnonzero(~english), "multilingual")):
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                clip = self._english if role == "english" else self._multilingual
                image_vectors = clip.embed_images([images[row] for row in part])
                text_vectors = clip.embed_texts([texts[row] for row in part])
                similarity[part] = np.einsum("nd,nd->n", image_vectors, text_vectors)
                for at, row in enumerate(part):
                    img_emb[row], txt_emb[row] = image_vectors[at], text_vectors[at]
            tally[f"scored_{role}"] += len(rows)
        return pa.RecordBatch.from_arrays(
            [pa.array(similarity), _halves(img_emb), _halves(txt_emb)], schema=self.produces
        )


def _halves(vectors: Sequence[np.ndarray | None]) -> pa.ListArray:
    """Vectors of possibly different widths -> list<float16>."""
    rows = [np.asarray(vector, np.float16) for vector in vectors]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))

"""Score: CLIP similarity of picture and text, and heads on the image embedding, in one pass over the pixels."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from curation.errors import BadShardError, ConfigError
from curation.models.clip import embedding_dim, embedding_space
from curation.models.weights import Activation, Output
from curation.schema import schema
from curation.stages.base import PinnedFile, Resource, Stage, Tally, runtime

if TYPE_CHECKING:
    import torch

    from curation.models.clip import Clip, OnItsWay
    from curation.models.heads import Head

_CPU_PASS = 64  # samples that a CPU takes at a time: bounds memory, changes no result
_AHEAD = 3  # forward passes whose pictures are decoded, or being decoded, before their turn
_HEAD_COLUMN = r"^(aesthetic|punsafe|pwatermark|head_[a-z0-9_]{1,40})$"
HeadName = Annotated[str, StringConstraints(pattern=_HEAD_COLUMN)]


def is_head(column: str) -> bool:
    """Whether a head measures this column."""
    return re.match(_HEAD_COLUMN, column) is not None


class ClipChoice(BaseModel):
    """A CLIP model: an open_clip architecture with a pretrained tag or file, or one that comes with the package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("embedded", description="open_clip architecture, or embedded / embedded-multi")
    pretrained: str | None = Field(None, description="open_clip tag or path of weights")
    space: str = Field("", description="embedding space of weights from a file, such as ViT-L-14/openai, for heads")

    @property
    def embedding_space(self) -> str:
        """What heads must have been trained in to fit."""
        return self.space or embedding_space(self.model, self.pretrained)


class HeadChoice(BaseModel):
    """A head on image embeddings; models/weights.py lists LAION's with their addresses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: PinnedFile = Field(description="file or https URL: .zip (AutoKeras), .pth, .pt or .safetensors")
    space: str = Field(description="embedding space it was trained in, such as ViT-L-14/openai")
    hidden: Activation | None = Field(None, description="between layers; LAION's files and safetensors' metadata tell")
    output: Output | None = Field(None, description="of the last layer; LAION's files and safetensors' metadata tell")
    scale: str = Field("", description="range of a head of your own, kept in the schema: 0..1")


class _Pass(NamedTuple):
    """Rows of one batch that go through one model together, their pictures and captions on the way."""

    rows: np.ndarray
    clip: Clip
    pictures: list[Future[tuple[np.ndarray, ...]]]
    tokens: Future[list[tuple[list[int], torch.Tensor]]]
    last: bool  # of its batch


class _Launched(NamedTuple):
    """What a pass gives, perhaps still on the device."""

    rows: np.ndarray
    image: OnItsWay
    text: OnItsWay
    for_heads: OnItsWay
    last: bool


class Score(Stage):
    """Measure similarity in each sample's own language: English with one model, the rest with another.

    A sample's embeddings come from the model that its partition chose, so within one partition they are comparable.
    Reading, decoding and tokenising run ahead in threads while the device computes.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "gpu"
    consumes: ClassVar[pa.Schema] = schema("image", "text", "partition")

    english: ClipChoice = ClipChoice()
    multilingual: ClipChoice = ClipChoice(model="embedded-multi")
    heads: Mapping[HeadName, HeadChoice] = Field(
        {}, description="by column: aesthetic, punsafe, pwatermark, or head_NAME for one of your own"
    )
    head_model: ClipChoice | None = Field(
        None, description="model whose image tower feeds the heads, where they belong to another than similarity's"
    )
    batch_size: int = runtime(256, ge=1, description="samples a forward pass of a GPU")
    decode_threads: int = runtime(0, ge=0, description="threads that decode pictures; 0: one for each core")
    device: str = runtime("auto", description="auto, cpu, cuda, cuda:1")
    precision: str = runtime("auto", description="auto (fp16 on a GPU, fp32 on a CPU), fp32, bf16, fp16")

    @model_validator(mode="after")
    def _heads_fit(self) -> Score:
        for column, head in self.heads.items():
            feeds = {"head_model": self.head_model} if self.head_model else self._by_partition
            for role, clip in feeds.items():
                if clip.embedding_space != head.space:
                    raise ValueError(
                        f"heads.{column} was trained on embeddings of {head.space}; {role} gives those of "
                        f"{clip.embedding_space}: choose a head of that space, or set head_model"
                    )
        return self

    @property
    def _by_partition(self) -> dict[str, ClipChoice]:
        return {"english": self.english, "multilingual": self.multilingual}

    @property
    def produces(self) -> pa.Schema:
        """Similarity, a column for each head, and both embeddings as float16."""
        fields = list(schema("similarity", *self.heads, "img_emb", "txt_emb"))
        dims = [embedding_dim(clip.model) for clip in self._by_partition.values()]
        known = [dim for dim in dims if dim is not None]
        embedding = pa.list_(pa.float16(), max(known) if len(known) == len(dims) else -1)
        for at, field in enumerate(fields):
            if field.name in ("img_emb", "txt_emb"):
                fields[at] = field.with_type(embedding)
            elif field.name in self.heads:
                head = self.heads[field.name]
                noted = {"space": head.space} | ({"unit": head.scale} if head.scale else {})
                fields[at] = field.with_metadata({**(field.metadata or {}), **noted})
        return pa.schema(fields)

    @property
    def models(self) -> dict[str, str]:
        """Identity of the models that scored at least one row, and of the heads."""
        used = {f"clip_{role}": clip.identity for role, clip in self._loaded.items()}
        if used and self.heads:
            used |= {column: head.identity for column, head in self._heads.items()}
        return used

    def check(self) -> None:
        """Read every head, so that one that can't be used stops the run before any work."""
        for column, head in self._heads.items():
            feeds = [self.head_model] if self.head_model else list(self._by_partition.values())
            for dim in (embedding_dim(clip.model) for clip in feeds):
                if dim is not None and dim != head.dim:
                    raise ConfigError(
                        f"stages.score.heads.{column}.file takes embeddings of {head.dim} numbers, those of "
                        f"{head.space} have {dim}: take the head that belongs to the model"
                    )

    @cached_property
    def _heads(self) -> dict[str, Head]:
        from curation.models.heads import load_head

        return {
            column: load_head(head.file, column, head.space, head.hidden, head.output)
            for column, head in self.heads.items()
        }

    @cached_property
    def _loaded(self) -> dict[str, Clip]:
        return {}

    def _clip(self, role: str) -> Clip:
        """Model of a role, loaded when the first row needs it."""
        from curation.models.clip import load_clip

        if role not in self._loaded:
            choice = self.head_model if role == "head_model" else self._by_partition[role]
            assert choice is not None
            self._loaded[role] = load_clip(
                choice.model, choice.pretrained, device=self.device, precision=self.precision
            )
        return self._loaded[role]

    def __call__(self, batches: Iterator[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        """Decode and embed batch by batch; what comes next is read and decoded meanwhile."""
        self.check()
        threads = self.decode_threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool, _ReadAhead(batches) as ahead:
            waiting: deque[_Pass] = deque()
            launched: deque[_Launched] = deque()
            answer = _Answer(self)
            for part in self._passes(ahead, pool, tally):
                waiting.append(part)
                if len(waiting) > _AHEAD:
                    launched.append(self._launch(waiting.popleft()))
                    # the pass before: its numbers come to the host while the device works on this one
                    yield from answer.settled(launched, keep=1)
            for part in waiting:
                launched.append(self._launch(part))
                yield from answer.settled(launched, keep=1)
            yield from answer.settled(launched, keep=0)

    def _passes(self, batches: Iterator[pa.RecordBatch], pool: ThreadPoolExecutor, tally: Tally) -> Iterator[_Pass]:
        for batch in batches:
            images, texts = batch.column("image"), batch.column("text")
            english = np.array([partition == "en" for partition in batch.column("partition").to_pylist()], bool)
            parts = []
            for role, rows in (("english", np.flatnonzero(english)), ("multilingual", np.flatnonzero(~english))):
                tally[f"scored_{role}"] += len(rows)
                if not len(rows):
                    continue
                size = self.batch_size if self._clip(role).device.type != "cpu" else min(self.batch_size, _CPU_PASS)
                parts += [(role, rows[at : at + size]) for at in range(0, len(rows), size)]
            for number, (role, rows) in enumerate(parts or [("english", np.arange(0))], 1):
                clip = self._clip(role)
                fits = [clip.fit] if self.head_model is None else [clip.fit, self._clip("head_model").fit]
                pictures = [pool.submit(_fitted, images[int(row)].as_py(), fits) for row in rows]
                tokens = pool.submit(clip.tokenize, [texts[int(row)].as_py() for row in rows])
                yield _Pass(rows, clip, pictures, tokens, number >= len(parts))

    def _launch(self, part: _Pass) -> _Launched:
        """Put a pass on the device, without waiting for it."""
        from curation.models.clip import OnItsWay

        fitted = list(zip(*(picture.result() for picture in part.pictures), strict=True)) or [(), ()]
        image = part.clip.embed_fitted(fitted[0])
        for_heads = image if self.head_model is None else self._clip("head_model").embed_fitted(fitted[1])
        text = part.clip.embed_tokens(part.tokens.result())
        return _Launched(part.rows, OnItsWay(image), OnItsWay(text), OnItsWay(for_heads), part.last)


class _Answer:
    """Puts the results of passes together into a batch of the stage's columns."""

    def __init__(self, stage: Score) -> None:
        self._stage = stage
        self._schema = stage.produces
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def settled(self, launched: deque[_Launched], *, keep: int) -> Iterator[pa.RecordBatch]:
        """Take passes off the device until only `keep` are on it; yield each batch whose last pass is among them."""
        while len(launched) > keep:
            done = launched.popleft()
            for_heads = done.for_heads.numpy()
            scores = {column: head(for_heads) for column, head in self._stage._heads.items()}
            self._parts.append((done.rows, done.image.numpy(), done.text.numpy(), scores))
            if done.last:
                yield self._batch()

    def _batch(self) -> pa.RecordBatch:
        order = np.argsort(np.concatenate([rows for rows, *_ in self._parts]))
        columns = {
            "similarity": _ordered([np.einsum("nd,nd->n", image, text) for _, image, text, _ in self._parts], order),
            "img_emb": self._halves([image for _, image, _, _ in self._parts], order),
            "txt_emb": self._halves([text for _, _, text, _ in self._parts], order),
        }
        for column in self._stage.heads:
            columns[column] = _ordered([scores[column] for *_, scores in self._parts], order)
        for name in ("similarity", *self._stage.heads):
            if not np.isfinite(columns[name]).all():
                raise BadShardError(f"{name} is not a number: set stages.score.precision to fp32 or bf16")
        self._parts = []
        return pa.RecordBatch.from_arrays(
            [pa.array(columns[field.name]) if field.name not in ("img_emb", "txt_emb") else columns[field.name]
             for field in self._schema], schema=self._schema,
        )  # fmt: skip

    def _halves(self, parts: Sequence[np.ndarray], order: np.ndarray) -> pa.Array:
        """Vectors as float16 lists; where two models differ in length, zeros fill the shorter: cosines stay."""
        width = max(part.shape[1] for part in parts)
        kind = self._schema.field("img_emb").type
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
        vectors = np.zeros((len(order), width), np.float16)
        at = 0
        for part in parts:
            vectors[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        values = pa.array(vectors[order].ravel())
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(values, type=kind)
        return pa.ListArray.from_arrays(np.arange(len(order) + 1, dtype=np.int32) * width, values)


class _ReadAhead:
    """Runs an iterator one item ahead in a thread, so that storage is read while the device computes."""

    def __init__(self, items: Iterator[pa.RecordBatch]) -> None:
        self._queue: queue.Queue[pa.RecordBatch | Exception | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(items,), name="read-ahead", daemon=True)

    def __enter__(self) -> Iterator[pa.RecordBatch]:
        self._thread.start()
        return self._items()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _items(self) -> Iterator[pa.RecordBatch]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _read(self, items: Iterator[pa.RecordBatch]) -> None:
        try:
            for item in items:
                self._queue.put(item)
                if self._stopped.is_set():
                    return
        except Exception as error:  # raised again where the batches are used
            self._queue.put(error)
        else:
            self._queue.put(None)


def _fitted(data: bytes, fits: Sequence[Callable[[np.ndarray], np.ndarray]]) -> tuple[np.ndarray, ...]:
    from curation.images.stored import decode_stored

    pixels = decode_stored(data)
    return tuple(fit(pixels) for fit in fits)


def _ordered(parts: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    together: np.ndarray = np.concatenate(parts)[order]
    return together

"""Train the filter: image-text matching on captions by people, with hard negatives drawn within the batch.

A batch of n pictures with a caption each gives 3 n pairs: the right ones, each picture with another's caption, each
caption with another's picture. The others are drawn by how alike the model's own contrastive vectors find them, so the
negatives grow harder as it learns; another caption of the same picture, or the same words, is never one. Right pairs
count twice, so that 0.5 parts right from wrong one to one, as CapFilt's threshold has it.

source   Li et al. 2021 (ALBEF), section 3.2, and 2022 (BLIP), section 3.2: hard negatives for ITM; ITC beside it
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.captions import registry
from curation.captions.evaluation import NEGATIVES, itm_auc
from curation.captions.fitting import Fit, Fitted, alone, fit
from curation.captions.records import Records
from curation.captions.registry import Data, Evaluation
from curation.captions.text import clean_caption
from curation.errors import BadShardError, ConfigError
from curation.images.stored import decode_stored
from curation.models.matcher import Matcher, open_matcher
from curation.models.shared_weights import require_own_weights
from curation.receipt import digest
from curation.store import Store, cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
TEMPERATURE = 0.07  # of the contrastive cosines; BLIP's start value
TOWERS: dict[str, tuple[str, ...]] = {"lite_blip": ("vision_model.tower.", "text_encoder.embeddings.encoder.")}
"""Weights that stay as they are, by model_type."""


class Matching(Fit):
    """How a matcher is trained; pictures of a micro_batch are each other's negatives, so it should not be small."""

    matcher: str = Field(
        "embedded", description="embedded, a folder or hub name, registry:NAME or registry:NAME@VERSION"
    )
    micro_batch: int = Field(32, ge=2, description="pairs at once on a device; negatives are drawn among them")
    contrastive: float = Field(0.5, ge=0, description="weight of the contrastive loss beside that of matching")


class Job(BaseModel):
    """The training of a matcher, as curation.captions.training.Job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    name: str
    records: str
    data: tuple[Data, ...] = ()
    settings: Matching
    parent: str = ""


class Trained(NamedTuple):
    """A fitted matcher and what it learnt from: learnt, dropped, pictures_broken."""

    matcher: Matcher
    fitted: Fitted
    base_model: str
    captions: Counter[str]


class Examples:
    """Pictures with one caption each; a picture of several captions comes as often."""

    def __init__(self, records: Records) -> None:
        self.counts: Counter[str] = Counter()
        self._records = records
        self._pairs: list[tuple[int, str]] = []
        for row, captions in enumerate(records.captions()):
            kept = [text for caption in captions if (text := clean_caption(caption))]
            self.counts["dropped"] += len(captions) - len(kept)
            self._pairs += [(row, text) for text in kept]
        self.counts["learnt"] = len(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray, str]:
        """Number of the picture, its pixels and the caption; of one that does not decode the next one that does."""
        for step in range(len(self)):
            row, text = self._pairs[(number + step) % len(self)]
            try:
                return row, decode_stored(self._records[row].image), text
            except BadShardError:
                self.counts["pictures_broken"] += 1
        raise BadShardError(f"{self._records.key}: none of the pictures decodes")


def train_matcher(settings: Matching, records: Records, work: Path) -> Trained:
    """Train a matcher on every caption of the records.

    work     folder for checkpoints of this run alone
    raises   as fit does; ConfigError for a matcher that can't be loaded
    """
    matcher = open_matcher(settings.matcher, device="cpu")
    examples = Examples(records)

    def build() -> PreTrainedModel:
        model = open_matcher(settings.matcher, device="cpu").model
        model.forward = partial(_pairs, model)  # the class's own has no place for negatives
        return model

    def collate(rows: list[tuple[int, np.ndarray, str]]) -> dict[str, torch.Tensor]:
        import torch

        inputs = matcher.inputs([pixels for _, pixels, _ in rows], [text for _, _, text in rows])
        numbers = torch.tensor([number for number, _, _ in rows])
        return inputs | {"pictures": numbers, "labels": numbers}

    frozen = TOWERS.get(matcher.model.config.model_type, ())
    loss = partial(matching_loss, contrastive=settings.contrastive)
    fitted = fit(build, examples, collate, loss, settings, work, frozen=frozen)
    del fitted.model.forward
    base = matcher.identity
    matcher.model = fitted.model.eval().cpu()
    return Trained(matcher, fitted, base, examples.counts)


def matching_loss(
    outputs: dict[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None,
    *, contrastive: float = 0.5,
) -> torch.Tensor:  # fmt: skip
    """Cross-entropy of matching over the 3 n pairs, and of the contrastive cosines, a picture.

    outputs   of the training forward: logits (3 n, 2), target (3 n,) with -100 for no pair, cosines (n, n), same
              (n, n): which caption is right for which picture
    labels    int64 (n,), number of the picture
    """
    import torch
    from torch.nn.functional import cross_entropy

    weights = torch.tensor([1.0, 2.0], device=labels.device)  # there are two wrong pairs for each right one
    logits, target = outputs["logits"].float(), outputs["target"]
    total = cross_entropy(logits, target, weight=weights, reduction="sum", ignore_index=-100) / 4
    if contrastive:
        same = outputs["same"].float()
        same = same / same.sum(dim=1, keepdim=True)
        similar = outputs["cosines"].float() / TEMPERATURE
        both = cross_entropy(similar, same, reduction="sum") + cross_entropy(similar.T, same, reduction="sum")
        total = total + contrastive * both / 2
    loss: torch.Tensor = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
    return loss


def hard_negatives(cosines: torch.Tensor, same: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One other column for each row, likelier the more alike, and whether there is one.

    cosines    float (n, n)        same   bool (n, n): columns that are right for the row and so left out
    """
    import torch

    odds = (cosines.detach().float() / TEMPERATURE).softmax(dim=1) + 1e-4
    odds = odds.masked_fill(same, 0)
    there = odds.sum(dim=1) > 0
    drawn = torch.multinomial(torch.where(there[:, None], odds, torch.ones_like(odds)), 1)[:, 0]
    return drawn, there


def _pairs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor,
    pictures: torch.Tensor,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The training forward: right pairs, then each picture with another's caption, then each caption likewise."""
    import torch

    tokens = model.vision_model(pixel_values=pixel_values).last_hidden_state
    own = torch.arange(len(pictures), device=pictures.device)
    if hasattr(model, "match_logits"):  # lite_blip
        words = model.text_encoder.embeddings(input_ids)
        image, text = model.cosine_features(tokens, words)
    else:
        from torch.nn.functional import normalize

        alone = model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        image = normalize(model.vision_proj(tokens[:, 0]), dim=-1)
        text = normalize(model.text_proj(alone[:, 0]), dim=-1)
    cosines = image @ text.T
    # the same words on another picture are right there, too
    same = (pictures[:, None] == pictures[None, :]) | (input_ids[:, None] == input_ids[None, :]).all(dim=-1)
    other_text, has_text = hard_negatives(cosines, same)
    other_image, has_image = hard_negatives(cosines.T, same)
    images, texts = torch.cat([own, own, other_image]), torch.cat([own, other_text, own])
    if hasattr(model, "match_logits"):
        logits = model.match_logits(tokens[images], words[texts], attention_mask[texts])
    else:
        fused = model.text_encoder(
            input_ids=input_ids[texts], attention_mask=attention_mask[texts], encoder_hidden_states=tokens[images]
        ).last_hidden_state
        logits = model.itm_head(fused[:, 0])
    wrong = torch.cat([has_text, has_image])
    target = torch.cat([torch.ones_like(own), torch.where(wrong, 0, -100)])
    return {"logits": logits, "target": target, "cosines": cosines, "same": same}


def train_version(job: Job, *, work: Path | None = None, captioner: str = "") -> registry.Manifest:
    """Train and register a version; a job that was killed goes on from its last checkpoint.

    captioner   name of the model whose captions it shall judge: ConfigError if the two share their text weights
    """
    folder = (work or cache_folder() / "training") / digest("matcher", job.model_dump_json())[:16]
    with alone(folder):
        return _train_version(job, folder, captioner)


def _train_version(job: Job, folder: Path, captioner: str) -> registry.Manifest:
    store, settings = Store(job.store), job.settings
    if settings.matcher.startswith(registry.PREFIX):
        reference = registry.resolve(store, settings.matcher, "matcher", "matcher")
        settings = settings.model_copy(update={"matcher": str(registry.local_folder(store, reference))})
    records = Records(store, job.records)
    trained = train_matcher(settings, records, folder)
    if captioner:
        from curation.models.captioner import open_captioner

        if captioner.startswith(registry.PREFIX):
            captioner = str(registry.local_folder(store, registry.resolve(store, captioner, "captioner")))
        require_own_weights(open_captioner(captioner, device="cpu").model, trained.matcher.model, (captioner, job.name))
    made = folder / "model"
    trained.matcher.save(made)
    (made / "training_log.json").write_text(json.dumps(trained.fitted.log))
    data = (Data(kind="records", name=job.records, version=records.digest, rows=len(records)), *job.data)
    return registry.register(
        store, job.name, made, role="matcher", base_model=trained.base_model, data=data,
        settings=job.settings.model_dump(mode="json"),
        metrics=trained.fitted.metrics | {"captions": dict(trained.captions)}, parent=job.parent,
    )  # fmt: skip


def evaluate_matchers(matchers: Sequence[Matcher], records: Records) -> list[float]:
    """ITM AUC of matchers on every caption by people of the records, against random ones of other pictures."""
    images: list[np.ndarray] = []
    texts: list[str] = []
    pictures: list[int] = []
    for number, record in enumerate(records):
        try:
            pixels = decode_stored(record.image)
        except BadShardError:
            continue
        images += [pixels] * len(record.captions)
        texts += record.captions
        pictures += [number] * len(record.captions)
    if len(set(pictures)) < 2:
        raise ConfigError(f"{records.key}: it takes two pictures or more, each with a caption by people")
    return [round(itm_auc(matcher, images, texts, pictures), 6) for matcher in matchers]


def evaluate_version(
    store: Store, name: str, version: str, held_out: Records, *, device: str = "auto"
) -> Evaluation:  # fmt: skip
    """Measure a matcher of the registry beside the one that it began from, and keep the metrics with it."""
    settings = {"negatives": NEGATIVES}
    standing = registry.evaluations(store, name, version).get(held_out.digest)
    if standing is not None and standing.settings == settings:
        return standing
    reference = registry.resolve(store, f"{registry.PREFIX}{name}@{version}", "matcher")
    began = str(registry.read(store, name, version).settings["matcher"])
    if began.startswith(registry.PREFIX):
        began = str(registry.local_folder(store, registry.resolve(store, began, "matcher")))
    pair = [
        open_matcher(str(registry.local_folder(store, reference)), device=device),
        open_matcher(began, device=device),
    ]
    mine, before = evaluate_matchers(pair, held_out)
    found = Evaluation(
        held_out=held_out.digest, pictures=len(held_out), metrics={"itm_auc": mine},
        settings=settings, beside={registry.UNTRAINED: {"itm_auc": before}},
    )  # fmt: skip
    registry.add_evaluation(store, name, version, found)
    return found

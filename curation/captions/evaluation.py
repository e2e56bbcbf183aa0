"""Measure captions on pictures that people captioned: BLEU-4, ROUGE-L, CIDEr-D, CLIPScore, and a matcher's AUC.

BLEU, ROUGE-L and CIDEr-D are pycocoevalcap's (the code of the COCO caption challenge) on lower-cased words without
punctuation, where the challenge has Stanford's tokenizer, which needs Java: on plain captions the two agree but for
possessives. For Chinese and Japanese a word is a character.

sources  Papineni et al. 2002; Lin 2004; Vedantam et al. 2015; Hessel et al. 2021 (CLIPScore: 2.5 max(cos, 0))
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curation.captions import registry
from curation.captions.halving import in_halves
from curation.captions.records import Record, Records
from curation.captions.registry import Evaluation
from curation.errors import BadShardError, ConfigError, OutageError
from curation.images.stored import decode_stored
from curation.store import Store

if TYPE_CHECKING:
    from curation.models.captioner import Captioner
    from curation.models.matcher import ClipMatcher, Matcher

log = logging.getLogger(__name__)
_WORD = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:'[^\W\d_]+)?|[\u3040-\u30ff\u3400-\u9fff]")
_BATCH = 64
CLIP_WEIGHT = 2.5  # Hessel et al. 2021, section 3
NEGATIVES = "random captions of other pictures, seed 0"
"""What ITM AUC sets a picture's own caption against; kept with the metrics, which compare only where it is the same."""


class Protocol(BaseModel):
    """How captions are drawn and who judges: metrics compare only where this is the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field("", description="as the model was trained with")
    num_beams: int = Field(3, ge=1)
    min_length: int = Field(5, ge=0, description="tokens")
    max_length: int = Field(20, ge=1, description="tokens")
    clip: str = Field("embedded", description="CLIP of the CLIPScore: embedded, ViT-L-14/openai, ...")
    matcher: str = Field("embedded", description="ITM model that tells a picture's own caption from another's")


def words(caption: str) -> list[str]:
    """Lower-cased words of a caption, apostrophes kept inside words; a Chinese or Japanese character is a word."""
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def reference_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu4, rouge_l (0..1) and cider (CIDEr-D, 0..10) of one caption a picture against its references.

    raises   ConfigError for a picture without a reference, or fewer than two pictures: CIDEr weighs words by how many
             pictures have them
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    if len(captions) < 2 or not all(references):
        raise ConfigError("evaluation: it takes two pictures or more, each with a caption by people")
    said = {at: [" ".join(words(caption))] for at, caption in enumerate(captions)}
    truth = {at: [" ".join(words(one)) for one in several] for at, several in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):  # BLEU prints its lengths
        bleu, _ = Bleu(4).compute_score(truth, said)
        rouge, _ = Rouge().compute_score(truth, said)
        cider, _ = Cider().compute_score(truth, said)
    return {"bleu4": float(bleu[3]), "rouge_l": float(rouge), "cider": float(cider)}


def clip_score(clip: ClipMatcher, images: Sequence[np.ndarray], captions: Sequence[str]) -> float:
    """Mean CLIPScore, 0..2.5, of one caption a picture."""
    cosines = np.concatenate(
        [clip.match(images[at : at + _BATCH], captions[at : at + _BATCH]) for at in _starts(images)]
    )
    return float((CLIP_WEIGHT * cosines.clip(min=0)).mean())


def wrong_captions(pictures: Sequence[int]) -> np.ndarray:
    """For each caption the number of one of another picture, drawn from all of them with NEGATIVES' seed: int64 (n,).

    pictures   which picture each caption is of: two different ones or more, else ValueError
    """
    of = np.asarray(pictures)
    if len(of) == 0 or (of == of[0]).all():
        raise ValueError("expected captions of two pictures or more")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(of), len(of))
    while len(own := np.flatnonzero(of[drawn] == of)):
        drawn[own] = rng.integers(0, len(of), len(own))
    return drawn


def itm_auc(
    matcher: Matcher | ClipMatcher, images: Sequence[np.ndarray], captions: Sequence[str],
    pictures: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """How often a picture's own caption scores above a random other's: the area under the ROC, 0..1, 0.5 is luck.

    All own scores are compared with all others. Of a captioner it says whether its captions tell pictures apart, of a
    matcher, on captions by people, whether it does.

    pictures   which picture each pair is of, where a picture has several captions
    """
    from scipy.stats import rankdata

    wrong = wrong_captions(range(len(images)) if pictures is None else pictures)
    found = []
    for texts in (captions, [captions[at] for at in wrong]):
        parts = [matcher.match(images[at : at + _BATCH], texts[at : at + _BATCH]) for at in _starts(images)]
        found.append(np.concatenate(parts))
    ranks = rankdata(np.concatenate(found))
    own = len(images)
    return float((ranks[:own].sum() - own * (own + 1) / 2) / own**2)


class Judges:
    """The models that judge, loaded once for several captioners; and what people and the web wrote, judged once."""

    def __init__(self, records: Records, protocol: Protocol, *, device: str = "auto") -> None:
        from curation.models.matcher import load_clip_matcher, load_matcher

        self.protocol = protocol
        self.held_out = records.digest
        kept = [(record, pixels) for record in records if (pixels := _pixels(record)) is not None and record.captions]
        if len(kept) < len(records):
            log.warning("evaluation: %d of %d held-out pictures have no caption or do not decode",
                        len(records) - len(kept), len(records))  # fmt: skip
        self.records = [record for record, _ in kept]
        self.images = [pixels for _, pixels in kept]
        self._references = [record.captions for record in self.records]
        self._clip = load_clip_matcher(protocol.clip, device=device)
        as_clip = protocol.matcher.startswith("clip:")
        self._matcher = (
            load_clip_matcher(protocol.matcher.removeprefix("clip:"), device=device)
            if as_clip
            else load_matcher(protocol.matcher, device=device)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The protocol, with the identities of the judges."""
        judges = {"clip": self._clip.identity, "matcher": self._matcher.identity}
        return self.protocol.model_dump() | judges | {"negatives": NEGATIVES}

    def metrics(self, captions: Sequence[str]) -> dict[str, float]:
        """All metrics of one caption a picture; an empty caption counts as one that says nothing."""
        measured = reference_metrics(captions, self._references)
        measured["clip_score"] = clip_score(self._clip, self.images, captions)
        measured["itm_auc"] = itm_auc(self._matcher, self.images, captions)
        return {name: round(value, 6) for name, value in measured.items()}

    def captions(self, captioner: Captioner) -> list[str]:
        """A caption for each picture, batches halved where memory is short."""
        protocol = self.protocol

        def caption(images: Sequence[np.ndarray]) -> Sequence[str]:
            return captioner.caption(
                images,
                num_beams=protocol.num_beams,
                min_length=protocol.min_length,
                max_length=protocol.max_length,
                prompt=protocol.prompt,
            )

        found, _ = in_halves(caption, self.images)
        if None in found:
            raise OutageError("evaluation: the device has no room to caption a single picture")
        return [text or "" for text in found]

    def alt_texts(self) -> list[str] | None:
        """What the web had for each picture, "" for nothing; None where no picture has any."""
        found = [record.alt or "" for record in self.records]
        return found if any(found) else None


def evaluate(captioner: Captioner, judges: Judges, *, untrained: Captioner | None = None) -> Evaluation:
    """Metrics of a captioner on the judges' pictures, beside those of the untrained one and of the alt texts."""
    beside = {}
    if untrained is not None:
        beside[registry.UNTRAINED] = judges.metrics(judges.captions(untrained))
    if (alts := judges.alt_texts()) is not None:
        beside["alt_text"] = judges.metrics(alts)
    measured = judges.metrics(judges.captions(captioner))
    return Evaluation(
        held_out=judges.held_out,
        pictures=len(judges.images),
        metrics=measured,
        settings=judges.settings,
        beside=beside,
    )


def evaluate_version(
    store: Store, name: str, version: str, judges: Judges, *, untrained: bool = True, device: str = "auto"
) -> Evaluation:
    """Measure a captioner of the registry and keep the metrics with it; what stands measured so already is returned.

    untrained   measure the model that it was trained from, too
    raises      ConfigError for a version that is not there, or no captioner
    """
    from curation.models.captioner import open_captioner

    standing = registry.evaluations(store, name, version).get(judges.held_out)
    if standing is not None and standing.settings == judges.settings:
        return standing
    reference = registry.resolve(store, f"{registry.PREFIX}{name}@{version}", "captioner")
    manifest = registry.read(store, name, version)
    before = None
    if untrained and (student := manifest.settings.get("student")):
        place = str(registry.local_folder(store, student)) if student.startswith(registry.PREFIX) else student
        before = open_captioner(place, device=device)
    captioner = open_captioner(str(registry.local_folder(store, reference)), device=device)
    found = evaluate(captioner, judges, untrained=before)
    registry.add_evaluation(store, name, version, found)
    return found


def _pixels(record: Record) -> np.ndarray | None:
    try:
        return decode_stored(record.image)
    except BadShardError:
        return None


def _starts(images: Sequence[np.ndarray]) -> range:
    return range(0, len(images), _BATCH)

"""Image-text matchers: how well a text describes a picture, by BLIP's ITM head, the embedded one, or a CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import ConfigError
from curation.models.captioner import (
    hide_progress_bars,
    pixel_values,
    require_all_weights,
    torch_device,
    weights_identity,
)
from curation.models.clip import Clip, load_clip

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.modeling_outputs import BaseModelOutputWithPooling

BATCH = 32  # pairs a forward pass; bounds memory, changes no result
MAX_TOKENS = 35  # BLIP's tokenisation for retrieval and filtering (Li et al. 2022, models/blip_itm.py)


@dataclass
class Matcher:
    """An image-text matching model, ready to score.

    identity     what receipts name: model and weights, e.g. "embedded/lite-blip-matcher@0123456789ab"

    A score doesn't depend on what else is in the batch, up to float rounding (about 1e-6).
    """

    identity: str
    model: PreTrainedModel
    _image_processor: ImageProcessingMixin
    _tokenizer: PreTrainedTokenizerBase
    _device: torch.device

    def match(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Probability that text i describes picture i: softmax of the ITM logits, column 1.

        images   uint8 (h, w, 3), RGB, any sizes; one that stands several times, as the same object, is looked at once
        texts    cut to 35 tokens
        returns  float32 (n,), 0..1; BLIP keeps a text from 0.5 on
        raises   ValueError if there are not as many texts as pictures
        """
        import torch

        if len(images) != len(texts):
            raise ValueError(f"expected one text per picture, found {len(images)} pictures and {len(texts)} texts")
        scores = np.empty(len(images), np.float32)
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            distinct = {id(image): image for image in images[part]}
            rows = [list(distinct).index(id(image)) for image in images[part]]
            made = self.inputs(list(distinct.values()), texts[part])
            inputs = {name: value.to(self._device) for name, value in made.items()}
            with torch.inference_mode(), _repeated(self.model, rows):
                logits = self.model(**inputs, use_itm_head=True).itm_score
            scores[part] = logits.float().softmax(dim=-1)[:, 1].cpu().numpy()
        return scores

    def inputs(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward, on the CPU: input_ids, attention_mask (n, length), pixel_values."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )  # fmt: skip
        pixels = pixel_values(self._image_processor, images)
        return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "pixel_values": pixels}

    def save(self, folder: Path) -> None:
        """Write the model with tokenizer and image processor, as load_matcher reads them."""
        self.model.save_pretrained(folder)
        if (backend := getattr(self._tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_padding()  # it remembers its last use: the same model would be other files
            backend.no_truncation()
        self._tokenizer.save_pretrained(folder)
        self._image_processor.save_pretrained(folder)


@contextmanager
def _repeated(model: PreTrainedModel, rows: list[int]) -> Iterator[None]:
    """Meanwhile the picture tower's output is that of `rows` of its pictures: texts of one picture share its pass."""

    def repeat(module: object, given: object, seen: BaseModelOutputWithPooling) -> BaseModelOutputWithPooling:
        seen.last_hidden_state = seen.last_hidden_state[rows]
        return seen

    handle = model.vision_model.register_forward_hook(repeat)
    try:
        yield
    finally:
        handle.remove()


def open_matcher(name: str = "embedded", *, device: str = "auto") -> Matcher:
    """Read a matcher of the BLIP family (Salesforce/blip-itm-*): a local folder, a hub name, or "embedded".

    device   "auto" is the first GPU, else the CPU; or any name torch knows. Weights are float32 everywhere
    raises   ConfigError if the name leads to no model, or to one without an ITM head or its weights
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BlipForImageTextRetrieval

    from curation.models import lite_blip
    from curation.models.embedded_blip import assemble

    hide_progress_bars()
    source = str(assemble.assembled("matcher")) if name == "embedded" else name
    # transformers has no Auto class for image-text matching
    classes = {"blip": BlipForImageTextRetrieval, "lite_blip": lite_blip.LiteBlipForImageTextRetrieval}
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in classes or "ForImageTextRetrieval" not in str(config.architectures):
            raise ConfigError(f"matcher {name!r}: expected a BLIP retrieval model, found {config.architectures}")
        model, found = classes[config.model_type].from_pretrained(source, dtype="float32", output_loading_info=True)
        require_all_weights(f"matcher {name!r}", found)
        image_processor = AutoImageProcessor.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"matcher {name!r} is not a loadable image-text matching model: {error}") from error
    where = torch_device(device)
    identity = assemble.identity("matcher") if name == "embedded" else weights_identity(name, model)
    return Matcher(identity, model.eval().to(where), image_processor, tokenizer, where)


load_matcher = lru_cache(maxsize=4)(open_matcher)
"""As open_matcher, but one copy a process, however many shards it takes; do not train it."""


@dataclass
class ClipMatcher:
    """A CLIP in the matcher's place: BLIP's filter asks the ITM head, whose probability a cosine is not."""

    identity: str
    clip: Clip

    def match(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Cosine of text i and picture i: float32 (n,), -1..1. Raises ValueError for another number of texts."""
        if len(images) != len(texts):
            raise ValueError(f"expected one text per picture, found {len(images)} pictures and {len(texts)} texts")
        return np.array([scores[0] for scores in self.rank(images, [[text] for text in texts])], np.float32)

    def rank(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Cosines of a picture with each of its texts, float32; a picture is embedded once."""
        pictures = self.clip.embed_images(images)
        words = self.clip.embed_texts([text for several in texts for text in several])
        ends = np.cumsum([len(several) for several in texts], dtype=np.int64)
        parts = np.split(words, ends[:-1]) if len(texts) else []
        return [part @ picture for part, picture in zip(parts, pictures, strict=True)]


def load_clip_matcher(name: str, *, device: str = "auto") -> ClipMatcher:
    """A CLIP by its name in one piece: embedded, hf-hub:ORG/MODEL, local-dir:PATH, or ARCHITECTURE/TAG of open_clip.

    raises   ConfigError naming what is unknown or not installed
    """
    whole = name.startswith(("embedded", "hf-hub:", "local-dir:"))
    architecture, _, pretrained = (name, "", "") if whole else name.partition("/")
    clip = load_clip(architecture, pretrained or None, device=device)
    return ClipMatcher(f"cosine of {clip.identity}", clip)

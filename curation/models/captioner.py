"""Captioners: pixels in, one sentence out, from the embedded model or any image-to-text model of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from curation.errors import ConfigError
from curation.images.anyres import GRIDS, Choice, Layout, Size, layout

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
    from transformers.image_processing_base import ImageProcessingMixin

BATCH = 32  # pictures a forward pass; bounds memory, changes no result
_LIKELIEST = 128  # words; a nucleus of 0.9 is rarely wider
Dtype = Literal["float32", "bfloat16", "float16"]
INSTRUCTION = "Describe this picture in one sentence."
"""What a model that takes instructions is asked where nothing else is said."""


class Tiling(NamedTuple):
    """How a model cuts pictures into AnyRes tiles: the choice of a grid, and its views [px]."""

    choice: Choice
    side: int
    patch: int

    def layout(self, image: np.ndarray) -> Layout:
        """Grid and visual tokens of a picture, uint8 (h, w, 3)."""
        rule, grids = self.choice
        size = image.shape[1], image.shape[0]
        return layout(size, rule=rule, grids=grids, side=self.side, patch=self.patch)


@dataclass
class Captioner:
    """An image-to-text model, ready to caption.

    identity     what receipts name: model and weights, e.g. "embedded/lite-blip-captioner@0123456789ab"

    A caption doesn't depend on what else is in the batch, up to float rounding: about 1e-5 in a logit, which can turn
    a choice only where two words are as likely as each other.
    """

    identity: str
    model: PreTrainedModel
    _image_processor: ImageProcessingMixin
    _tokenizer: PreTrainedTokenizerBase
    _device: torch.device
    _processor: ProcessorMixin | None = None  # of a model that reads the picture among the tokens of a prompt
    _tiling: Tiling | None = None  # of a model that cuts pictures into tiles

    def caption(
        self,
        images: Sequence[np.ndarray],
        *,
        num_beams: int = 1,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        min_length: int = 5,
        max_length: int = 20,
        seed: int = 0,
        prompt: str = "",
    ) -> list[str]:
        """Caption each picture: greedily, by beams, or by sampling from the nucleus.

        images       uint8 (h, w, 3), RGB, any sizes
        num_beams    width of the beam search; 1 is greedy
        top_p        sample among the likeliest words that together hold this much probability (0..1]; one beam only
        min_length, max_length   length of the caption in tokens of the model, start and end not counted
        seed         of the sampling. Each picture has its own stream, seeded by `seed` and the picture's pixels: its
                     caption doesn't depend on its place or its company; other seeds give other captions of it
        prompt       what the caption begins with, stripped from it (BLIP: "a picture of "); for a model that takes
                     instructions (LLaVA, Qwen-VL) the question, INSTRUCTION where it is empty
        raises       ValueError for settings that contradict each other, or arrays that are no pictures
        source       Li et al. 2022 (BLIP), appendix: nucleus 0.9, lengths 5 to 20 of their demo; Holtzman et al. 2020
        """
        import torch

        if top_p is not None and (num_beams != 1 or not 0 < top_p <= 1):
            raise ValueError(f"top_p must be in (0, 1] and takes one beam: found top_p={top_p}, num_beams={num_beams}")
        if not 0 <= min_length <= max_length:
            raise ValueError(f"expected 0 <= min_length <= max_length, found {min_length} and {max_length}")
        made = [""] * len(images)
        for rows in self._batches(images):
            part = [images[row] for row in rows]
            settings: dict[str, Any] = {
                "num_beams": num_beams,
                "do_sample": False,
                "repetition_penalty": repetition_penalty,
                "min_new_tokens": min_length,
                "max_new_tokens": max_length,
            }
            if top_p is not None:
                settings["logits_processor"] = [
                    nucleus(top_p, [picture_seed(image, seed) for image in part], max_length)
                ]
            inputs = self._inputs(part, prompt)
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, **settings)
            texts = self._tokenizer.batch_decode(_continued(tokens, inputs), skip_special_tokens=True)
            # BLIP gives the prompt back, cut by the token that ends it
            begin = prompt.strip().lower() if self._processor is None else ""
            for row, text in zip(rows, texts, strict=True):
                made[row] = text.strip().removeprefix(begin).strip()
        return made

    def layouts(self, images: Sequence[np.ndarray]) -> list[Layout | None]:
        """Grid and visual tokens of each picture, uint8 (h, w, 3); None of a model that cuts no tiles."""
        return [self._tiling and self._tiling.layout(image) for image in images]

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of captions, as they are written after a prompt: nothing before, no end."""
        ids: list[list[int]] = self._tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids
        return ids

    @property
    def end(self) -> int:
        """Token that ends a caption when the model writes one."""
        if self._processor is None:
            return int(self.model.config.text_config.sep_token_id)
        known = self.model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        return int(known[0] if isinstance(known, list) else known)

    def longest(self, prompt: str = "") -> int | None:
        """Tokens that a caption may have with its end; None where the context of the model is large."""
        if self._processor is not None:
            return None
        return int(self.model.config.text_config.max_position_embeddings) - len(self._begin(prompt))

    def examples(
        self, images: Sequence[np.ndarray], answers: Sequence[Sequence[int]], *, prompt: str = ""
    ) -> dict[str, torch.Tensor]:
        """What the model learns from: inputs and labels of pictures, each with the tokens that it should answer.

        images   uint8 (h, w, 3), RGB                answers   token ids, the end among them where there is one
        returns  the arguments of the model's forward, and labels, int64 of the shape of input_ids: -100 on the prompt,
                 the picture and the padding; a model's logits at one place are for the label at the next
        """
        import torch

        inputs = self._inputs(images, prompt)
        if self._processor is None:
            begin = torch.tensor([self._begin(prompt)]).repeat(len(images), 1)
            inputs |= {"input_ids": begin, "attention_mask": torch.ones_like(begin)}
        asked = inputs["input_ids"].shape
        pad = self._tokenizer.pad_token_id or 0
        width = max(map(len, answers))
        answer = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in answers])
        written = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in answers])
        added = {"input_ids": answer, "attention_mask": written}
        for name, value in inputs.items():
            if value.shape == asked:  # what some processors tell of each token goes on as that of a word
                inputs[name] = torch.cat([value, added.get(name, torch.zeros_like(answer))], dim=1)
        unlearnt = torch.full(asked, -100)
        inputs["labels"] = torch.cat([unlearnt, answer.masked_fill(written == 0, -100)], dim=1)
        return inputs

    def save(self, folder: Path) -> None:
        """Write the model with tokenizer and processor, as load_captioner reads them."""
        self.model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
        (self._processor or self._image_processor).save_pretrained(folder)

    def _batches(self, images: Sequence[np.ndarray]) -> Iterator[Sequence[int]]:
        """Rows of each forward pass: those of one grid where it is not the model that chooses, which is told then."""
        groups: dict[Size, list[int]] = {}
        chosen_here = self._tiling is not None and self._tiling.choice.rule == "nearest_aspect"
        if chosen_here:
            check_pictures(images)
        for row, found in enumerate(self.layouts(images) if chosen_here else [None] * len(images)):
            groups.setdefault(found.grid if found else (0, 0), []).append(row)
        for grid, rows in groups.items():
            if chosen_here:
                self._offer([grid])
            yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))

    def _offer(self, grids: Sequence[Size]) -> None:
        """Let the model choose among these grids alone; its processor, which cuts, and its network, which unpads."""
        assert self._tiling is not None
        assert self._processor is not None
        pinpoints = [[rows * self._tiling.side, columns * self._tiling.side] for columns, rows in grids]
        self._processor.image_processor.image_grid_pinpoints = pinpoints
        self.model.config.image_grid_pinpoints = pinpoints

    def _begin(self, prompt: str) -> list[int]:
        """What BLIP's decoder begins with."""
        begin = self._tokenizer(prompt.strip(), add_special_tokens=False).input_ids if prompt else []
        return [int(self.model.config.text_config.bos_token_id), *begin]

    def _inputs(self, images: Sequence[np.ndarray], prompt: str) -> dict[str, torch.Tensor]:
        if self._processor is not None:
            from PIL import Image

            check_pictures(images)
            asked = [_asked(self._processor, self.model.config.model_type, prompt)] * len(images)
            # a list of one a text: some processors read a flat list as the pictures of one text
            pictures = [[Image.fromarray(image)] for image in images]
            inputs = dict(self._processor(images=pictures, text=asked, padding=True, return_tensors="pt"))
        else:
            inputs = {"pixel_values": pixel_values(self._image_processor, images)}
            if prompt:
                begin = self._tokenizer(prompt.strip(), return_tensors="pt").input_ids
                inputs["input_ids"] = begin.repeat(len(images), 1)
        dtype = self.model.dtype
        return {
            name: value.to(self._device, dtype) if value.is_floating_point() else value.to(self._device)
            for name, value in inputs.items()
        }


def open_captioner(
    name: str = "embedded", *, device: str = "auto", dtype: Dtype = "float32", anyres: Choice | None = None
) -> Captioner:
    """Read an image-to-text model of transformers: a local folder, a hub name, or "embedded".

    BLIP, BLIP-2, LLaVA, LLaVA-NeXT, Qwen2-VL and whatever else the Auto classes build with a generate().

    device   "auto" is the first GPU, else the CPU; or any name torch knows
    anyres   how the grid of a picture is chosen; None: by LLaVA-NeXT's own rule, where the model cuts tiles
    raises   ConfigError if the name leads to no model, to one that captions no pictures, to weights that are not
             all there (what is missing would be drawn at random and write nonsense), or with `anyres` to a model of one
             view, or of a context that the tiles do not fit into
    """
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    from curation.models import lite_blip  # noqa: F401  registers its classes with the Auto classes
    from curation.models.embedded_blip import assemble

    hide_progress_bars()
    source = str(assemble.assembled("captioner")) if name == "embedded" else name
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, output_loading_info=True)
        require_all_weights(f"captioner {name!r}", found)
        image_processor = AutoImageProcessor.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = None
        if _reads_picture_tokens(model):
            processor = AutoProcessor.from_pretrained(source)
            processor.tokenizer.padding_side = "left"  # the caption continues at the right
    except (OSError, ValueError) as error:
        raise ConfigError(f"captioner {name!r} is not a loadable image-to-text model: {error}") from error
    where = torch_device(device)
    identity = assemble.identity("captioner") if name == "embedded" else weights_identity(name, model)
    tiling = _tiling(name, model, anyres)
    made = Captioner(identity, model.eval().to(where), image_processor, tokenizer, where, processor, tiling)
    if tiling is not None and anyres is not None:
        made._offer(tiling.choice.grids)
    return made


load_captioner = lru_cache(maxsize=4)(open_captioner)
"""As open_captioner, but one copy a process, however many shards it takes; do not train it."""


def hide_progress_bars() -> None:
    """Those of transformers, for loading and writing weights: the log of a task shows each as an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def require_all_weights(whose: str, found: dict[str, Any]) -> None:
    """Raises ConfigError when from_pretrained had to draw weights at random; `found` is its loading info."""
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{whose}: {len(missing)} weights are not in the files, such as {missing[0]}: the checkpoint is of another "
            "kind of model; name one that was trained for this"
        )


def _tiling(name: str, model: PreTrainedModel, anyres: Choice | None) -> Tiling | None:
    config = model.config
    if config.model_type != "llava_next":
        if anyres is not None:
            raise ConfigError(
                f"stages.caption.anyres: captioner {name!r} ({config.model_type}) sees a picture in one view: leave "
                "anyres out, or name a captioner of LLaVA-NeXT's kind, such as llava-hf/llava-v1.6-mistral-7b-hf"
            )
        return None
    side, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
    grids = tuple((width // side, height // side) for height, width in config.image_grid_pinpoints)
    if anyres is not None:
        grids = anyres.grids or (GRIDS if anyres.rule == "nearest_aspect" else grids)
        context = int(config.text_config.max_position_embeddings)
        for columns, rows in grids:
            needed = layout((columns * side, rows * side), grids=[(columns, rows)], side=side, patch=patch).unpadded
            if needed >= context:
                raise ConfigError(
                    f"stages.caption.anyres.grids: {columns}x{rows} takes {needed} visual tokens, and the context of "
                    f"captioner {name!r} is {context}: leave that grid out"
                )
    return Tiling(Choice(anyres.rule if anyres else "best_resolution", grids), side, patch)


def _reads_picture_tokens(model: PreTrainedModel) -> bool:
    config = model.config
    return any(getattr(config, key, None) is not None for key in ("image_token_id", "image_token_index")) and (
        config.model_type not in ("blip", "lite_blip")  # their configuration has the field, their decoder no use for it
    )


def _asked(processor: ProcessorMixin, model_type: str, prompt: str) -> str:
    """The text that a picture goes with: by the model's own template where it has one."""
    if model_type in ("blip-2", "instructblip"):
        return prompt  # their processors put the picture in front
    content = [{"type": "image"}, {"type": "text", "text": prompt or INSTRUCTION}]
    if getattr(processor, "chat_template", None):
        text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return text
    return f"USER: {processor.image_token}\n{prompt or INSTRUCTION} ASSISTANT:"  # LLaVA-1.5's, before templates


def _continued(tokens: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What was written after the prompt; some models give the prompt back, some don't."""
    prompt = inputs.get("input_ids")
    if prompt is None or tokens.shape[1] < prompt.shape[1] or not tokens[:, : prompt.shape[1]].equal(prompt):
        return tokens
    return tokens[:, prompt.shape[1] :]


def nucleus(top_p: float, seeds: Sequence[int], steps: int) -> LogitsProcessor:
    """Logits processor that makes greedy search sample: row i from its nucleus, with the stream of seeds[i].

    A stream is a number of [0, 1) for each of `steps` words: where the word stands in the mass of the nucleus, the
    likeliest first. So a draw is independent of the rest of the batch, which torch's one global generator can't give.
    """
    import torch
    from transformers import LogitsProcessor

    streams = [np.random.Generator(np.random.Philox(key=seed)).random(steps, dtype=np.float32) for seed in seeds]
    places = iter(torch.from_numpy(np.stack(streams, axis=1)))

    class Nucleus(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            place = next(places).to(scores.device)
            probabilities = scores.float().softmax(dim=-1)
            likeliest, words = probabilities.topk(min(_LIKELIEST, scores.shape[1]))
            chosen = words.gather(1, _drawn(likeliest, place, top_p))
            wide = likeliest.sum(dim=-1) < top_p
            if wide.any():  # sorting the whole vocabulary is dear: only of rows whose nucleus is wider
                ordered, order = probabilities[wide].sort(dim=-1, descending=True)
                chosen[wide] = order.gather(1, _drawn(ordered, place[wide], top_p))
            return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0)

    return Nucleus()


def _drawn(ordered: torch.Tensor, place: torch.Tensor, top_p: float) -> torch.Tensor:
    """Index of the word at `place`, (n,) in [0, 1), of the nucleus of `ordered`, (n, words) descending; (n, 1)."""
    reached = ordered.cumsum(dim=-1)
    within = (reached - ordered < top_p).sum(dim=-1, keepdim=True)  # words of the nucleus
    target = place[:, None] * reached.gather(1, within - 1)
    return (reached <= target).sum(dim=-1, keepdim=True).minimum(within - 1)


def picture_seed(image: np.ndarray, seed: int) -> int:
    """Seed of a picture's stream: 63 bits of a digest of its pixels, its shape and the run's seed."""
    digest = hashlib.blake2b(f"{seed} {image.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return int.from_bytes(digest.digest(), "little") >> 1


def pixel_values(image_processor: ImageProcessingMixin, images: Sequence[np.ndarray]) -> torch.Tensor:
    """Model input, float32 (n, 3, side, side), of pictures uint8 (h, w, 3) by the model's own image processor."""
    check_pictures(images)
    # copied: torch warns about arrays that it may not write to, such as those of a decoder or a memory map
    copies = [np.array(image) for image in images]
    pixels: torch.Tensor = image_processor(
        images=copies, return_tensors="pt", input_data_format="channels_last"
    ).pixel_values
    return pixels


def check_pictures(images: Sequence[np.ndarray]) -> None:
    """Raises ValueError for an array that is no uint8 (h, w, 3)."""
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected a uint8 picture of shape (h, w, 3), found {image.dtype} {image.shape}")


def torch_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU, else the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def weights_identity(name: str, model: PreTrainedModel) -> str:
    """Name for receipts of a model that is not embedded: the hub's commit, or a digest of a folder's weights."""
    if commit := getattr(model.config, "_commit_hash", None):
        return f"{name}@{commit[:12]}"
    digest = hashlib.sha256()
    for file in sorted(Path(name).iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json"):
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{Path(name).name}@{digest.hexdigest()[:12]}"

"""Captioned pictures with the outputs of the frozen image tower, for training on them again and again."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BlipImageProcessor

from curation.models import lite_blip
from curation.models.embedded_blip.assemble import TOWER

SPLIT_SEED = 0  # of the 500 train pictures that choose


@dataclass(frozen=True)
class Pictures:
    """Captions and tower outputs of the pictures; rows of grids, float16 (n, 16, 1280), follow captions.jsonl."""

    captions: list[list[str]]
    fit: list[int]  # rows of pictures that are learnt from
    choose: list[int]  # rows that choose epoch and threshold
    dev: list[int]  # rows that are only measured
    stored: np.ndarray

    def grids(self, rows: list[int]) -> torch.Tensor:
        """Tower outputs of rows, float32 (n, 16, 1280)."""
        return torch.from_numpy(self.stored[rows].astype(np.float32))


def image_processor() -> BlipImageProcessor:
    """BLIP's image processor with the tower's input: 256 px, squashed, [-1, 1]."""
    return BlipImageProcessor(size={"height": 256, "width": 256}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def read_pictures(folder: Path, cache: Path) -> Pictures:
    """Captions, splits and tower outputs (computed once, then mapped from the cache)."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [i for i, row in enumerate(rows) if row["split"] == "train"]
    random.Random(SPLIT_SEED).shuffle(train)
    dev = [i for i, row in enumerate(rows) if row["split"] == "dev"]
    stored = store_grids(folder, [row["image"] for row in rows], cache / "grids.npy")
    captions = [[c.lower().strip(" .") for c in row["en"]] for row in rows]
    return Pictures(captions, fit=train[500:], choose=train[:500], dev=dev, stored=stored)


def store_grids(folder: Path, names: list[str], path: Path) -> np.ndarray:
    """Tower outputs of every picture, float16 (n, 16, 1280), from the file or computed and stored there."""
    if path.exists():
        return np.load(path, mmap_mode="r")
    vision = lite_blip.LiteBlipVisionModel(lite_blip.LiteBlipVisionConfig()).eval()
    vision.tower.load_state_dict(lite_blip.tower_weights(str(TOWER.path()), vision.config.tower))
    processor = image_processor()
    part = path.with_suffix(".part.npy")
    part.parent.mkdir(parents=True, exist_ok=True)
    grids = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(len(names), 16, 1280))
    for start in range(0, len(names), 32):
        images = [np.array(Image.open(folder / "images" / n).convert("RGB")) for n in names[start : start + 32]]
        with torch.inference_mode():
            grid = vision.grid(processor(images=images, return_tensors="pt").pixel_values)
        grids[start : start + len(images)] = grid.half().numpy()
    grids.flush()
    part.rename(path)
    return np.load(path, mmap_mode="r")


def most_common_caption(pictures: Pictures) -> str:
    """The caption most often written for the pictures learnt from."""
    return Counter(c for r in pictures.fit for c in pictures.captions[r]).most_common(1)[0][0]


def means(pictures: Pictures, rows: list[int]) -> np.ndarray:
    """Mean tower output of pictures, float32 (n, 1280)."""
    return np.stack([pictures.stored[r].astype(np.float32).mean(axis=0) for r in rows])

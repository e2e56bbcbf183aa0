"""Copy detection descriptors of a user's own: any TorchScript network from squares of pixels to vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import ConfigError

_BATCH = 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Descriptor:
    """A TorchScript file, float32 (n, 3, side, side) to (n, d), and how its pictures are made.

    SSCD is published in this form (288 px, ImageNet's mean and std). Others are traced once; ISC's: 512 px, 0.5, 0.5.
    """

    file: str
    side_px: int = 288
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def space(self) -> str:
        """Name of the vectors' space where the user gives none: equal for the same file."""
        with Path(self.file).open("rb") as opened:
            return f"descriptor@{hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}"

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Describe pictures, squashed to the square: uint8 (h, w, 3) each -> float32 (n, d), rows of norm 1.

        raises   ConfigError where the file is no TorchScript
        """
        import torch

        mean, std = (torch.tensor(of).view(3, 1, 1) for of in (self.mean, self.std))
        parts = []
        for start in range(0, len(pictures), _BATCH):
            squares = np.stack([self._square(picture) for picture in pictures[start : start + _BATCH]])
            with torch.inference_mode():
                pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
                parts.append(torch.nn.functional.normalize(self._network((pixels - mean) / std).float(), dim=-1))
        vectors: np.ndarray = torch.cat(parts).numpy()
        return vectors

    def _square(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        side = (self.side_px, self.side_px)
        return np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.BICUBIC))

    @cached_property
    def _network(self) -> Any:
        import torch

        try:
            network: Any = torch.jit.load(self.file, map_location="cpu")  # type: ignore[no-untyped-call]
            return network.eval()
        except (RuntimeError, ValueError) as err:
            raise ConfigError(f"descriptor {self.file}: no TorchScript file: {str(err).splitlines()[0]}") from err

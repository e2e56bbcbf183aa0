"""CLIP models: pixels and captions in, unit vectors out, whatever open_clip can build, and the embedded one."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import ConfigError

if TYPE_CHECKING:
    import open_clip
    import PIL.Image
    import torch
    import torchvision

BATCH = 64  # captions a forward pass; bounds memory, changes no result
CPU_BATCH = 8  # of pictures, whose activations then stay in a core's caches: a fifth faster than 64


class OnItsWay:
    """A tensor on its way from the device to the host; the device goes on meanwhile."""

    def __init__(self, tensor: "torch.Tensor") -> None:
        import torch

        self._host, self._arrived = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def numpy(self) -> np.ndarray:
        """Wait for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


@dataclass
class Clip:
    """A CLIP model, ready to embed.

    identity     what receipts name: model and weights, e.g. "embedded/lite-clip@0123456789ab"
    dim          length of an embedding
    image_size   side of the square the image tower sees [px]
    model        the torch module; its inputs must be on `device` and of `dtype`

    An embedding doesn't depend on what else is in the batch, up to float rounding: 1e-5 in float32, 2e-3 in half.
    """

    identity: str
    dim: int
    image_size: int
    model: "open_clip.CLIP"
    device: "torch.device"
    dtype: "torch.dtype"
    _transform: "torchvision.transforms.Compose"
    _tokenize: Callable[[list[str]], "torch.Tensor"]
    _pad: int | None

    def preprocess(self, image: np.ndarray) -> "torch.Tensor":
        """Resize and normalise one picture with the model's own open_clip transform.

        image    uint8 (h, w, 3), RGB, any size     returns  float32 (3, image_size, image_size), on the CPU
        raises   ValueError for another shape or dtype
        """
        pixels: torch.Tensor = self._transform(_picture(image, self.image_size))
        return pixels

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop one picture: the transform of `preprocess` up to where it turns bytes into floats.

        A quarter of the bytes to copy to a device, which normalises the whole batch. No lock is held while Pillow
        works, so threads fit pictures in parallel.

        image    uint8 (h, w, 3), RGB, any size     returns  uint8 (image_size, image_size, 3)
        """
        picture = _picture(image, self.image_size)
        for step in self._transform.transforms[:-2]:
            picture = step(picture)
        return np.asarray(picture)

    def embed_fitted(self, fitted: Sequence[np.ndarray]) -> "torch.Tensor":
        """Embed what `fit` made, in one forward pass on a GPU; the call returns before the device is done.

        fitted   uint8 (image_size, image_size, 3) each     returns  float32 (n, dim) on the device, rows of norm 1
        """
        import torch
        from torch.nn import functional as F

        step = CPU_BATCH if self.device.type == "cpu" else max(1, len(fitted))
        pixels = torch.empty(
            (len(fitted), self.image_size, self.image_size, 3), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        if fitted:
            np.stack(fitted, out=pixels.numpy())
        vectors = torch.empty((len(fitted), self.dim), device=self.device)
        with torch.inference_mode():
            for start in range(0, len(fitted), step):
                part = pixels[start : start + step].to(self.device, non_blocking=True)
                vectors[start : start + step] = F.normalize(
                    self.model.encode_image(self._normalised(part)).float(), dim=-1
                )
        return vectors

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embed pictures.

        images   uint8 (h, w, 3), RGB, any sizes     returns  float32 (n, dim), rows of norm 1
        """
        vectors = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), BATCH):
            fitted = [self.fit(image) for image in images[start : start + BATCH]]
            vectors[start : start + BATCH] = self.embed_fitted(fitted).cpu().numpy()
        return vectors

    def tokenize(self, texts: Sequence[str]) -> "list[tuple[list[int], torch.Tensor]]":
        """Tokens of captions in batches, with the captions' places; what exceeds the model's context is cut."""
        size = BATCH if self.device.type == "cpu" else max(1, len(texts))
        # captions of a length share a batch: padding costs as much as text
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches = []
        for start in range(0, len(texts), size):
            rows = order[start : start + size]
            tokens = self._tokenize([texts[i] for i in rows])
            if self._pad is not None:
                tokens = tokens[:, : int((tokens != self._pad).sum(1).max())]
            batches.append((rows, tokens))
        return batches

    def embed_tokens(self, batches: "list[tuple[list[int], torch.Tensor]]") -> "torch.Tensor":
        """Embed what `tokenize` made: float32 (n, dim) on the device in the captions' order, rows of norm 1."""
        import torch
        from torch.nn import functional as F

        vectors = torch.empty((sum(len(rows) for rows, _ in batches), self.dim), device=self.device)
        with torch.inference_mode():
            for rows, tokens in batches:
                found = self.model.encode_text(tokens.to(self.device, non_blocking=True))
                vectors[rows] = F.normalize(found.float(), dim=-1)
        return vectors

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed captions; what exceeds the model's context is cut.

        returns  float32 (n, dim), rows of norm 1
        """
        return self.embed_tokens(self.tokenize(texts)).cpu().numpy()

    def _normalised(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """uint8 (n, h, w, 3) -> (n, 3, h, w) as the transform's last two steps make it, stored channels-last."""
        import torch

        normalize = self._transform.transforms[-1]
        mean = torch.tensor(normalize.mean, device=pixels.device)
        std = torch.tensor(normalize.std, device=pixels.device)
        return ((pixels.float() / 255 - mean) / std).to(self.dtype).permute(0, 3, 1, 2)


def embedding_space(name: str, pretrained: str | None) -> str:
    """Which vectors can be compared, and which heads fit: equal for models with the same image tower.

    "embedded" for both that come with the package, else architecture/weights, "ViT-L-14/openai"; the variant with
    QuickGELU is the same network written down exactly.
    """
    if name in ("embedded", "embedded-multi"):
        return "embedded"
    return f"{name.removesuffix('-quickgelu')}/{pretrained}" if pretrained else name


def embedding_dim(name: str) -> int | None:
    """Length of a model's embeddings, from its configuration alone; None where only loading it would tell."""
    if name in ("embedded", "embedded-multi"):
        return 384
    if name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
    else:
        package = importlib.util.find_spec("open_clip")
        if package is None or package.origin is None:
            return None
        path = Path(package.origin).parent / "model_configs" / f"{name}.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text())
    return int(config.get("model_cfg", config)["embed_dim"])


def _picture(image: np.ndarray, side: int) -> "PIL.Image.Image":
    """The picture; of one longer than `side` times its width the middle.

    open_clip's transform would make gigabytes of such a strip where it scales by the shorter side, and nothing where it
    scales by the longer.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 picture of shape (h, w, 3), found {image.dtype} {image.shape}")
    height, width, _ = image.shape
    if (long := max(height, width)) > (room := min(height, width) * side):
        start = (long - room) // 2
        image = image[start : start + room] if height > width else image[:, start : start + room]
    return Image.fromarray(np.ascontiguousarray(image))


@lru_cache(maxsize=4)  # one copy a process, however many shards it takes
def load_clip(name: str, pretrained: str | None = None, *, device: str = "auto", precision: str = "auto") -> Clip:
    """Load a CLIP model through open_clip.

    name         "embedded" (English) or "embedded-multi": no download; else an architecture of open_clip
                 ("ViT-B-32") or a folder in open_clip's layout ("local-dir:PATH", "hf-hub:ORG/MODEL")
    pretrained   tag of the architecture's weights ("laion2b_s34b_b79k") or a local file of them
    device       "auto" takes CUDA where there is one
    precision    one of open_clip's; "auto" is fp16 on CUDA and fp32 elsewhere
    raises       ConfigError naming what is unknown or not installed
    """
    try:
        import open_clip
        import torch
    except ImportError as error:
        raise ConfigError(f"CLIP models need the extra `models`: pip install 'curation[models]' ({error})") from error

    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if precision == "auto":
        precision = "fp16" if where.type == "cuda" else "fp32"
    source, identity = _resolve(name, pretrained)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            source,
            pretrained=pretrained,
            precision=precision,
            device=where,
            require_pretrained=True,
        )
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"open_clip could not load {name!r} with weights {pretrained!r}: {error}") from error
    # NHWC: convolutions without a change of layout at each, a third of the CPU time of an EfficientNet
    model.eval().to(memory_format=torch.channels_last)
    side = model.visual.image_size
    height, width = (side, side) if isinstance(side, int) else side
    if height != width:
        raise ConfigError(f"{name!r} wants pictures of {height} x {width} px; only square inputs are supported")
    clip = Clip(
        identity=identity,
        dim=0,
        image_size=height,
        model=model,
        device=where,
        dtype=open_clip.get_input_dtype(precision) or torch.float32,
        _transform=transform,
        _tokenize=open_clip.get_tokenizer(source),
        _pad=_trimmable_padding(model),
    )
    with torch.inference_mode():
        clip.dim = int(model.encode_text(clip._tokenize(["a"]).to(where)).shape[-1])
    return clip


def _resolve(name: str, pretrained: str | None) -> tuple[str, str]:
    """What open_clip is to be given for a name, and the identity for receipts."""
    import open_clip

    if name.startswith("embedded"):
        from curation.models.embedded.assemble import EMBEDDED, assembled

        if name not in EMBEDDED:
            raise ConfigError(f"unknown embedded model {name!r}; there are {', '.join(EMBEDDED)}")
        return f"local-dir:{assembled(EMBEDDED[name])}", EMBEDDED[name].identity
    if name.startswith("local-dir:"):
        weights = sorted(Path(name.removeprefix("local-dir:")).glob("*.safetensors"))
        if not weights:
            raise ConfigError(f"{name!r} holds no .safetensors file")
        return name, f"{weights[0].parent.name}@{_sha256(weights[0])[:12]}"
    if name.startswith("hf-hub:"):
        return name, name.removeprefix("hf-hub:")
    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip knows no architecture {name!r}; open_clip.list_models() lists them")
    if pretrained is None:
        raise ConfigError(f"{name!r} needs weights: set `pretrained` to a tag or a local file")
    if os.path.isfile(pretrained):
        return name, f"{name}@{_sha256(Path(pretrained))[:12]}"
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise ConfigError(f"{name!r} has no weights {pretrained!r}: neither a file nor one of {', '.join(tags)}")
    return name, f"{name}/{pretrained}"


def _trimmable_padding(model: "open_clip.CLIP") -> int | None:
    """Id of the padding token where the text tower masks it, so that shorter rows give the same vectors."""
    from open_clip.hf_model import HFTextEncoder

    text = getattr(model, "text", None)
    return int(text.config.pad_token_id) if isinstance(text, HFTextEncoder) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

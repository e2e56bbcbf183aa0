"""Heads: small networks on a CLIP image embedding that give one number, read from the files they are published in.

.zip           AutoKeras' SavedModel (LAION's NSFW heads): its tensors, without TensorFlow and without its graph
.pth, .pt      a PyTorch state dict, by `weights_only`: tensors, never code
.safetensors   tensors, and in the metadata what they are: space, hidden, output

In all of them: linear layers in the order of their names, and perhaps a normalisation of the input before the first.
"""

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np

from curation.errors import ConfigError
from curation.models.tf_bundle import read_bundle
from curation.models.weights import KNOWN, Activation, Output

_MAX_BYTES = 1 << 30  # unpacked; LAION's largest head has 14 MB
_TINY = 1e-7  # Keras' epsilon: what a standard deviation of 0 counts as


@dataclass(frozen=True)
class Head:
    """A network on embeddings.

    identity   for receipts: the column and the hash of its file
    space      the embedding space it was trained in, "ViT-L-14/openai"
    dim        length of the embeddings it takes
    layers     weight float32 (out, in) and bias float32 (out,) of each linear layer
    mean, std  float32 (dim,) of the normalisation before the first layer
    """

    identity: str
    space: str
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mean: np.ndarray
    std: np.ndarray
    hidden: Activation
    output: Output

    @property
    def dim(self) -> int:
        """Length of the embeddings it takes."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Score embeddings; they are scaled to norm 1 first, as all of LAION's heads want them.

        embeddings  float (n, dim)     returns  float32 (n,)
        """
        x = np.asarray(embeddings, np.float32)
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _TINY)
        x = (x - self.mean) / self.std
        for at, (weight, bias) in enumerate(self.layers):
            if at and self.hidden == "relu":
                x = np.maximum(x, 0)
            x = x @ weight.T + bias
        logits: np.ndarray = x[:, 0]
        if self.output == "identity":
            return logits
        with np.errstate(over="ignore"):  # exp(large) is inf, and 1 / inf the right 0
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def load_head(path: str, column: str, space: str, hidden: str | None = None, output: str | None = None) -> Head:
    """Read a head.

    column   what it is to measure: a published head of another column is refused
    space    embedding space that the recipe declares; a file that says another is refused
    hidden   activation between layers, output  activation of the last; None: what the file is known for
    raises   ConfigError naming file, field and fix
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"stages.score.heads.{column}.file: {path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    try:
        tensors, said = _tensors(file)
        layers, mean, std = _network(tensors)
    except (ValueError, KeyError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"stages.score.heads.{column}.file: {file.name} is no head that can be read: {first}"
        ) from error
    if known := KNOWN.get(digest):
        said = {"column": known.column, "space": known.space, "hidden": known.hidden, "output": known.output}
    declared = {"column": column, "space": space, "hidden": hidden, "output": output}
    for name, value in declared.items():
        if value is not None and said.get(name, value) != value:
            raise ConfigError(
                f"stages.score.heads.{column}: {file.name} is a head with {name} {said[name]!r}, the recipe says "
                f"{value!r}: take the file that fits, or set what the file is"
            )
    if len(layers) == 1:
        said.setdefault("hidden", "identity")  # there is nothing between one layer and itself
    return Head(
        f"{column}@{digest[:12]}",
        space,
        layers,
        mean,
        std,
        cast(Activation, _chosen(column, "hidden", hidden or said.get("hidden"), get_args(Activation))),
        cast(Output, _chosen(column, "output", output or said.get("output"), get_args(Output))),
    )


def _chosen(column: str, field: str, value: str | None, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"stages.score.heads.{column}.{field}: found {value!r}, set one of {', '.join(allowed)}")
    return value


def _tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and what the file says of itself."""
    if file.suffix == ".zip":
        return _saved_model(file), {}
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    if file.suffix in (".pth", ".pt"):
        import pickle

        import torch

        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"it holds more than tensors, which is not loaded ({error})") from error
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds no state dict: save model.state_dict()")
        return {name: value.float().numpy() for name, value in state.items()}, {}
    raise ValueError("expected .zip (AutoKeras), .pth, .pt or .safetensors")


def _saved_model(file: Path) -> dict[str, np.ndarray]:
    """Tensors of AutoKeras' SavedModel under the names that the other formats use."""
    with zipfile.ZipFile(file) as archive:
        parts = {}
        for member in archive.infolist():
            name = member.filename.rpartition("variables/")[2]
            if name in ("variables.index", "variables.data-00000-of-00001"):
                if member.file_size > _MAX_BYTES:
                    raise ValueError(f"{member.filename} has {member.file_size} bytes")
                parts[name] = archive.read(member)
    if len(parts) != 2:
        raise ValueError("it holds no variables/variables.index and variables.data-00000-of-00001")
    found = read_bundle(parts["variables.index"], parts["variables.data-00000-of-00001"])
    tensors = {}
    for name, value in found.items():
        layer = re.fullmatch(r"(layer_with_weights-\d+)/(kernel|bias|mean|variance)/.ATTRIBUTES/VARIABLE_VALUE", name)
        if layer is None:
            continue  # metrics of its training, and look-up tables of columns that AutoKeras took for categories: empty
        kind = {"kernel": "weight"}.get(layer[2], layer[2])
        tensors[f"{layer[1]}.{kind}"] = value.T if kind == "weight" else value
    return tensors


def _network(
    tensors: dict[str, np.ndarray],
) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], np.ndarray, np.ndarray]:
    """Linear layers in order, mean and standard deviation of the input. Raises ValueError where they don't fit."""
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        grouped.setdefault(layer, {})[kind] = np.ascontiguousarray(value, np.float32)
    linear, mean, variance = [], None, None
    for layer in sorted(grouped, key=_natural):
        parts = grouped[layer]
        if parts.keys() == {"weight", "bias"} and parts["weight"].ndim == 2:
            linear.append((parts["weight"], parts["bias"]))
        elif parts.keys() == {"mean", "variance"} and mean is None:
            mean, variance = parts["mean"].ravel(), parts["variance"].ravel()
        else:
            raise ValueError(f"{layer or 'the top level'} holds {', '.join(sorted(parts))}: no linear layer")
    if not linear:
        raise ValueError("it holds no linear layer (weight and bias)")
    width = linear[0][0].shape[1]
    mean = np.zeros(width, np.float32) if mean is None else mean
    variance = np.ones(width, np.float32) if variance is None else variance
    if mean.shape != (width,) or variance.shape != (width,):
        raise ValueError(f"normalisation of {mean.shape} before a layer that takes {width}")
    for weight, bias in linear:
        if weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(f"a layer of {weight.shape} with bias {bias.shape} after one of width {width}")
        width = len(weight)
    if width != 1:
        raise ValueError(f"its last layer gives {width} numbers, expected 1")
    if not all(np.isfinite(value).all() for pair in linear for value in pair):
        raise ValueError("its weights are not all finite")
    if not (np.isfinite(mean).all() and (variance >= 0).all()):
        raise ValueError("its normalisation is not finite")
    return tuple(linear), mean, np.maximum(np.sqrt(variance), np.float32(_TINY))


def _natural(name: str) -> list[tuple[int, str]]:
    """Key that puts layer 10 after layer 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

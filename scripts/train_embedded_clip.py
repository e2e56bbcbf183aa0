"""Train the heads of the embedded CLIP-like model on a folder of captioned pictures.

    python scripts/train_embedded_clip.py FOLDER [--cache DIR] [--validate | --measure]

FOLDER holds captions.jsonl (image, split, and lists of captions: en, zh) and images/. Backbones stay frozen, so their
features are computed once into --cache. Held out, and never looked at while the recipe was chosen: all pictures of
split "dev" and 500 others drawn by SEED. The recipe was chosen on 500 more (--validate), which the final run trains on.
Prints the table of metrics; --measure prints it for the committed heads without training.
"""

import argparse
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from curation.models.clip import load_clip
from curation.models.embedded import assemble
from curation.models.embedded.towers import MEMBERS, CurationE5Pooler, CurationMinilmPooler, HeadEnsemble, LiteTowers

SEED = 20240501
HELD_OUT = 500  # pictures of split "train" kept out beside all of "dev"
# the captions each text head learns from: (language, number)
CAPTIONS = {
    "en": [("en", i) for i in range(5)],
    "multi": [("zh", i) for i in range(5)] + [("en", i) for i in range(2)],
}
POOLERS = {"en": CurationMinilmPooler, "multi": CurationE5Pooler}


@dataclass(frozen=True)
class Recipe:
    """How a pair of heads is trained; chosen on the validation pictures (docs/models.md)."""

    epochs: int = 60
    batch: int = 1000  # pictures: the other 999 captions are the wrong ones
    rate: float = 1e-3
    weight_decay: float = 0.05
    drop_features: float = 0.2
    drop_hidden: float = 0.4
    inverse_temperature: float = 20.0  # at the start; it is learned
    averaging: float = 0.98  # of weights over steps


@dataclass
class Captioned:
    """Pictures with captions, split by position."""

    folder: Path
    rows: list[dict]
    held_out: np.ndarray = field(init=False)
    fit: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        split = np.array([row["split"] for row in self.rows])
        train = np.random.default_rng(SEED).permutation(np.flatnonzero(split == "train"))
        self.held_out = np.concatenate([np.flatnonzero(split == "dev"), train[:HELD_OUT]])
        self.fit = train[HELD_OUT:]

    def picture(self, i: int) -> np.ndarray:
        """Pixels of the i-th picture: uint8 (h, w, 3)."""
        return np.asarray(Image.open(self.folder / "images" / self.rows[i]["image"]).convert("RGB"))


def image_features(data: Captioned, cache: Path) -> Tensor:
    """Features of all pictures: float32 (pictures, 3840)."""
    path = cache / "image_features.npy"
    if not path.exists():
        towers = LiteTowers().eval()
        towers.load_state_dict(assemble.lite_backbones(), strict=False)
        look = image_transform(assemble.IMAGE_SIZE, is_train=False, **assemble.PREPROCESS)
        found = []
        for start in range(0, len(data.rows), 32):
            batch = range(start, min(start + 32, len(data.rows)))
            pixels = torch.stack([look(Image.fromarray(data.picture(i))) for i in batch])
            with torch.inference_mode():
                found.append(towers.features(pixels).half().numpy())
        np.save(path, np.concatenate(found))
    return torch.from_numpy(np.load(path).astype(np.float32))


def text_features(data: Captioned, model: str, wanted: list[tuple[str, int]], cache: Path) -> list[Tensor]:
    """Features of the captions (language, number) of every picture: float32 (pictures, layers * 384) each."""
    pooler = POOLERS[model]()
    paths = {key: cache / f"{model}_{key[0]}{key[1]}.npy" for key in wanted}
    if not all(path.exists() for path in paths.values()):
        with tempfile.TemporaryDirectory() as folder:
            state = assemble.write_minilm(Path(folder)) if model == "en" else assemble.write_e5(Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False).eval()
        encoder.load_state_dict({k: v.float() for k, v in state.items()})
        for (language, number), path in paths.items():
            texts = [row[language][number] for row in data.rows]
            found = np.empty((len(texts), pooler.head.into.in_features), np.float16)
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            for start in range(0, len(order), 64):
                rows = order[start : start + 64]
                tokens = tokenizer(
                    [texts[i] for i in rows],
                    padding=True,
                    truncation=True,
                    max_length=assemble.CONTEXT_LENGTH,
                    return_tensors="pt",
                )
                mask = tokens["attention_mask"]
                with torch.inference_mode():
                    output = encoder(input_ids=tokens["input_ids"], attention_mask=mask, output_hidden_states=True)
                    found[rows] = pooler.features(output, mask).half().numpy()
            np.save(path, found)
    return [torch.from_numpy(np.load(path).astype(np.float32)) for path in paths.values()]


class TrainedHead(nn.Module):
    """A head with what only training needs: standardised features and dropout."""

    def __init__(self, features: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.mean, self.std = features.mean(0), features.std(0) + 1e-3
        self.head = HeadEnsemble(features.shape[1])
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors (n, members, member_dim)."""
        members, hidden, _ = self.head.shape
        x = F.dropout((x - self.mean) / self.std, self.recipe.drop_features, self.training)
        h = F.dropout(F.gelu(self.head.into(x)), self.recipe.drop_hidden, self.training)
        return F.normalize(torch.einsum("nmh,mhd->nmd", h.view(len(x), members, hidden), self.head.out), dim=-1)

    def folded(self) -> dict[str, Tensor]:
        """Weights that take raw features, as float16."""
        weight = self.head.into.weight / self.std
        bias = self.head.into.bias - weight @ self.mean
        return {
            "into.weight": weight.detach().half(),
            "into.bias": bias.detach().half(),
            "out": self.head.out.detach().half(),
        }


def train(
    images: Tensor, texts: list[Tensor], recipe: Recipe, image_head: TrainedHead | None = None
) -> tuple[TrainedHead, TrainedHead]:
    """Fit both heads with a symmetric InfoNCE loss of each member; a given image head stays as it is."""
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    captions = torch.stack(texts)
    text_head = TrainedHead(captions.flatten(0, 1), recipe)
    heads = [text_head]
    frozen = None
    if image_head is None:
        image_head = TrainedHead(images, recipe)
        heads.append(image_head)
    else:
        with torch.no_grad():
            frozen = image_head.eval()(images)
    scale = nn.Parameter(torch.tensor(math.log(recipe.inverse_temperature)))
    weights = [p for head in heads for p in head.parameters()]
    averages = [w.detach().clone() for w in weights]
    optimiser = torch.optim.AdamW(
        [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": [scale], "weight_decay": 0.0}],
        lr=recipe.rate,
    )
    a_pass = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.rate, total_steps=recipe.epochs * a_pass, pct_start=0.1
    )
    step = 0
    for _ in range(recipe.epochs):
        order = torch.from_numpy(draw.permutation(len(images)))
        for rows in order[: a_pass * recipe.batch].split(recipe.batch):
            number = torch.from_numpy(draw.integers(0, len(texts), len(rows)))
            seen = image_head(images[rows]) if frozen is None else frozen[rows]
            logits = torch.einsum("amd,bmd->mab", seen, text_head(captions[number, rows])) * scale.exp()
            right = torch.arange(len(rows)).expand(MEMBERS, -1).reshape(-1)
            loss = sum(F.cross_entropy(x.reshape(-1, len(rows)), right) for x in (logits, logits.transpose(1, 2))) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            keep = min(recipe.averaging, step / (step + 10))
            with torch.no_grad():
                for average, weight in zip(averages, weights, strict=True):
                    average.lerp_(weight, 1 - keep)
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            weight.copy_(average)
    return image_head.eval(), text_head.eval()


def metrics(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Retrieval among all pictures, right against wrong captions, and the score that keeps 95 % of the right ones."""
    similarity = images @ texts.T
    right = np.diag(similarity)
    wrong = np.sort(similarity[~np.eye(len(right), dtype=bool)])
    keeps = float(np.quantile(right, 0.05))
    found = {f"i2t R@{k}": float(((similarity > right[:, None]).sum(1) < k).mean()) for k in (1, 5, 10)}
    found |= {f"t2i R@{k}": float(((similarity > right[None]).sum(0) < k).mean()) for k in (1, 5, 10)}
    found["AUC"] = float(np.searchsorted(wrong, right).mean() / len(wrong))
    found["keeps 95 %"] = keeps
    found["wrong above"] = float((wrong >= keeps).mean())
    return found


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Print metrics as a Markdown table."""
    names = list(next(iter(rows.values())))
    print("| captions | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
    for label, row in rows.items():
        print(f"| {label} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |", flush=True)


def measure(data: Captioned, model: str, languages: list[str]) -> dict[str, dict[str, float]]:
    """Metrics of a committed model on the held-out pictures, through the same path as users take."""
    clip = load_clip(model, device="cpu")
    images = np.concatenate(
        [clip.embed_images([data.picture(i) for i in rows]) for rows in np.array_split(data.held_out, 20)]
    )
    texts = {lang: clip.embed_texts([data.rows[i][lang][0] for i in data.held_out]) for lang in languages}
    return {f"{model}, {lang}": metrics(images, vectors) for lang, vectors in texts.items()}


def own_metrics(image_head: TrainedHead, images: Tensor, text_head: TrainedHead, texts: Tensor) -> dict[str, float]:
    """Metrics of heads in memory, on features."""
    with torch.inference_mode():
        left, right = (
            head(x).flatten(1).numpy() / MEMBERS**0.5 for head, x in ((image_head, images), (text_head, texts))
        )
    return metrics(left, right)


def main() -> None:
    """Train, write the heads, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "curation-features")
    parser.add_argument("--out", type=Path, default=assemble.HERE)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--validate", action="store_true", help="train on all but 500 of the training pictures")
    mode.add_argument("--measure", action="store_true", help="measure the heads that stand in the package")
    options = parser.parse_args()
    lines = (options.folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    data = Captioned(options.folder, [json.loads(line) for line in lines])
    if options.measure:
        print_table(measure(data, "embedded", ["en"]) | measure(data, "embedded-multi", ["zh", "en"]))
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    fit, judged = (data.fit[500:], data.fit[:500]) if options.validate else (data.fit, data.held_out)
    images = image_features(data, options.cache)
    found = {}
    image_head = None
    for model, wanted in CAPTIONS.items():
        texts = text_features(data, model, wanted, options.cache)
        image_head, text_head = train(images[fit], [t[fit] for t in texts], Recipe(), image_head)
        for language in {key[0]: None for key in wanted}:
            judged_texts = texts[wanted.index((language, 0))][judged]
            found[f"{model}, {language}"] = own_metrics(image_head, images[judged], text_head, judged_texts)
        print_table(found)
        if not options.validate:
            write_head(image_head, "visual.trunk.head", options.out / "image_head.safetensors")
            name = {"en": "text_head", "multi": "text_head_multi"}[model]
            write_head(text_head, "text.pooler.head", options.out / f"{name}.safetensors")


def write_head(head: TrainedHead, prefix: str, path: Path) -> None:
    """Write a head under the names it has in the assembled model."""
    save_file({f"{prefix}.{k}": v.contiguous() for k, v in head.folded().items()}, path)


if __name__ == "__main__":
    main()

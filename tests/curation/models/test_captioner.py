"""Real models: the embedded captioner, and a tiny random BLIP saved as Salesforce's are."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

from safetensors import safe_open
from skimage import data

from curation.errors import ConfigError
from curation.images.anyres import Choice
from curation.models.captioner import Captioner, load_captioner, open_captioner
from tests.curation.models.tiny import SAVERS, VOCABULARY, save_tiny_llava_next

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CURATION_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def captioner(cache: Path) -> Captioner:
    return load_captioner("embedded", device="cpu")


def save_tiny_blip(folder: Path, seed: int) -> Path:
    """A BLIP of two layers with random weights, in the files of a hub repository."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", "red", "ball", "snow"]
    # as in Salesforce's repositories, the start token is known to the model and not to the tokenizer
    text = {
        "vocab_size": len(words) + 1,
        "bos_token_id": len(words),
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 32, "patch_size": 16, "initializer_range": 0.5}
    config = BlipConfig(text_config=text | size | {"initializer_range": 0.5}, vision_config=vision | size)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def test_a_picture_gets_a_sentence_about_what_it_shows(captioner: Captioner) -> None:
    (caption,) = captioner.caption([data.astronaut()], num_beams=3)
    assert len(caption.split()) >= 4
    assert {"man", "woman", "girl", "boy", "person", "people"} & set(caption.split()), caption


def test_captions_follow_the_order_of_the_pictures_and_stand_for_themselves(captioner: Captioner) -> None:
    images = [data.astronaut(), data.coffee()]
    together = captioner.caption(images)
    assert captioner.caption(images[1:]) == together[1:]
    assert captioner.caption(images[::-1]) == together[::-1]


def test_a_sampled_caption_depends_on_picture_and_seed_alone(captioner: Captioner) -> None:
    astronaut, coffee = data.astronaut(), data.coffee()
    together = captioner.caption([astronaut, coffee], top_p=0.9, seed=3)
    assert captioner.caption([coffee, astronaut, coffee], top_p=0.9, seed=3) == [together[1], *together]
    assert len({together[1], *captioner.caption([coffee], top_p=0.9, seed=4), *captioner.caption([coffee])}) == 3


def test_a_nucleus_of_one_word_is_greedy(captioner: Captioner) -> None:
    assert captioner.caption([data.coffee()], top_p=1e-6, seed=9) == captioner.caption([data.coffee()])


@pytest.mark.parametrize("vocabulary", [4, 300])
def test_the_nucleus_is_sampled_with_the_models_probabilities(vocabulary: int) -> None:
    import torch

    from curation.models.captioner import nucleus

    probabilities = torch.tensor([0.05, 0.5, 0.3, 0.15])  # the nucleus of 0.75 is words 1 and 2: 5 to 3
    scores = torch.nn.functional.pad(probabilities.log(), (0, vocabulary - 4), value=-torch.inf).expand(4000, -1)
    sample = nucleus(0.75, range(4000), 2)
    for drawn in (sample(torch.zeros(4000, 1), scores).argmax(dim=-1) for _ in range(2)):
        expect_shares(torch.bincount(drawn, minlength=4) / 4000)


def test_a_nucleus_wider_than_the_likeliest_words_loses_none_of_them() -> None:
    import torch

    from curation.models.captioner import nucleus

    even = torch.zeros(1, 1000).expand(4000, -1)
    narrow = torch.tensor([[9.0] + [0.0] * 999])  # a row of its own kind in the same batch
    drawn = nucleus(0.9, range(4001), 1)(torch.zeros(4001, 1), torch.cat([even, narrow])).argmax(dim=-1)
    counts = torch.bincount(drawn[:-1], minlength=1000)
    assert 850 < (counts > 0).sum() <= 900  # 900 words, drawn 4.4 times each: 1.2 % are never drawn
    assert counts.max() < 20
    assert drawn[-1] == 0
    assert nucleus(0.9, range(1), 1)(torch.zeros(1, 1), even[:1]).argmax() == drawn[0]


def expect_shares(shares: Any) -> None:
    assert shares[0] == shares[3] == 0
    assert shares[1].item() == pytest.approx(0.625, abs=0.025)  # 3 standard deviations are 0.023


def test_lengths_are_kept(captioner: Captioner) -> None:
    (short,) = captioner.caption([data.coffee()], min_length=1, max_length=3)
    (long,) = captioner.caption([data.coffee()], min_length=15, max_length=20)
    assert len(short.split()) <= 3
    assert len(long.split()) > len(short.split())


def test_no_picture_is_no_caption(captioner: Captioner) -> None:
    assert captioner.caption([]) == []


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.9, "num_beams": 3}, {"top_p": 0.0}, {"min_length": 9, "max_length": 5}]
)
def test_settings_that_contradict_each_other_are_refused(captioner: Captioner, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"top_p|min_length"):
        captioner.caption([data.coffee()], **settings)


@pytest.mark.parametrize("array", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_arrays_that_are_no_pictures_are_refused(captioner: Captioner, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 picture"):
        captioner.caption([array])


def test_blip_loads_through_the_same_door(tmp_path: Path) -> None:
    captioner = load_captioner(str(save_tiny_blip(tmp_path / "blip", seed=0)))
    images = [data.astronaut(), data.coffee()]
    captions = captioner.caption(images, num_beams=3, repetition_penalty=1.1)
    assert all(set(caption.split()) <= {"a", "dog", "runs", "red", "ball", "snow"} for caption in captions), captions
    assert any(captioner.caption(images, top_p=1.0, min_length=8))
    assert captioner.caption(images, top_p=0.9, seed=1)[1] == captioner.caption(images[1:], top_p=0.9, seed=1)[0]


@pytest.mark.parametrize("family", SAVERS)
def test_models_that_read_the_picture_among_words_load_through_the_same_door(family: str, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    captioner = load_captioner(str(SAVERS[family](tmp_path / family)))
    images = [data.astronaut()[:60, :40], data.coffee()[:40, :100], data.chelsea()[:30, :30]]
    captions = captioner.caption(images, top_p=0.9, max_length=8)
    assert all(set(caption.split()) <= set(VOCABULARY) and len(caption.split()) <= 8 for caption in captions), captions
    assert captioner.caption(images[1:], top_p=0.9, max_length=8) == captions[1:]  # whatever else is in the batch
    asked = captioner.caption(images, num_beams=2, prompt="a red dog", max_length=8)
    assert all(len(caption.split()) <= 8 and not caption.startswith("a red dog") for caption in asked), asked


SHAPES = ((28, 28), (20, 20), (60, 40), (40, 100), (30, 90), (300, 31), (57, 58))
"""Height and width."""


@pytest.mark.parametrize(
    ("asked", "grids"),
    [
        (None, ["2x1", "2x1", "2x2", "3x1", "3x1", "1x3", "2x2"]),
        (Choice(grids=((1, 1), (2, 2))), ["1x1", "1x1", "2x2", "2x2", "2x2", "2x2", "2x2"]),
        (Choice("nearest_aspect"), ["1x1", "1x1", "2x3", "2x1", "3x1", "1x3", "1x1"]),
    ],
    ids=str,
)
def test_large_pictures_are_seen_in_the_tiles_that_are_told(
    asked: Choice | None, grids: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The production classes of transformers: what their processor cut and what their network read is counted."""
    from transformers import LlavaNextForConditionalGeneration

    captioner = open_captioner(str(save_tiny_llava_next(tmp_path_factory.mktemp("next"))), device="cpu", anyres=asked)
    assert isinstance(captioner.model, LlavaNextForConditionalGeneration)
    images = [np.random.default_rng(at).integers(0, 256, (*shape, 3), np.uint8) for at, shape in enumerate(SHAPES)]
    layouts = [found for found in captioner.layouts(images) if found is not None]
    assert ["{}x{}".format(*found.grid) for found in layouts] == grids
    assert [found.flat for found in layouts] == [4 * (1 + found.grid[0] * found.grid[1]) for found in layouts]

    read: dict[int, tuple[int, int]] = {}  # by height and width: tokens, views
    generate = captioner.model.generate

    def counted(**inputs: Any) -> Any:
        tokens = (inputs["input_ids"] == captioner.model.config.image_token_id).sum(dim=1).tolist()
        views = (inputs["pixel_values"].abs().amax(dim=(2, 3, 4)) > 0).sum(dim=1).tolist()
        sizes = map(tuple, inputs["image_sizes"].tolist())
        read.update(zip(sizes, zip(tokens, views, strict=True), strict=True))
        return generate(**inputs)

    monkeypatch.setattr(captioner.model, "generate", counted)
    captions = captioner.caption(images, max_length=6)
    assert read == {
        shape: (found.unpadded, 1 + found.grid[0] * found.grid[1]) for shape, found in zip(SHAPES, layouts, strict=True)
    }
    assert captioner.caption(images[::-1], max_length=6) == captions[::-1]


def test_tiles_are_refused_where_no_model_can_see_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.caption\.anyres: captioner .*\(llava\) sees a picture in one view"):
        open_captioner(str(SAVERS["llava"](tmp_path / "llava")), device="cpu", anyres=Choice())
    small = str(save_tiny_llava_next(tmp_path / "next", context=30))
    with pytest.raises(ConfigError, match=r"anyres\.grids: 2x3 takes 34 visual tokens, and the context .* is 30"):
        open_captioner(small, device="cpu", anyres=Choice(grids=((2, 2), (2, 3))))


def test_what_a_caption_begins_with_is_stripped_from_it(captioner: Captioner) -> None:
    plain, begun = captioner.caption([data.coffee()])[0], captioner.caption([data.coffee()], prompt="two dogs")[0]
    assert begun
    assert not begun.startswith("two dogs")
    assert begun != plain


def test_identity_follows_the_weights(tmp_path: Path, captioner: Captioner) -> None:
    first = load_captioner(str(save_tiny_blip(tmp_path / "a" / "blip", seed=0))).identity
    same = load_captioner(str(save_tiny_blip(tmp_path / "b" / "blip", seed=0))).identity
    other = load_captioner(str(save_tiny_blip(tmp_path / "c" / "blip", seed=1))).identity
    assert first == same != other
    assert captioner.identity.startswith("embedded/lite-blip-captioner@")


def test_a_name_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here"):
        load_captioner(str(tmp_path / "nothing-here"))


def test_processes_that_start_at_once_get_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.models.embedded_blip import assemble

    monkeypatch.setenv("CURATION_CACHE", str(tmp_path))
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(assemble.assembled("captioner"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert [folder.name for folder in tmp_path.iterdir()] == [folders[0].name]


def test_committed_weights_are_small_and_not_shared_with_the_matcher() -> None:
    from curation.models.embedded_blip.assemble import HERE

    files = [HERE / name / "trained.safetensors" for name in ("captioner", "matcher")]
    assert sum(file.stat().st_size for file in files) < 20e6
    stored = []
    for file in files:
        with safe_open(file, "numpy") as tensors:
            stored.append({tensors.get_tensor(key).tobytes() for key in tensors.keys() if "norm" not in key.lower()})  # noqa: SIM118
    assert not stored[0] & stored[1]


def scripts_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_caption_metrics_of_hand_made_captions() -> None:
    metrics = scripts_module("caption_metrics")
    references = [["a dog runs on the grass", "the dog runs"], ["two men play football", "men playing a game"]]
    right = [refs[0] for refs in references]
    assert metrics.bleu4(right, references) == 1
    assert metrics.bleu4(["a cat", "a cat"], references) == 0
    assert metrics.cider_d(right, references) > metrics.cider_d(["a dog runs", "two men"], references) > 0
    assert metrics.cider_d(right[::-1], references) == 0


@pytest.mark.shared
def test_captions_of_40_dev_pictures_beat_the_baseline(captioner: Captioner, shared: Path) -> None:
    from PIL import Image

    metrics = scripts_module("caption_metrics")
    folder = shared / "data" / "captions" / "flickr8k"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev"][:40]
    images = [np.array(Image.open(folder / "images" / row["image"]).convert("RGB")) for row in rows]
    references = [row["en"] for row in rows]
    score = metrics.cider_d(captioner.caption(images, num_beams=3), references)
    baseline = metrics.cider_d(["a dog runs through the grass"] * len(rows), references)
    assert score > 0.25 > 2 * baseline


@pytest.mark.shared
def test_the_tower_knows_imagenet(shared: Path) -> None:
    """The weights are renamed by position: only right predictions show that the order was right."""
    import timm
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor

    from curation.models.embedded_blip.assemble import TOWER, assembled
    from curation.models.lite_blip import tower_weights

    tower = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    stored = torch.load(TOWER.path(), weights_only=True)
    weights = tower_weights(str(TOWER.path()), "tf_efficientnet_lite2")
    tower.load_state_dict(weights | {"classifier.weight": stored["_fc.weight"], "classifier.bias": stored["_fc.bias"]})
    synsets = (Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    files = sorted((shared / "data" / "evalsets" / "imagenet32").glob("*.JPEG"))[::3]
    processor = AutoImageProcessor.from_pretrained(assembled("captioner"))
    pixels = processor(images=[Image.open(f).convert("RGB") for f in files], return_tensors="pt").pixel_values
    with torch.inference_mode():
        guesses = tower(pixels).argmax(dim=-1).tolist()
    right = sum(synsets[guess] == file.name.split("_")[0] for guess, file in zip(guesses, files, strict=True))
    assert right >= len(files) - 3, f"{right} of {len(files)}"

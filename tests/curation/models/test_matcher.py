"""Real models: the embedded matcher, and a tiny random BLIP retrieval model saved as Salesforce's are."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

from skimage import data

from curation.errors import ConfigError
from curation.models.matcher import Matcher, load_matcher


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATION_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield load_matcher("embedded", device="cpu")


PAIRS = [
    (data.astronaut(), "a woman in an orange suit smiles in front of a flag"),
    (data.coffee(), "a cup of coffee on a wooden table"),
    (data.chelsea(), "close up of the face of a cat"),
    (data.rocket(), "a rocket on its launch pad at night"),
]


def test_the_right_text_scores_above_the_wrong_ones(matcher: Matcher) -> None:
    wrong = [
        "two dogs run through the snow",
        "a man on a bicycle jumps over a ramp",
        "children play football on a field",
    ]
    for image, text in PAIRS[:1]:
        scores = matcher.match([image] * 4, [text, *wrong])
        assert scores.argmax() == 0, scores


def test_scores_are_probabilities_and_stand_for_themselves(matcher: Matcher) -> None:
    images, texts = [image for image, _ in PAIRS], [text for _, text in PAIRS]
    together = matcher.match(images, texts)
    assert together.dtype == np.float32
    assert together.shape == (4,)
    assert ((together >= 0) & (together <= 1)).all()
    alone = [matcher.match([image], [text])[0] for image, text in PAIRS]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_text_counts_up_to_35_tokens(matcher: Matcher) -> None:
    image = data.coffee()
    text = "a cup of coffee " * 20
    first, second = matcher.match([image, image], [text, text + "and two dogs in the snow"])
    assert first == pytest.approx(second, abs=1e-5)


def test_awkward_texts_get_a_score(matcher: Matcher) -> None:
    texts = ["", "   ", "日本語の説明", "x" * 5000, "\x00\ufffd"]
    assert np.isfinite(matcher.match([data.coffee()] * len(texts), texts)).all()


def test_no_pair_is_no_score_and_odd_pairs_are_refused(matcher: Matcher) -> None:
    assert matcher.match([], []).shape == (0,)
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        matcher.match([data.coffee()], ["a", "b"])


def save_tiny_blip(folder: Path) -> Path:
    """A BLIP retrieval model of two layers with random weights, in the files of a hub repository."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "dog", "runs", "red", "ball", "snow"]
    text = {"vocab_size": len(words), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"image_size": 32, "patch_size": 16, "initializer_range": 0.5}
    config = BlipConfig(text_config=text | size, vision_config=vision | size, image_text_hidden_size=16)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def test_blip_loads_through_the_same_door_and_scores_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    folder = save_tiny_blip(tmp_path)
    matcher = load_matcher(str(folder))
    inputs = AutoProcessor.from_pretrained(folder)(
        images=Image.fromarray(data.coffee()), text="a red dog runs", return_tensors="pt"
    )
    with torch.inference_mode():
        expected = BlipForImageTextRetrieval.from_pretrained(folder)(**inputs).itm_score.softmax(dim=-1)[0, 1].item()
    scores = matcher.match([data.coffee()] * 2, ["a red dog runs", "a ball a ball a ball a ball"])
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert matcher.identity.startswith(f"{tmp_path.name}@")


def test_a_picture_of_several_texts_is_looked_at_once(tmp_path: Path) -> None:
    matcher = load_matcher(str(save_tiny_blip(tmp_path)))
    coffee, cat = data.coffee(), data.chelsea()
    images, texts = [coffee, cat, coffee, cat.copy()], ["a dog", "a red ball", "snow", "a red ball"]
    alone = [matcher.match([image.copy()], [text])[0] for image, text in zip(images, texts, strict=True)]
    seen: list[int] = []
    matcher.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    assert matcher.match(images, texts) == pytest.approx(alone, abs=1e-5)
    assert seen == [3]
    assert len(set(alone)) == 3


def test_a_model_that_does_not_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here"):
        load_matcher(str(tmp_path / "nothing-here"))
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="expected a BLIP retrieval model"):
        load_matcher(str(tmp_path))


@pytest.mark.shared
def test_right_captions_of_24_dev_pictures_part_from_wrong_ones(matcher: Matcher, shared: Path) -> None:
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    folder = shared / "data" / "captions" / "flickr8k"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev"][:24]
    images = [np.array(Image.open(folder / "images" / row["image"]).convert("RGB")) for row in rows]
    right = matcher.match(images, [row["en"][0] for row in rows])
    wrong = matcher.match(images, [row["en"][0] for row in rows[12:] + rows[:12]])
    assert roc_auc_score([1] * 24 + [0] * 24, np.concatenate([right, wrong])) > 0.9
    assert ((right >= 0.5).mean() + (wrong < 0.5).mean()) / 2 > 0.8

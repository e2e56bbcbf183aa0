"""The filter learns to tell captions apart, by the classes of production: BLIP's own and the embedded one's."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra: pip install curation[models]")

import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from curation.captions import registry
from curation.captions.matching import (
    Examples,
    Job,
    Matching,
    evaluate_matchers,
    evaluate_version,
    hard_negatives,
    matching_loss,
    train_matcher,
    train_version,
)  # fmt: skip
from curation.captions.records import Record, Records, write_records
from curation.cli import app
from curation.errors import ConfigError
from curation.models.matcher import load_matcher, open_matcher
from curation.store import Store
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm

COLOURS = {"a red ball": (220, 10, 10), "snow": (250, 250, 250), "a dog": (90, 60, 20), "runs": (10, 200, 30)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models of two layers: threads would wait for each other
    yield
    torch.set_num_threads(threads)


def picture(colour: tuple[int, int, int], number: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(-8, 8, (32, 32, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(store: Store, each: int = 6, first: int = 0) -> Records:
    rows = [
        Record(f"{first + at:032x}", picture(colour, first + at), (caption,))
        for at, (caption, colour) in enumerate(list(COLOURS.items()) * each)
    ]
    return Records(store, write_records(store, rows).key)


def settings(folder: Path, **changes: object) -> Matching:
    given = {
        "max_steps": 50,
        "batch_size": 12,
        "micro_batch": 12,
        "learning_rate": 1e-2,
        "warmup": 0.1,
        "device": "cpu",
    }
    return Matching.model_validate({"matcher": str(folder), **given, **changes})


def test_a_version_tells_right_from_wrong_and_is_no_twin_of_its_captioner(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tiny, captioner = save_tiny_itm(tmp_path / "itm"), save_tiny_blip(tmp_path / "captioner", seed=5)
    job = Job(store=store.root, name="filter", records=records(store).key, settings=settings(tiny))
    made = train_version(job, work=tmp_path / "work", captioner=str(captioner))
    assert made.role == "matcher"
    assert made.metrics["last_loss"] < made.metrics["first_loss"]
    found = evaluate_version(store, "filter", made.version, records(store, 3, first=100), device="cpu")
    assert found.metrics["itm_auc"] > 0.85 > found.beside["untrained"]["itm_auc"]
    assert registry.judge(store, "filter", made.version).better
    folder = registry.local_folder(store, f"registry:filter@{made.version}")
    assert load_matcher(str(folder), device="cpu").identity != load_matcher(str(tiny), device="cpu").identity
    assert train_version(job, work=tmp_path / "work", captioner=str(captioner)).version == made.version


def test_the_embedded_one_learns_but_for_its_frozen_towers(tmp_path: Path) -> None:
    before = {
        name: weight.clone() for name, weight in open_matcher("embedded", device="cpu").model.state_dict().items()
    }
    store = Store(tmp_path)
    quick = settings(Path("embedded"), max_steps=2, batch_size=4, micro_batch=4)
    trained = train_matcher(quick, records(store, 1), tmp_path / "work")
    after = trained.matcher.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"itm_head", "vision_proj", "text_proj", "text_encoder"} <= changed
    assert not any(
        name.startswith(("vision_model.tower.", "text_encoder.embeddings.encoder."))
        and not torch.equal(old, after[name])
        for name, old in before.items()
    )
    trained.matcher.save(tmp_path / "saved")
    again = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(again["itm_head.weight"], after["itm_head.weight"])
    pixels = [np.full((40, 40, 3), 200, np.uint8)]
    saved = open_matcher(str(tmp_path / "saved"), device="cpu")
    assert saved.match(pixels, ["a dog"]) == pytest.approx(trained.matcher.match(pixels, ["a dog"]), abs=1e-5)


def test_negatives_are_the_alike_ones_never_the_own_picture() -> None:
    torch.manual_seed(0)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = True
    cosines = torch.tensor([[0.9, 0.9, 0.8, 0.1]] * 4)
    drawn = torch.stack([hard_negatives(cosines, same)[0] for _ in range(200)])
    assert set(drawn[:, 0].tolist()) <= {2, 3}
    assert (drawn[:, 0] == 2).float().mean() > 0.95
    assert not bool(hard_negatives(cosines[:2, :2], torch.ones(2, 2, dtype=torch.bool))[1].any())


def test_the_loss_is_a_sum_over_pictures_and_right_pairs_weigh_as_much_as_wrong_ones() -> None:
    logits = torch.zeros(6, 2)
    outputs = {"logits": logits, "target": torch.tensor([1, 1, 0, 0, 0, 0]), "cosines": torch.eye(2)}
    outputs["same"] = torch.eye(2, dtype=torch.bool)
    labels = torch.tensor([0, 1])
    assert matching_loss(outputs, labels, contrastive=0).item() == pytest.approx(np.log(2), abs=1e-6)
    assert matching_loss(outputs, labels, 4, contrastive=0).item() == pytest.approx(np.log(2) / 2, abs=1e-6)
    assert matching_loss(outputs, labels).item() > matching_loss(outputs, labels, contrastive=0).item()


def test_hostile_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = write_records(store, [Record("0", b"no picture", ("a dog", "\x00", "x" * 100_000)), *records(store, 1)]).key
    examples = Examples(Records(store, key))
    assert examples.counts == {"dropped": 2, "learnt": 5}
    assert examples[0][0] == 1
    with pytest.raises(ConfigError, match="two pictures"):
        evaluate_matchers([], Records(store, write_records(store, [Record("0", b"no picture", ("a dog",))]).key))


def test_the_command_trains_measures_and_promotes(tmp_path: Path) -> None:
    store, tiny = Store(tmp_path / "store"), save_tiny_itm(tmp_path / "itm")
    asked = [
        "captions",
        "train-matcher",
        "filter",
        records(store, 2).key,
        "--held-out",
        records(store, 1, first=50).key,
    ]
    asked += ["--set", f"matcher={tiny}", "--set", "max_steps=2", "--set", "batch_size=4", "--set", "micro_batch=4"]
    told = CliRunner().invoke(
        app, [*asked, "--set", "device=cpu", "--store", store.root, "--json"], catch_exceptions=False
    )
    answer = json.loads(told.stdout)
    assert set(answer["metrics"]) == {"itm_auc"}
    assert answer["promoted"] == bool(registry.promoted(store, "filter"))
    with pytest.raises(ConfigError, match="colour"):
        CliRunner().invoke(app, [*asked, "--set", "colour=red", "--store", store.root], catch_exceptions=False)

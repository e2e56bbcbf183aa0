"""Metrics by hand and by pycocoevalcap, and a captioner measured beside the untrained one and the alt texts."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap", reason="needs the extras: pip install curation[models,train]")

from skimage import data

from curation.captions import registry
from curation.captions.evaluation import (
    Judges,
    Protocol,
    evaluate_version,
    itm_auc,
    reference_metrics,
    words,
    wrong_captions,
)
from curation.captions.records import Record, Records, write_records
from curation.errors import ConfigError
from curation.store import Store
from tests.curation.conftest import jpeg
from tests.curation.models.tiny import save_tiny_blip, save_tiny_itm

PICTURES = (data.astronaut(), data.coffee(), data.chelsea())
REFERENCES = (
    ["a woman in an orange suit", "an astronaut smiles"],
    ["a cup of coffee on a table"],
    ["a tabby cat looks"],
)


class Numbers:
    """A matcher that says what it is given."""

    identity = "numbers"

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def match(self, images: object, texts: list[str]) -> np.ndarray:
        return np.array([self.scores.pop(0) for _ in texts], np.float32)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("A dog's  bone, on (the) SNOW_2.") == ["a", "dog's", "bone", "on", "the", "snow", "2"]
    assert words("一只狗 runs。") == ["一", "只", "狗", "runs"]
    assert words("…") == []


def test_metrics_of_the_truth_and_of_nonsense() -> None:
    said = ["A woman in an orange suit.", "a cup of coffee on a table", "a tabby cat looks"]
    found = reference_metrics(said, REFERENCES)
    assert found["bleu4"] == pytest.approx(1.0, abs=1e-6)
    assert found["rouge_l"] == pytest.approx(1.0)
    assert found["cider"] > 5  # two references of a picture can't both be met
    assert max(reference_metrics(["x", "", "y z"], REFERENCES).values()) < 1e-6
    with pytest.raises(ConfigError, match="two pictures"):
        reference_metrics(["a"], [["a"]])
    with pytest.raises(ConfigError, match="caption by people"):
        reference_metrics(["a", "b"], [["a"], []])


def test_bleu_and_rouge_by_hand() -> None:
    found = reference_metrics(["a b c d e", "f g h i j"], [["a b c d x"], ["f g h i j"]])
    # n-grams found: 9 of 10, 7 of 8, 5 of 6, 3 of 4; lengths agree
    assert found["bleu4"] == pytest.approx((9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25)
    assert found["rouge_l"] == pytest.approx((4 / 5 + 1) / 2)


def test_a_wrong_caption_is_any_of_another_picture_the_same_each_time() -> None:
    pictures = [at // 5 for at in range(1000)]
    drawn = wrong_captions(pictures)
    assert (drawn // 5 != np.arange(1000) // 5).all()
    assert drawn.tolist() == wrong_captions(pictures).tolist()
    steps = (drawn - np.arange(1000)) % 1000
    assert len(np.unique(steps)) > 500  # no neighbour at a fixed distance: those may be pictures of one scene
    assert len(np.unique(drawn)) > 550  # of 1,000 draws 632 different ones are expected
    assert wrong_captions([0, 1]).tolist() == [1, 0]
    for alone in ([], [3, 3]):
        with pytest.raises(ValueError, match="two pictures"):
            wrong_captions(alone)


def test_the_area_is_the_share_of_own_captions_above_others() -> None:
    images = [PICTURES[0]] * 2
    assert itm_auc(Numbers(0.9, 0.5, 0.1, 0.2), images, ["a", "b"]) == 1  # type: ignore[arg-type]
    assert itm_auc(Numbers(0.9, 0.1, 0.5, 0.1), images, ["a", "b"]) == pytest.approx(2.5 / 4)  # type: ignore[arg-type]


def test_a_version_is_measured_once_beside_the_untrained_and_the_alt_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = Store(tmp_path / "store")
    alts = ("click to enlarge", "coffee.jpg", None)
    rows = [
        Record(f"{at:032x}", jpeg(picture[:96, :96]), tuple(texts), alt)
        for at, (picture, texts, alt) in enumerate(zip(PICTURES, REFERENCES, alts, strict=True))
    ]
    held_out = Records(store, write_records(store, [*rows, Record("f" * 32, b"broken", ("snow",))]).key)
    student = save_tiny_blip(tmp_path / "student", seed=0)
    trained = save_tiny_blip(tmp_path / "trained", seed=3)
    made = registry.register(
        store, "tiny", trained, role="captioner", base_model="b", data=[], settings={"student": str(student)},
        metrics={},
    )  # fmt: skip
    protocol = Protocol(matcher=str(save_tiny_itm(tmp_path / "itm")), num_beams=1, min_length=1)
    judges = Judges(held_out, protocol, device="cpu")
    found = evaluate_version(store, "tiny", made.version, judges, device="cpu")
    assert found.pictures == 3  # the broken one is left out
    assert set(found.metrics) == {"bleu4", "rouge_l", "cider", "clip_score", "itm_auc"}
    assert set(found.beside) == {"untrained", "alt_text"}
    assert found.beside["alt_text"]["rouge_l"] > 0  # "coffee" is among them
    assert 0 <= found.metrics["clip_score"] <= 2.5
    assert (found.held_out, found.settings["num_beams"]) == (held_out.digest, 1)
    assert registry.evaluations(store, "tiny", made.version) == {held_out.digest: found}
    monkeypatch.setattr(Judges, "metrics", lambda self, captions: pytest.fail("measured again"))
    assert evaluate_version(store, "tiny", made.version, judges) == found

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from curation.errors import ConfigError
from curation.evalsets import index_evalset
from curation.reports.calibrate import (
    calibrate_keep,
    calibrate_leakage,
    calibrate_precision,
    score_pairs,
    scores_of_dump,
)
from curation.store import Store
from tests.curation.conftest import World


@example([0.0, 5e-324], 1.0)
@example([1.0, 1.0000000000000002], 1.0)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0.01, 1))
def test_at_least_the_wanted_share_stays_and_no_looser_bound_is_needed(values: list[float], keep: float) -> None:
    scores = np.array(values)
    (found,) = calibrate_keep({"en": scores}, keep, "similarity").thresholds
    assert (scores >= found.threshold).mean() >= keep - 1e-12
    assert (scores > found.threshold).mean() < keep
    assert found.kept == (scores >= found.threshold).mean()


def test_each_group_has_its_own_threshold_and_its_line_in_the_chart() -> None:
    found = calibrate_keep({"en": np.linspace(0, 1, 101), "multi <b>": np.linspace(0, 0.5, 101)}, 0.2, "similarity")
    assert [round(one.threshold, 3) for one in found.thresholds] == [0.8, 0.4]
    chart = ElementTree.fromstring(found.svg)  # well-formed, and the group's name is escaped
    assert len([line for line in chart.iter("{http://www.w3.org/2000/svg}line") if line.get("stroke-dasharray")]) == 2
    with pytest.raises(ConfigError, match=r"--keep 1\.5"):
        calibrate_keep({}, 1.5, "similarity")


def test_precision_on_labelled_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False), (0.4, False)]
    path.write_text("\n".join(json.dumps({"score": score, "label": label}) for score, label in rows))
    scores, labels = score_pairs(path, "embedded", None)
    (found,) = calibrate_precision(scores, labels, 0.75, "similarity").thresholds
    assert (found.threshold, found.precision, found.recall) == (0.6, 0.75, 1.0)
    with pytest.raises(ConfigError, match="no threshold reaches it"):
        calibrate_precision(scores, ~labels, 0.99, "similarity")
    with pytest.raises(ConfigError, match=r"--precision 95: give a share"):
        calibrate_precision(scores, labels, 95, "similarity")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"score": 1, "label": true}', "nonsense"], "line 2"),
        (['{"label": true, "image": "x.jpg"}'], "line 1"),
        (['{"score": 1, "label": "yes"}'], "line 1"),
        (['{"score": 1, "label": true}'], "both right and wrong"),
        (['{"score": 1, "label": true}', '{"score": NaN, "label": false}'], "line 2.*score is nan"),
        (['{"score": "high", "label": true}'], "line 1"),
        (["\\udcff\\udcfe"], "line 1"),
        ([], "found 0 of 0 right"),
        (
            ['{"image": "absent.jpg", "text": "a", "label": true}', '{"image": "b", "text": "b", "label": 0}'],
            "absent.jpg",
        ),
    ],
)
def test_a_bad_file_of_pairs_names_the_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), errors="surrogateescape")
    with pytest.raises(ConfigError, match=message):
        score_pairs(path, "embedded", None)


def test_values_of_a_dump_by_group(world: World) -> None:
    recipe, shards = world.recipe()
    with pytest.raises(ConfigError, match="no shard of recipe small is done"):
        scores_of_dump(world.store, recipe, "crawl", shards, "min_side", "partition")
    world.run(recipe)  # of two shards one: what is done is enough
    found = scores_of_dump(world.store, recipe, "crawl", shards, "min_side", "partition")
    every = np.concatenate(list(found.values()))
    assert sorted(every.tolist()) == [20, 300, 400]  # also what the gate dropped


@pytest.mark.parametrize(
    ("column", "by", "message"),
    [
        ("url", "", "--column url: it holds string"),
        ("similarty", "", "--column similarty: unknown column"),
        ("aesthetic", "", "--column aesthetic: recipe small does not measure it"),
        ("min_side", "verdict", "--by verdict: recipe small does not measure it"),
    ],
)
def test_what_a_recipe_does_not_measure_is_named(world: World, column: str, by: str, message: str) -> None:
    recipe, shards = world.recipe()
    with pytest.raises(ConfigError, match=message):
        scores_of_dump(world.store, recipe, "crawl", shards, column, by)


def plain_pictures(folder: Path, tints: list[int]) -> Path:
    folder.mkdir()
    for at, tint in enumerate(tints):
        Image.new("RGB", (16, 16), (255, tint, 0)).save(folder / f"{at:03d}.png")
    return folder


def tint(pictures: object) -> np.ndarray:
    colours = np.array([picture.mean(axis=(0, 1)) for picture in pictures])  # type: ignore[attr-defined]
    return np.asarray(colours / np.linalg.norm(colours, axis=1, keepdims=True))


def test_a_leakage_threshold_lets_through_as_many_unrelated_pictures_as_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    evalset = plain_pictures(tmp_path / "set", [0, 1])
    unrelated = plain_pictures(tmp_path / "others", list(range(20, 220)))  # the smaller the number, the more alike
    index_evalset(store, "reds", evalset, describe=tint, space="tint")
    found = calibrate_leakage(store, "reds", unrelated, tint, "tint", 0.05)
    assert (found.pictures, found.checked) == (100, 100)
    cosines = (
        tint([np.full((1, 1, 3), (255, at, 0)) for at in range(20, 220)]) @ tint([np.full((1, 1, 3), (255, 1, 0))]).T
    )
    taken = cosines[:, 0] >= found.embedding_cosine
    assert taken[::2].sum() == 5
    assert found.false_positives == taken[1::2].sum()
    assert found.false_positive_rate_95[0] < 0.05 < found.false_positive_rate_95[1]
    assert found.nearest[0][:2] == ("000.png", "001.png")
    ElementTree.fromstring(found.svg)
    assert json.dumps(found.to_json())
    with pytest.raises(ConfigError, match=r"a rate of 0\.001 needs 2000"):
        calibrate_leakage(store, "reds", unrelated, tint, "tint", 0.001)
    with pytest.raises(ConfigError, match="is embedded in 'tint', the pictures would be in 'embedded'"):
        calibrate_leakage(store, "reds", unrelated, tint, "embedded", 0.05)
    with pytest.raises(ConfigError, match="index-evalset blues"):
        calibrate_leakage(store, "blues", unrelated, tint, "tint", 0.05)
    (unrelated / "x.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"x\.png: no picture"):
        calibrate_leakage(store, "reds", unrelated, tint, "tint", 0.05)

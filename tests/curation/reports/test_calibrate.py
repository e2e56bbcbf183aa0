import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConfigError
from curation.reports.calibrate import calibrate_keep, calibrate_precision, score_pairs, scores_of_dump
from tests.curation.conftest import World


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


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"score": 1, "label": true}', "nonsense"], "line 2"),
        (['{"label": true, "image": "x.jpg"}'], "line 1"),
        (['{"score": 1, "label": "yes"}'], "line 1"),
        (['{"score": 1, "label": true}'], "both right and wrong"),
        (
            ['{"image": "absent.jpg", "text": "a", "label": true}', '{"image": "b", "text": "b", "label": 0}'],
            "absent.jpg",
        ),
    ],
)
def test_a_bad_file_of_pairs_names_the_line(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
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

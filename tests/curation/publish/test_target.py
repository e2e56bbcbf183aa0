import pytest
from pydantic import ValidationError

from curation.publish.quality import Quality, merged
from curation.publish.target import Bar, Target, distances


def quality(rows: list[dict]) -> dict:
    one = Quality()
    one.add_rows([{"url": "http://a.test/1.jpg", "safety_tag": "safe"} | row for row in rows])
    return merged([one.to_json()])


REPORT = quality(
    [
        {"text": "a cat on a mat", "similarity": 0.3, "caption_source": "text", "text_origin": "human"},
        {"text": "a dog in the fog", "similarity": 0.2, "caption_source": "text", "text_origin": "web"},
        {"text": "a hen", "similarity": 0.25, "caption_source": "synthetic", "text_origin": "human"},
        {"text": "a cow", "similarity": 0.25, "caption_source": "text", "text_origin": None},
    ]
)


def test_samples_and_bars_tell_what_is_missing_and_by_how_much() -> None:
    target = Target(
        samples=10,
        bars={
            "mean": Bar(of="similarity", at_least=0.3),
            "least": Bar(of="similarity", statistic="p05", at_least=0.1),
            "short": Bar(of="caption_words", at_most=3),
            "human": Bar(of="caption_origin", statistic="share", values=("human",), at_least=0.5),
            "unsafe": Bar(of="safety_tag", statistic="share", values=("unsafe",), at_most=0),
            "beauty": Bar(of="aesthetic", at_least=5),
        },
    )
    found = {one.name: one for one in distances(target, REPORT)}
    assert found["samples"].told == "4 of 10 samples (40.0%): 6 more are needed"
    assert found["mean"].short == pytest.approx(0.05)
    assert found["mean"].told == "0.25: 0.05 below the bar"
    assert found["least"].met
    assert found["short"].short == pytest.approx(3.5 - 3 + 0.0)
    # one of four is human: (1 + x) / (4 + x) = 0.5 for x = 2
    assert found["human"].told == "0.25: 0.25 below the bar; 2 more samples that count would do"
    assert found["unsafe"].met
    assert found["beauty"].short is None
    assert not found["beauty"].met
    assert found["beauty"].told == "not measured: no stage gives aesthetic"


def test_a_synthetic_caption_of_a_picture_that_people_described_is_synthetic() -> None:
    assert REPORT["groups"]["caption_origin"] == {"web": 2, "human": 1, "synthetic": 1}


def test_a_version_without_samples_measures_nothing() -> None:
    found = distances(Target(samples=1, bars={"x": Bar(of="similarity", at_least=0)}), quality([]))
    assert [one.met for one in found] == [False, False]
    assert found[1].told == "not measured: the version has no samples"


@pytest.mark.parametrize(
    ("bar", "message"),
    [
        ({"of": "beauty", "at_least": 1}, "'beauty' is not measured"),
        ({"of": "language", "at_least": 1}, "of language there is a share"),
        ({"of": "similarity", "statistic": "share", "values": ["x"], "at_least": 1}, "a mean or a quantile"),
        ({"of": "language", "statistic": "share", "at_least": 1}, "name those that count"),
        ({"of": "mtld", "statistic": "p50", "at_least": 1}, "leave statistic out"),
        ({"of": "similarity"}, "give at_least, at_most or both"),
        ({"of": "similarity", "at_least": 2, "at_most": 1}, "nothing meets both"),
    ],
)
def test_a_bar_that_cannot_be_measured_is_refused(bar: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Bar.model_validate(bar)

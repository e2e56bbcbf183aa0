import math

import pytest

from curation.publish.quality import OTHERS, Quality, merged


def row(**measured: object) -> dict:
    return {"url": "https://a.test/x.jpg", "text": "four words are here", **measured}


def test_numbers_of_two_shards_by_hand() -> None:
    first, second = Quality(), Quality()
    for similarity in (0.2, 0.3):
        first.add(row(similarity=similarity, language="en"))
    second.add(row(similarity=0.4, language=None, url="https://b.test/y.jpg"))
    found = merged([first.to_json(), second.to_json()])
    assert found["samples"] == 3
    assert found["means"] == {"similarity": pytest.approx(0.3), "caption_chars": 19, "caption_words": 4}
    assert found["quantiles"]["similarity"]["p50"] == pytest.approx(0.3, abs=0.01)
    assert found["quantiles"]["caption_words"]["p95"] == pytest.approx(4, abs=1)
    domains = {"a.test": 2, "b.test": 1}
    assert found["groups"] == {"language": {"en": 2, "none": 1}, "caption_origin": {"web": 3}, "domain": domains}
    assert sum(found["histograms"]["similarity"]["counts"]) == 3


def test_values_beyond_the_range_and_none_at_all() -> None:
    quality = Quality()
    for value in (-5.0, 5.0, None, math.nan, math.inf):
        quality.add(row(similarity=value))
    counts = merged([quality.to_json()])["histograms"]["similarity"]["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)


def test_the_published_caption_is_what_is_measured() -> None:
    quality = Quality()
    quality.add(row(caption="two words"))
    assert merged([quality.to_json()])["means"]["caption_words"] == 2


def test_synthetic_captions_stand_beside_alt_texts() -> None:
    first, second = Quality(), Quality()
    texts = {"text": "IMG", "synthetic": "a small brown dog runs in front of a wooden house", "caption": "a red car"}
    first.add(row(**texts))
    first.add(row(synthetic=None))  # none was made: nothing to compare
    second.add(row(**texts | {"synthetic": "a man is standing next to the sea today"}))
    found = merged([first.to_json(), second.to_json()])["captions"]
    assert list(found) == ["alt text", "synthetic", "published"]
    assert (found["synthetic"]["captions"], found["synthetic"]["words"]) == (2, 10.0)
    shares = {"place": 1.0, "attributes": 0.5, "writing": 0.0, "knowledge": 0.0}
    assert found["synthetic"]["judged"] == {"en": {"captions": 2, **shares}}
    assert found["alt text"]["chars"] == 3
    assert found["published"]["chars"] == len("a red car")


def test_a_long_tail_of_domains_is_bounded_and_adds_up() -> None:
    quality = Quality()
    for number in range(3000):
        quality.add(row(url=f"https://host{number}.test/"))
    assert len(quality.to_json()["groups"]["domain"]) == 1001
    domains = merged([quality.to_json()] * 2)["groups"]["domain"]
    assert len(domains) == 21
    assert sum(domains.values()) == 6000
    assert domains[OTHERS] == 6000 - 20 * 2


def test_nothing_published() -> None:
    assert merged([Quality().to_json()])["means"] == {}

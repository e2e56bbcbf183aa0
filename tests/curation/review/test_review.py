import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from typer.testing import CliRunner

from curation.cli import app
from curation.errors import ConfigError
from curation.publish.collect import collect
from curation.publish.release import approve
from curation.publish.settings import HumanEvaluation
from curation.publish.version import latest, move_latest
from curation.review import ratings as given
from curation.review import sets
from curation.review.ratings import NAMES, Rating, next_item, progress, rate, read_ratings
from curation.review.report import judge, report, write_report
from curation.review.sets import Item, ReviewSet, Sampling, _allocated, create_set, list_sets, read_item, read_set
from curation.store import Store
from tests.curation.conftest import World
from tests.curation.publish.test_releases import publish


def made_set(strata: dict[str, int], per_stratum: int, raters: int = 2) -> ReviewSet:
    names = [name for name in strata for _ in range(per_stratum)]
    items = [
        Item(number=n, sample_id=f"{n:032x}", dump="d", shard=0, key=f"{n:012d}", stratum=name, tar="t")
        for n, name in enumerate(names)
    ]
    sampling = Sampling(n=len(items), raters=raters)
    return ReviewSet(
        name="a", recipe="r", version="v", sampling=sampling, strata=strata, items=tuple(items), created_at=""
    )


def rating(rater: str, item: int, score: int | None) -> Rating:
    return Rating(rater=rater, item=item, **dict.fromkeys(NAMES, score))


def test_each_stratum_gets_its_share_and_at_least_one() -> None:
    assert _allocated({"en": 900, "de": 99, "is": 1}, 10) == {"en": 7, "de": 2, "is": 1}
    assert _allocated({"en": 3, "de": 2}, 10) == {"en": 3, "de": 2}
    sizes = {f"s{n}": n * n + 1 for n in range(20)}
    taken = _allocated(sizes, 100)
    assert sum(taken.values()) == 100
    assert all(1 <= taken[name] <= size for name, size in sizes.items())
    with pytest.raises(ConfigError, match="can't stand for 3 strata"):
        _allocated({"a": 5, "b": 5, "c": 5}, 2)


def test_the_mean_is_that_of_the_version_not_of_the_sample() -> None:
    found = made_set({"common": 900, "rare": 100}, 10)
    ratings = [rating(who, item, 5 if item < 10 else 1) for who in ("ada", "bo") for item in range(20)]
    made = report(found, ratings)["dimensions"]["accuracy"]
    assert made["mean"] == pytest.approx(0.9 * 5 + 0.1 * 1)
    assert made["mean_95"][0] <= made["mean"] <= made["mean_95"][1]
    assert made["alpha"] == pytest.approx(1)
    assert (made["items"], made["shared_items"], made["ratings"], made["counts"]["5"]) == (20, 20, 40, 20)


def test_a_report_tells_what_is_not_covered_and_what_is_worst() -> None:
    found = made_set({"common": 900, "rare": 100}, 4)
    ratings = [rating("ada", 0, 4), rating("ada", 1, 2).model_copy(update={"comment": "a dog"}), rating("bo", 2, None)]
    made = report(found, ratings)
    assert made["covered"] == 0.9
    assert made["strata"]["rare"] == {"samples": 100, "items": 4, "rated": 0, "means": dict.fromkeys(NAMES)}
    assert [(one["item"], one["mean"], one["comments"]) for one in made["worst"]] == [(1, 2, ["a dog"]), (0, 4, [])]
    assert made["dimensions"]["detail"]["alpha"] is None
    assert report(found, [])["dimensions"]["accuracy"]["mean"] is None


def test_what_a_release_asks_for() -> None:
    found, wanted = made_set({"all": 10}, 4), HumanEvaluation(min_items=3)
    assert "0 raters, at least 2" in judge(report(found, []), wanted)[1]
    good = [rating(who, item, 3 + item % 3) for who in ("ada", "bo") for item in range(4)]
    assert judge(report(found, good), wanted) == (
        True,
        "2 raters on 4 items: accuracy 3.75, completeness 3.75, detail 3.75, relevance 3.75",
    )
    assert "mean 3.75, at least 4 wanted" in judge(report(found, good), HumanEvaluation(min_mean_rating=4))[1]
    apart = [
        rating(who, item, score) for item in range(4) for who, score in (("ada", 3 + item % 3), ("bo", 5 - item % 3))
    ]
    assert "agreement alpha -" in judge(report(found, apart), wanted)[1]
    equal = [rating(who, item, 5) for who in ("ada", "bo") for item in range(4)]
    assert judge(report(found, equal), wanted)[0]  # alpha can't be told, yet nobody disagrees


def test_no_rating_is_lost_and_the_last_of_a_rater_counts(tmp_path: Path) -> None:
    store, found = Store(tmp_path), made_set({"all": 100}, 30)
    raters = ["ada", "bo@example.com", "../Zoë/x", "c d"]
    with ThreadPoolExecutor(8) as pool:
        work = [(who, item, again) for again in range(2) for who in raters for item in range(30)]
        list(pool.map(lambda one: rate(store, found, rating(one[0], one[1], 1 + one[2])), work))
    assert len(list(store.entries("datasets/"))) == 240
    rate(store, found, rating("ada", 3, 5))
    counted = {(one.rater, one.item): one.accuracy for one in read_ratings(store, found)}
    assert set(counted) == {(who, item) for who in raters for item in range(30)}
    assert counted["ada", 3] == 5
    assert progress(store, found)["raters"] == dict.fromkeys(sorted(raters), 30)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rater": "ada", "item": 0, "accuracy": 6}, "accuracy"),
        ({"rater": "..", "item": 0}, "rater"),
        ({"rater": "ada", "item": 30}, "item"),
        ({"rater": "ada", "item": 0, "beauty": 1}, "beauty"),
        ({"rater": "a\nb", "item": 0}, "rater"),
        ({"rater": "ada", "item": 0, "comment": "x" * 2001}, "comment"),
    ],
    ids=["score", "rater", "item", "field", "line", "comment"],
)
def test_a_wrong_rating_is_refused_by_field(tmp_path: Path, wrong: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=f"rating: {named}"):
        rate(Store(tmp_path), made_set({"all": 100}, 30), wrong)


def test_raters_go_through_the_items_until_each_has_enough(tmp_path: Path) -> None:
    store, found = Store(tmp_path), made_set({"all": 10}, 3)
    for who in ("ada", "bo"):
        for expected in range(3):
            assert next_item(store, found, who) == expected
            rate(store, found, rating(who, expected, 3))
        assert next_item(store, found, who) is None
    assert next_item(store, found, "cy") is None
    assert progress(store, found) == {
        "items": 3, "wanted_ratings": 6, "ratings": 6, "complete": 3, "raters": {"ada": 3, "bo": 3}
    }  # fmt: skip


def test_a_version_waits_for_its_raters(world: World, tmp_path: Path) -> None:
    asked = {"publish.release.human_evaluation": {"min_items": 2}}
    recipe, _ = world.recipe(asked)
    version = publish(world, recipe, {"crawl": [0, 1]})
    store = world.store
    assert latest(store, "small") == ""
    assert "no review set is drawn" in move_latest(store, "small", version)[0]
    card = store.read_bytes(f"datasets/small/{version}/card.html").decode()
    assert "<td>human_evaluation<td>failed<td>not rated yet" in card

    with pytest.raises(ConfigError, match="similarity"):
        create_set(store, "small", version)
    by: tuple[sets.By, ...] = ("language", "domain")
    small = create_set(store, "small", version, Sampling(n=2, by=by), "try")
    found = create_set(store, "small", version, Sampling(n=4, by=by))
    assert found.strata == {"en | host0.test": 2, "en | host1.test": 2}
    assert list_sets(store, "small", version) == ["review", "try"]
    assert {item.sample_id for item in small.items} < {item.sample_id for item in found.items}
    assert create_set(store, "small", version, Sampling(n=4, by=by)) == read_set(store, "small", version)
    with pytest.raises(ConfigError, match="another way"):
        create_set(store, "small", version, Sampling(n=4, by=by, seed=1))
    with pytest.raises(ConfigError, match="there are review, try"):
        read_set(store, "small", version, "nope")
    shown = read_item(store, found, 3)
    assert min(Image.open(io.BytesIO(shown.picture)).size) == 256
    assert shown.described["sample_id"] == found.items[3].sample_id
    assert shown.caption == shown.described["text"]

    for who in ("ada", "bo"):
        for item in found.items:
            rate(store, found, rating(who, item.number, 4 + item.number % 2))
    assert collect(store).condemned == []
    assert write_report(store, found)["dimensions"]["relevance"]["mean"] == 4.5
    assert move_latest(store, "small", version) == []
    assert latest(store, "small") == version


def test_a_shortfall_of_ratings_can_be_waived_with_a_reason(world: World) -> None:
    recipe, _ = world.recipe({"publish.release.human_evaluation": {}})
    version = publish(world, recipe, {"crawl": [0]})
    approve(world.store, "small", version, "ada", {"human_evaluation": "rated elsewhere"})
    assert move_latest(world.store, "small", version) == []


def test_commands(world: World, tmp_path: Path) -> None:
    recipe, _ = world.recipe({"publish.release.human_evaluation": {"min_items": 1}})
    version = publish(world, recipe, {"crawl": [0]})

    def command(name: str, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["review", name, "small", version, "--store", world.store.root, *arguments])
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout

    drawn = json.loads(command("sample", "--n", "2", "--by", "language", "--json"))
    assert len(drawn["items"]) == 2
    assert "2 samples of 1 strata" in command("sample", "--n", "2", "--by", "language")
    assert isinstance(
        CliRunner().invoke(app, ["review", "sample", "small", version, "--by", "x"]).exception, ConfigError
    )
    picture = tmp_path / "next.jpg"
    shown = json.loads(command("rate", "--rater", "ada", "--picture", str(picture), "--json"))
    assert shown["item"] == 0
    assert picture.read_bytes().startswith(b"\xff\xd8")
    scores = [word for name in given.NAMES for word in (f"--{name}", "4")]
    for who in ("ada", "bo"):
        for item in ("0", "1"):
            assert f"item {item} rated" in command("rate", "--rater", who, "--item", item, *scores)
    assert "nothing is left for ada; 4 of 4 ratings" in command("rate", "--rater", "ada")
    assert "mean 4.00 (4.00 to 4.00)  alpha not told" in command("report")
    told = json.loads(command("report", "--json"))
    assert (told["held"], told["rated"]) == ([], 2)
    stored = json.loads(world.store.read_bytes(f"datasets/small/{version}/review/review/report.json"))
    assert stored["dimensions"] == told["dimensions"]


def test_draws_are_uniform_and_differ_by_seed() -> None:
    from curation.publish.draws import draws, share

    ids = pa.array([f"{(n * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}" for n in range(20_000)])
    first, second = share(draws(ids, 0)), share(draws(ids, 1))
    assert 0.49 < first.mean() < 0.51
    assert 0 <= first.min() < 0.001 < 0.999 < first.max() < 1
    assert abs(sum((first - 0.5) * (second - 0.5)) / len(first)) < 0.003
    assert (draws(ids, 0)[5:6] == draws(ids[5:6], 0)).all()
    assert pc.count_distinct(pa.array(draws(ids, 0))).as_py() == 20_000

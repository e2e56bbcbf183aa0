"""Versions of models: whole or not there, promoted by a margin on one held-out set, rolled back by one command."""

import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from curation.captions import registry
from curation.captions.registry import Data, Evaluation, Manifest
from curation.cli import app
from curation.errors import BadShardError, ConfigError
from curation.pipeline import fingerprint, localise, pin
from curation.recipe import parse_recipe
from curation.store import Store

SEED_SET = Data(kind="seed_set", name="first", version="ab12", rows=3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(store: Store, tmp_path: Path, weights: str, name: str = "small", role: str = "captioner", parent: str = "",
         **scores: float) -> Manifest:  # fmt: skip
    folder = tmp_path / f"trained-{weights}"
    (folder / "extra").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "extra" / "model.safetensors").write_text(weights)
    evaluations = [Evaluation(held_out="dev", pictures=9, metrics=scores)] if scores else []
    return registry.register(
        store, name, folder, role=role, base_model="base@1", data=[SEED_SET], settings={"steps": 2},
        metrics={"loss": [2.0, 1.0]}, parent=parent, evaluations=evaluations,
    )  # fmt: skip


def test_a_version_tells_what_it_was_made_from(store: Store, tmp_path: Path) -> None:
    first = made(store, tmp_path, "a", cider=0.2)
    second = made(store, tmp_path, "b", parent=first.version)
    read = registry.read(store, "small", second.version)
    assert (read.parent, read.rounds, read.data, read.base_model) == (first.version, 2, (SEED_SET,), "base@1")
    assert [file.name for file in read.files] == ["config.json", "extra/model.safetensors"]
    assert registry.versions(store, "small") == sorted([first.version, second.version])
    assert registry.names(store) == ["small"]
    folder = registry.local_folder(store, f"registry:small@{second.version}")
    assert (folder / "extra/model.safetensors").read_text() == "b"
    assert folder.name == f"small-{second.version}"
    assert made(store, tmp_path, "a", cider=0.2) == first  # a task that is tried again makes no second version


def test_without_its_manifest_a_version_is_not_there(store: Store, tmp_path: Path) -> None:
    version = made(store, tmp_path, "a").version
    store.delete(f"models/small/{version}/manifest.json")  # as after a kill before the last write
    assert registry.versions(store, "small") == registry.names(store) == []
    with pytest.raises(ConfigError, match="no version"):
        registry.read(store, "small", version)
    assert made(store, tmp_path, "a").version == version


def test_a_missing_or_cut_file_is_told(store: Store, tmp_path: Path) -> None:
    version = made(store, tmp_path, "a").version
    key = f"models/small/{version}/small-{version}/extra/model.safetensors"
    store.write_bytes(key, b"cut off")
    with pytest.raises(BadShardError, match="expected 1 bytes, found 7"):
        registry.local_folder(store, f"registry:small@{version}")
    store.delete(key)
    with pytest.raises(BadShardError, match="missing"):
        registry.local_folder(store, f"registry:small@{version}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "optimizer.pt"])
def test_pickled_weights_are_refused(store: Store, tmp_path: Path, file: str) -> None:
    (tmp_path / "trained-a").mkdir()
    (tmp_path / "trained-a" / file).write_text("x")
    with pytest.raises(ConfigError, match="pickled"):
        made(store, tmp_path, "a")


def test_a_bad_name_a_folder_without_a_model_and_an_unknown_parent_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower-case"):
        made(store, tmp_path, "a", name="../up")
    with pytest.raises(ConfigError, match=r"config\.json"):
        registry.register(store, "x", tmp_path, role="matcher", base_model="", data=[], settings={}, metrics={})
    with pytest.raises(ConfigError, match="no version"):
        made(store, tmp_path, "a", parent="2020.01.01-00000000")


def test_only_a_gain_of_the_margin_on_the_same_set_is_promoted(store: Store, tmp_path: Path) -> None:
    first, better = made(store, tmp_path, "a", cider=0.40), made(store, tmp_path, "b", cider=0.43)
    assert registry.promote(store, "small", first.version, by="ada").before == ""
    with pytest.raises(ConfigError, match=r"a gain of \+0.0300, at least 0.05 is asked for"):
        registry.promote(store, "small", better.version, margin=0.05, by="ada")
    assert registry.promoted(store, "small") == first.version
    move = registry.promote(store, "small", better.version, by="ada", note="more data")
    assert move.reason == (
        f"more data: cider 0.4300 against 0.4000 ({first.version}, promoted) on 9 pictures: "
        "a gain of +0.0300, at least 0.02 is asked for"
    )
    assert registry.promoted(store, "small") == better.version
    assert not registry.judge(store, "small", better.version).better


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"held_out": "other"}, "was not measured by cider on other"),
        ({"settings": {"num_beams": 3}}, "was measured with num_beams None, not 3"),
    ],
)
def test_metrics_that_do_not_compare_promote_nothing(
    store: Store, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    first, second = made(store, tmp_path, "a", cider=0.4), made(store, tmp_path, "b")
    registry.promote(store, "small", first.version, by="ada")
    given = {"held_out": "dev", "pictures": 9, "metrics": {"cider": 0.9}} | changes
    registry.add_evaluation(store, "small", second.version, Evaluation.model_validate(given))
    found = registry.judge(store, "small", second.version)
    assert not found.better
    assert reason in found.reason


def test_no_metric_is_not_a_number() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Evaluation(held_out="dev", pictures=1, metrics={"cider": float("nan")})


def test_the_first_one_must_beat_what_it_was_trained_from(store: Store, tmp_path: Path) -> None:
    version = made(store, tmp_path, "a").version
    with pytest.raises(ConfigError, match="none"):
        registry.judge(store, "small", version)
    beside = {"untrained": {"cider": 0.39}, "alt_text": {"cider": 0.9}}
    one = Evaluation(held_out="dev", pictures=9, metrics={"cider": 0.4}, beside=beside)
    registry.add_evaluation(store, "small", version, one)
    assert not registry.judge(store, "small", version).better
    assert registry.judge(store, "small", version, margin=0.005).better
    with pytest.raises(ConfigError, match="was measured by cider"):
        registry.judge(store, "small", version, metric="bleu4")


def test_rollback_goes_back_step_by_step(store: Store, tmp_path: Path) -> None:
    one, two, three = (made(store, tmp_path, w, cider=at).version for w, at in (("a", 0.1), ("b", 0.2), ("c", 0.3)))
    for version in (one, two, three):
        registry.promote(store, "small", version, by="ada")
    assert registry.rollback(store, "small", reason="worse on night pictures", by="bo").version == two
    assert registry.rollback(store, "small", reason="that too", by="bo").version == one
    with pytest.raises(ConfigError, match="promoted before: none"):
        registry.rollback(store, "small", reason="?", by="bo")
    assert registry.promote(store, "small", three, by="ada").before == one
    with pytest.raises(ConfigError, match="promoted before"):
        registry.rollback(store, "small", to=two, reason="?", by="bo")
    told = [(move.action, move.version, move.reason[:5], move.by) for move in registry.history(store, "small")]
    assert told[3:5] == [("rollback", two, "worse", "bo"), ("rollback", one, "that ", "bo")]
    assert [move.number for move in registry.history(store, "small")] == list(range(6))


def test_of_promotions_at_once_each_sees_the_one_before_it(store: Store, tmp_path: Path) -> None:
    versions = [made(store, tmp_path, f"w{n}", cider=0.1 * n).version for n in range(1, 6)]
    registry.promote(store, "small", versions[0], by="ada")
    refused: list[str] = []

    def promote(version: str) -> None:
        try:
            registry.promote(store, "small", version, by="ada")
        except ConfigError:
            refused.append(version)

    threads = [threading.Thread(target=promote, args=[version]) for version in versions[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = registry.history(store, "small")
    assert registry.promoted(store, "small") == versions[-1]  # the best one wins, whoever came first
    assert [move.before for move in moves[1:]] == [move.version for move in moves[:-1]]
    assert len(moves) + len(refused) == 5
    scores = [versions.index(move.version) for move in moves]
    assert scores == sorted(scores)


def test_a_recipe_is_pinned_to_the_version_promoted_when_it_was_planned(store: Store, tmp_path: Path) -> None:
    first, second = made(store, tmp_path, "a", cider=0.1).version, made(store, tmp_path, "b", cider=0.2).version
    data = {"name": "r", "stages": {"score": {}, "caption": {"captioner": "registry:small"}}}
    recipe = parse_recipe(data)
    with pytest.raises(ConfigError, match=r"stages\.caption\.captioner: no version of 'small' is promoted"):
        pin(recipe, store)
    registry.promote(store, "small", first, by="ada")
    pinned = pin(recipe, store)
    registry.promote(store, "small", second, by="ada")
    assert pinned.stages.caption
    assert pinned.stages.caption.captioner == f"registry:small@{first}"
    assert pin(pinned, store) == pinned  # a run never changes its model half way
    assert fingerprint(pinned, "caption") != fingerprint(pin(recipe, store), "caption")
    local = localise(pinned, "caption", store).model_dump()
    assert Path(local["captioner"]).name == f"small-{first}"
    assert local["matcher"] == "embedded"
    assert localise(pinned, "caption", store, models=False) == pinned.stages.caption


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("captioner", "registry:absent", "no model 'absent'"),
        ("captioner", "registry:small@2020.01.01-00000000", "no version '2020.01.01-00000000'"),
        ("captioner", "registry:../x", "no model"),
        ("matcher", "registry:small", "is a captioner, a matcher is needed here"),
    ],
)
def test_a_reference_that_leads_nowhere_stops_the_plan(
    store: Store, tmp_path: Path, setting: str, name: str, message: str
) -> None:
    registry.promote(store, "small", made(store, tmp_path, "a", cider=0.1).version, by="ada")
    recipe = parse_recipe({"name": "r", "stages": {"score": {}, "caption": {setting: name}}})
    with pytest.raises(ConfigError, match=message):
        pin(recipe, store)


def test_the_commands_list_show_promote_and_roll_back(store: Store, tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["models", *arguments, "--store", store.root], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    first, second = made(store, tmp_path, "a", cider=0.1).version, made(store, tmp_path, "b", cider=0.2).version
    command("promote", "small", first, "--by", "ada")
    assert json.loads(command("promote", "small", second, "--by", "ada", "--json"))["before"] == first
    with pytest.raises(ConfigError, match="is not promoted"):
        command("promote", "small", first, "--by", "ada")
    shown = json.loads(command("show", "small", "--json"))
    assert shown["manifest"]["version"] == second
    assert [move["version"] for move in shown["history"]] == [first, second]
    assert f"promote {second} by ada: cider 0.2000 against 0.1000" in command("show", "small")
    back = command("rollback", "small", "--reason", "calls cats dogs", "--by", "bo")
    assert back.strip() == f"small: back from {second} to {first}"
    listed = command("list")
    assert f"* small@{first}" in listed
    assert f"  small@{second}" in listed
    (row,) = [row for row in json.loads(command("list", "--json")) if row["promoted"]]
    assert (row["version"], row["metrics"]) == (first, {"dev": {"cider": 0.1}})

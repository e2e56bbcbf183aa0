import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curation.cli import _ranges
from tests.curation.conftest import World


def curation(*arguments: str, store: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"CURATION_STORE": str(store)} if store else {})
    command = [sys.executable, "-c", "from curation.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def run(world: World, *more: str) -> subprocess.CompletedProcess[str]:
    setting = f"stages.download.connect_to={json.dumps(world.connect_to)}"
    place = ("--dump", "crawl", "--source", str(world.crawl))
    return curation("run", str(world.recipe_file), *place, "--set", setting, *more, store=world.store.root)


def test_run_inspect_why_and_verify(world: World) -> None:
    done = run(world, "--set", "target.samples=10")
    assert done.returncode == 0, done.stderr
    assert "4 of 10 samples kept" in done.stdout
    assert "dataset version:" in done.stdout
    root = world.store.root
    seen = json.loads(curation("inspect", root, "crawl", "--json").stdout)
    assert seen["shards"] == {"0": "leakage", "1": "leakage"}
    lives = json.loads(curation("why", "http://host0.test/tiny.jpg", "--dump", "crawl", "--json", store=root).stdout)
    assert [(life["outcome"], life["stage"], life["shard"]) for life in lives] == [("too_small", "download", 0)]
    assert lives[0]["because"] == "min_side 20 < at_least 64"
    kept, short = json.loads(
        curation("why", "http://host1.test/cat.jpg", "--dump", "crawl", "--json", store=root).stdout
    )
    assert (kept["outcome"], short["outcome"]) == ("kept", "text_too_short")
    assert len(kept["versions"]) == 1
    told = curation("why", kept["sample_id"], "--dump", "crawl", store=root)
    assert "kept" in told.stdout
    assert kept["versions"][0] in told.stdout
    assert curation("verify", "small", store=root).stdout.strip().endswith("whole")
    wanted = ("recipes", "distance", str(world.recipe_file), "--set", "target.samples=8")
    far = json.loads(curation(*wanted, "--json", store=root).stdout)
    assert f"small/{far['version']}" == kept["versions"][0]
    assert [(goal["found"], goal["short"]) for goal in far["target"]] == [(4, 4)]
    card = (Path(root) / "datasets" / kept["versions"][0] / "card.html").read_text()
    assert "4 of 10 samples (40.0%): 6 more are needed" in card


def test_a_shard_that_fails_leaves_the_others_done(world: World) -> None:
    (world.crawl / "00000.warc.gz").write_bytes(b"not an archive")
    done = run(world, "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert list(result["failed"]) == ["0"]
    assert result["shards"] == {"0": "", "1": "leakage"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope", "--dump", "d"), "recipe 'nope' is unknown"),
        (("run", "demo", "--dump", "d", "--set", "gates.too_small"), "give name=value"),
        (("run", "demo", "--dump", "d", "--set", "gates=["), "not valid YAML"),
        (("run", "demo", "--dump", "d", "--until", "publish"), "the recipe runs extract, pairs, download"),
        (("verify", "demo"), "none is published"),
        (("run", "demo", "--dump", "d", "--shards", "9-1"), "such as 0-3,7"),
        (("run", "demo", "--dump", "d", "--source", "/nonexistent"), "source"),
        (("run", "demo", "--dump", "d", "--set", "gates.too_small.at_lest=1"), "did you mean 'at_least'"),
        (("inspect", "STORE", "absent"), "dump absent: no recipe ran on it in"),
        (("why", " ", "--dump", "d"), "give a picture's URL"),
        (("audit", "d", "--out", "/nonexistent/page.html"), "/nonexistent is no folder"),
        (("leakage", "d", "--out", "STORE"), "no folder in which"),
        (("calibrate", "--dump", "d", "--keep", "0.3", "--plot", "/nonexistent/c.svg"), "/nonexistent is no folder"),
        (("calibrate", "--pairs", "/nonexistent", "--precision", "0.9"), "does not exist"),
        (("demo-crawl", "STORE"), "holds no demo crawl"),
        (("index-evalset", "a/b", "STORE"), "evaluation set 'a/b'"),
        (("recipes", "validate", "absent.yaml"), "can't be read"),
        (("recipes", "distance", "demo"), "no section target: --set target.samples"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple, message: str) -> None:
    (tmp_path / "file").touch()
    done = curation(*(str(tmp_path) if a == "STORE" else a for a in arguments), store=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_why_of_an_unknown_url_says_so(world: World) -> None:
    run(world, "--until", "extract")
    done = curation("why", "http://host0.test/never.jpg", "--dump", "crawl", store=world.store.root)
    assert done.returncode == 1
    assert "in no shard of crawl" in done.stderr


def test_json_for_scripts_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    assert "demo" in json.loads(curation("recipes", "list", "--json").stdout)
    shown = json.loads(curation("recipes", "show", "demo", "--set", "gates.too_small.at_least=99", "--json").stdout)
    assert shown["gates"]["too_small"][0]["at_least"] == 99
    assert json.loads(curation("recipes", "validate", "demo", "--json").stdout)["valid"] is True
    assert (
        "gates.similarity_low.at_least: 0.3 -> 0.28" in curation("recipes", "diff", "laion-400m", "laion-5b-en").stdout
    )
    assert json.loads(curation("recipes", "schema").stdout)["properties"]["gates"]


def test_numbers_of_shards_are_shown_as_the_option_takes_them() -> None:
    assert _ranges([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"


def test_help_teaches() -> None:
    assert "curation why http" in curation("why", "--help").stdout

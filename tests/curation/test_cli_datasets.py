import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.publish.version import latest
from tests.curation.conftest import PICTURES, World
from tests.curation.publish.test_releases import publish, run


def command(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_publish_export_diff_release_takedown_and_log(world: World, tmp_path: Path) -> None:
    root = ["--store", world.store.root]
    recipe, _ = world.recipe({"publish.instruct": "json", "publish.release.approval": True})
    first = publish(world, recipe, {"crawl": [0]})
    run(world, recipe, {"crawl": [1]})
    world.recipe({"publish.instruct": "json", "publish.release.approval": True})
    told = json.loads(command("publish", "small", "--dump", "crawl", *root, "--json", code=1))
    assert told["held"] == ["approval: nobody has approved this version yet"]
    assert latest(world.store, "small") == ""
    assert "is released" in command("release", "small", told["version"], "--by", "ada", *root)
    assert latest(world.store, "small") == told["version"]

    assert json.loads(command("diff", "small", first, "latest", *root, "--json"))["samples"]["added"] == 2
    assert "samples: 2 added, 0 removed, 2 the same" in command("diff", "small", first, *root)

    folder = tmp_path / "laid out"
    whole = json.loads(command("export", "small", str(folder), "--images", *root, "--json"))["copied_bytes"]
    assert whole > 0
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    records = [record for path in (folder / "instruct").iterdir() for record in json.loads(path.read_text())]
    assert all((folder / "images" / record["image"]).is_file() for record in records)
    tar = folder / "webdataset" / "crawl-00001.tar"
    tar.write_bytes(b"broken off")
    again = json.loads(command("export", "small", str(folder), *root, "--json"))["copied_bytes"]
    assert again == tar.stat().st_size < whole

    cat = tmp_path / "cat.jpg"
    cat.write_bytes(PICTURES["/cat.jpg"])
    assert "2 samples would go; nothing is changed" in command("takedown", "--picture", str(cat), *root)
    receipt = json.loads(command("takedown", "--picture", str(cat), "--yes", *root, "--json"))
    assert receipt["n_samples"] == 2
    assert "the log is whole" in command("audit-log", "--hash", receipt["audit"], *root)
    assert "no entry has the hash" in command("audit-log", "--hash", "f" * 64, *root, code=1)
    assert json.loads(command("gc", *root, "--json"))["removed"] == []


def test_a_run_says_that_its_version_is_held(world: World) -> None:
    settings = ("--set", f"stages.download.connect_to={json.dumps(world.connect_to)}")
    settings += ("--set", "publish.release.approval=true", "--store", world.store.root)
    done = json.loads(
        command("run", str(world.recipe_file), "--dump", "crawl", "--source", str(world.crawl), *settings, "--json")
    )
    assert done["held"] == ["approval: nobody has approved this version yet"]
    assert latest(world.store, "small") == ""


def test_a_version_with_a_leak_is_held(world: World, tmp_path: Path) -> None:
    root = ("--store", world.store.root)
    items = tmp_path / "items"
    items.mkdir()
    (items / "cat.jpg").write_bytes(PICTURES["/cat.jpg"])
    command("index-evalset", "cats", str(items), *root)
    settings = ("--set", f"stages.download.connect_to={json.dumps(world.connect_to)}")
    settings += ("--set", 'stages.leakage.evalsets=["cats"]', *root)
    crawl = ("run", str(world.recipe_file), "--dump", "crawl", "--source", str(world.crawl), *settings, "--json")
    assert json.loads(command(*crawl))["held"] == ["leakage: 2 kept samples hit an evaluation set, at most 0 may"]
    assert latest(world.store, "small") == ""
    done = json.loads(command(*crawl, "--set", 'gates.leak_sha256={"column": "leak_kind", "none_of": ["sha256"]}'))
    assert done["held"] == []
    assert latest(world.store, "small")


@pytest.mark.parametrize(
    "arguments",
    [
        ("takedown", "--yes"),
        ("takedown", "--sha256", "12"),
        ("export", "small", "x", "--kind", "pictures"),
        ("takedown", "--picture", __file__),
        ("gc", "--grace-hours", "0"),
        ("release", "small", "nope", "--by", "ada"),
    ],
    ids=["no target", "no sha256", "no kind", "no picture", "no grace", "no version"],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code = "from curation.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--store", str(tmp_path / "s")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

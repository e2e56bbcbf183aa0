"""requirements.lock, the Makefile and .ci/run: what a fresh machine gets."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_names_exact_versions_and_no_place() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_]+", line)] == []


def test_lock_holds_everything_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    asked = {plain(re.split(r"[\[<>=!~; ]", line)[0]) for line in [*project["dependencies"], *extras]}
    assert asked - {plain(line.partition("==")[0]) for line in LOCK} == set()


def test_this_environment_is_the_locked_one() -> None:
    if not os.environ.get("CI"):
        pytest.skip("outside CI an environment may be newer")
    installed = {}
    for line in LOCK:
        name, _, wanted = line.partition("==")
        try:
            installed[name] = (version(name), wanted)
        except PackageNotFoundError:
            continue  # another platform's
    assert {name: pair for name, pair in installed.items() if pair[0] != pair[1]} == {}


def test_the_lock_installs_on_the_python_of_the_image() -> None:
    # Debian bookworm's, which the Dockerfile builds on; a build fails after minutes, and only there
    assert "FROM debian:bookworm-slim" in (ROOT / "Dockerfile").read_text()
    refused = {}
    for line in LOCK:
        name, _, wanted = line.partition("==")
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # another platform's
        asks = found.metadata.get("Requires-Python", "")
        if found.version == wanted and not SpecifierSet(asks).contains("3.11.2"):
            refused[line] = asks
    assert refused == {}


def test_ci_is_strict_and_runs_the_readme_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    readme = (ROOT / "README.md").read_text()
    for command in ("make test", "make demo"):
        assert command in readme
    assert "$(MAKE) test" in script or " test" in script
    assert subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")]).returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "venv.py", tmp_path / "scripts")
    shutil.copy(ROOT / "Makefile", tmp_path)
    # a project without dependencies stands for this one: pip must not reach for anything
    (tmp_path / "pyproject.toml").write_text("not even a project\n")
    (tmp_path / "requirements.lock").write_text("")
    return tmp_path


def make_venv(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "venv", f"PYTHON={sys.executable}", *options]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True)


def test_a_half_installed_environment_is_noticed_and_named(checkout: Path) -> None:
    first = make_venv(checkout)
    assert first.returncode != 0
    assert "making .venv" in first.stdout
    assert "pip could not install everything" in first.stderr
    assert not (checkout / ".venv" / "complete").exists()

    again = make_venv(checkout)
    assert again.returncode != 0
    assert "unfinished or out of date" in again.stdout


def test_a_complete_environment_is_left_alone(checkout: Path) -> None:
    make_venv(checkout)
    script = runpy.run_path(str(checkout / "scripts" / "venv.py"))
    (checkout / ".venv" / "complete").write_text(script["digest"]())
    site = next((checkout / ".venv" / "lib").glob("python*/site-packages"))
    (site / "curation.py").touch()
    done = make_venv(checkout)
    assert (done.returncode, done.stdout) == (0, "")

    (checkout / "requirements.lock").write_text("numpy==0.0.0\n")
    assert "unfinished or out of date" in make_venv(checkout).stdout


def test_a_missing_python_is_named_with_its_package(checkout: Path) -> None:
    done = make_venv(checkout, "PYTHON=python3-of-nowhere")
    assert done.returncode != 0
    assert "apt-get install python3 python3-venv" in done.stderr


def test_uv_looks_where_pip_does(checkout: Path) -> None:
    script = runpy.run_path(str(checkout / "scripts" / "venv.py"))
    config = (
        ":env:.find-links='/wheels'\nglobal.cert='/etc/ca.crt'\nglobal.disable-pip-version-check='1'\n"
        "global.extra-index-url='\\nhttps://one/simple\\nhttps://two/simple'\nuser.index-url=\"https://base/simple\"\n"
    )
    options, environment = script["as_uv"](config)
    assert options == [
        "--find-links", "/wheels", "--extra-index-url", "https://one/simple", "--extra-index-url", "https://two/simple",
        "--default-index", "https://base/simple",
    ]  # fmt: skip
    assert environment == {"SSL_CERT_FILE": "/etc/ca.crt"}


def test_what_uv_cannot_install_is_left_to_pip(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "requirements.lock").write_text("uv==1.0\n")
    script = runpy.run_path(str(checkout / "scripts" / "venv.py"))
    uv = checkout / ".venv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    found = [sys.executable, "-m", "pip", "--version"]  # uv is there already: nothing is to be fetched
    assert script["by_uv"](found, ["-e", "here"])
    assert "pip install --python" in capfd.readouterr().out
    uv.write_text("#!/bin/sh\nexit 1\n")
    assert not script["by_uv"](found, ["-e", "here"])
    assert "pip tries it" in capfd.readouterr().out

"""The direction of dependencies (docs/architecture.md), read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "curation"
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def below(folder: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_never_airflow(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] == "airflow"]


def test_stages_know_no_store_and_no_other_stage() -> None:
    for path in below("stages"):
        names = imports(path)
        others = {name for name in names if name.startswith("curation.stages.")} - {"curation.stages.base"}
        assert not others, f"{path.name} imports {others}"
        assert not {"curation.store", "curation.runner", "curation.pipeline", "boto3"} & names, path.name


@pytest.mark.parametrize("folder", ["models", "images", "text", "web", "sources", "joins"])
def test_lower_layers_know_no_stage_and_no_store(folder: str) -> None:
    for path in below(folder):
        upper = [n for n in imports(path) if n.startswith(("curation.stages", "curation.runner", "curation.pipeline"))]
        assert not [name for name in upper if name != "curation.stages.base"], path.name


def test_nothing_imports_the_command() -> None:
    assert not [path for path in FILES if "curation.cli" in imports(path)]


def test_no_rooms_without_a_name() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [path for path in FILES if path.stem in drawers or path.parent.name in drawers]

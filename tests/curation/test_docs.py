"""README.md and docs/ against the code: commands, options, files and variables that exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from curation.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}

every_page = pytest.mark.parametrize("page", TEXTS)


def commands(text: str) -> Iterator[list[str]]:
    """Words after `curation`, of each command in backquotes or on a line of its own; what is told of it is left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    spans = re.findall(r"`curation ([^`]+)`", joined)
    fenced = re.sub(r"^", "    ", "\n".join(re.findall(r"```\w*\n(.*?)```", joined, re.DOTALL)), flags=re.MULTILINE)
    spans += re.findall(r"^ {4}(?:[^\n]* )?curation ([a-z-]+(?: [^\n]*)?)$", f"{joined}\n{fenced}", re.MULTILINE)
    for span in spans:
        yield re.split(r" {2,}(?=[^\s-])|\s#", re.sub(r"\n\s*", " ", span))[0].split()


@cache
def root() -> Any:
    """The `curation` command."""
    return typer.main.get_command(app)


def missing(words: list[str]) -> list[str]:
    """What of a command the code does not know."""
    command = root()
    rest = list(words)
    while rest and re.fullmatch(r"[a-z][a-z-]*", rest[0].rstrip(",;")) and hasattr(command, "commands"):
        name = rest.pop(0).rstrip(",;")
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    asked = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", " ".join(rest))
    return [option for option in asked if option not in known | {"--help"}]


def test_an_unknown_command_or_option_is_found() -> None:
    text = "`curation inspct var` and\n\n    docker compose exec worker curation run demo --dumb mine    # try\n"
    assert [missing(words) for words in commands(text)] == [["inspct"], ["--dumb"]]


@every_page
def test_commands_and_options_exist(page: str) -> None:
    told = {" ".join(words): missing(words) for words in commands(TEXTS[page])}
    assert {command: unknown for command, unknown in told.items() if unknown} == {}


def test_commands_are_found() -> None:
    assert sum(len(list(commands(text))) for text in TEXTS.values()) > 60


@every_page
def test_files_and_links_exist(page: str) -> None:
    here = (ROOT / page).parent
    named = re.findall(
        r"(?<![\w./-])((?:curation|dags|deploy|docs|plugins|scripts|tests)/[\w./-]+\.(?:py|yaml|json|md|sh))\b",
        TEXTS[page],
    )
    assert [path for path in named if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", TEXTS[page])
    assert [link for link in links if not (here / link).exists()] == []


@every_page
def test_variables_of_ours_are_read_by_the_code(page: str) -> None:
    asked = set(re.findall(r"\bCURATION_[A-Z_]+[A-Z]\b", TEXTS[page]))
    assert {name for name in asked if f'"{name}"' not in source()} == set()


@cache
def source() -> str:
    """All code that reads variables."""
    return "".join(path.read_text() for folder in ("curation", "plugins") for path in (ROOT / folder).rglob("*.py"))

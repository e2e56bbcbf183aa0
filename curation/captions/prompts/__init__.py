"""What a teacher is asked: files of the package by language, or an editable file of the user's own."""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from curation.errors import ConfigError

LANGUAGES = ("en", "zh")


@lru_cache  # one prompt a process: an edit in the middle of a job would be another job
def read_prompt(prompt: str) -> str:
    """Text of a prompt: "en" or "zh" (six-point detailed description), or the path of a UTF-8 file.

    source   the six points follow Chen et al. 2023 (ShareGPT4V), figure 2; the wording is ours
    raises   ConfigError where there is no such file, or an empty one
    """
    try:
        if prompt in LANGUAGES:
            text = (files("curation") / "captions" / "prompts" / f"{prompt}.txt").read_text(encoding="utf-8")
        else:
            text = Path(prompt).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"prompt {prompt!r}: expected one of {', '.join(LANGUAGES)} or a text file: {err}") from err
    if not text.strip():
        raise ConfigError(f"prompt {prompt!r}: the file is empty")
    return text.strip()
